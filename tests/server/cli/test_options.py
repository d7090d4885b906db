"""Options of the command line that are more than one value."""

import pytest

from server.cli.options import parse_control
from server.config.toml import ConfigError


@pytest.mark.parametrize(
    ("file", "end", "strength"),
    [("a.png", "", None), ("a.png", ":0.8", "0.8"), ("a=b.png", ":-1", "-1"), ("a:2x.png", ":.5", ".5")],
)
def test_a_control_is_a_name_a_file_and_perhaps_a_strength(tmp_path, file, end, strength):
    (tmp_path / file).write_bytes(b"map")
    expected = {"model": "hed", "image": b"map", "strength": strength}
    assert parse_control(f"hed={tmp_path / file}{end}") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [("hed", "is not like"), ("hed=", "is not like"), ("hed=/absent", "/absent: No such")],
)
def test_another_text_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_control(text)
