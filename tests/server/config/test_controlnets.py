"""The table `[controlnets]` of a catalog."""

import pytest

from server.config.catalog import load_catalog
from server.config.toml import ConfigError

HEAD = 'default = "a"\n[models.a]\npath = "a.st"\n[controlnets]\n'


def load(folder, text):
    file = folder / "weights.toml"
    file.write_text(HEAD + text)
    return load_catalog(file)


def list_values(catalog, folder):
    return {
        name: [
            (str(file.path.relative_to(folder)), file.mode, file.strength, file.start, file.end)
            for file in files
        ]
        for name, files in catalog.controlnets.items()
    }


def test_a_network_is_a_path_a_table_or_a_list_of_these(tmp_path):
    text = (
        'hed = "hed"\n'
        'canny = {path = "union.st", mode = "canny", strength = 0.7, start = 0.1, end = 0.6}\n'
        'tile = {path = "union.st", mode = 6}\n'
        'midas = ["xl.st", {path = "15.st", end = 0.5}]\n'
    )
    assert list_values(load(tmp_path, text), tmp_path) == {
        "hed": [("hed", None, 1.0, 0.0, 1.0)],
        "canny": [("union.st", 3, 0.7, 0.1, 0.6)],
        "tile": [("union.st", 6, 1.0, 0.0, 1.0)],
        "midas": [("xl.st", None, 1.0, 0.0, 1.0), ("15.st", None, 1.0, 0.0, 0.5)],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hed = 3", "5: controlnets.hed = 3: should be a table: write [controlnets.hed] and its keys below"),
        ("hed = []", "5: controlnets.hed: no file; name one, or remove the key"),
        ("hed = {mode = 3}", "5: controlnets.hed.path is required"),
        ('\nhed = {path = "a", mod = 3}', "6: 'controlnets.hed.mod' is not a key here; did you mean 'controlnets.hed.mode'?"),
        ('hed = {path = "a", mode = "cany"}', "5: controlnets.hed.mode = 'cany': is not a control type; use a number or"),
        ('hed = {path = "a", mode = -1}', "5: controlnets.hed.mode = -1: should be a whole number, at least 0"),
        ('hed = {path = "a", mode = true}', "5: controlnets.hed.mode = true: should be a whole number, at least 0"),
        ('hed = {path = "a", strength = 0}', "5: controlnets.hed.strength = 0: should be a number, above 0"),
        ('hed = {path = "a", strength = inf}', "5: controlnets.hed.strength = inf: should be a finite number, above 0"),
        ('[controlnets.hed]\npath = "a"\nend = 1.5', "7: controlnets.hed.end = 1.5: should be a number from 0 to 1"),
        ('hed = {path = "a", start = 0.5, end = 0.5}', "5: controlnets.hed: start = 0.5 is not below end = 0.5"),
        ('hed = [\n"a",\n{path = "b", end = -1},\n]', "5: controlnets.hed.1.end = -1: should be a number from 0 to 1"),
    ],
)  # fmt: skip
def test_an_invalid_entry_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'weights.toml'}:{message}")


def test_a_missing_file_is_reported_with_its_line(tmp_path):
    (tmp_path / "a.st").touch()
    catalog = load(tmp_path, 'hed = "a.st"\nmidas = ["a.st", "b.st"]\n')
    with pytest.raises(ConfigError, match=r"weights\.toml:6: controlnets\.midas\.1: .*b\.st: no such file"):
        catalog.require_files("a")
    (tmp_path / "b.st").touch()
    catalog.require_files("a")
