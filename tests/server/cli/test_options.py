"""Options of the command line that are more than one value."""

import sys

import pytest

from server.cli import main
from server.cli.options import parse_concurrency, parse_control, parse_sizes
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


def test_lists_of_sizes_and_numbers_have_each_once():
    assert parse_sizes("832x1216, 512X768,832x1216") == ((832, 1216), (512, 768))
    assert parse_concurrency("4, 1,4") == (4, 1)


@pytest.mark.parametrize("text", ["", "1,", "0", "65", "-1", "1.5", "many"])
def test_a_number_of_pictures_at_a_time_is_whole_and_small(text):
    with pytest.raises(
        ConfigError, match=r"--concurrency '.*' is not a whole number from 1 to 64; write numbers like 1,4"
    ):
        parse_concurrency(text)


@pytest.mark.parametrize("text", ["", "832x1216,", "832", "832x1216x2"])
def test_a_size_is_two_numbers(text):
    with pytest.raises(ConfigError, match=r"--sizes '.*' is not like 832x1216"):
        parse_sizes(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bench", "--steps", "1.5"), "--steps = 1.5: should be a whole number"),
        (("bench", "--pictures", "2"), "--pictures = 2: should be a whole number from 3 to 1000"),
        (("serve", "--port", "many"), "--port = many: should be a whole number"),
        (("serve", "--replicas", "-1"), "--replicas = -1: should be a whole number, at least 0"),
        (("generate", "1girl", "--scale", "high"), "--scale = high: should be a number"),
        (("token", "add", "anna", "--limit", "0"), "--limit = 0: should be a whole number from 1 to "),
    ],
)
def test_a_flags_number_is_refused_in_one_line_as_a_settings_is(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["naiad", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith(f"naiad: {message}")
    assert error.count("\n") == 1
