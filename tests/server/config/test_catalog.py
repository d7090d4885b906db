import re
from pathlib import Path

import pytest
from paths import ROOT

from server.config.catalog import choose_catalog, load_catalog, single_model_catalog
from server.config.settings import Settings
from server.config.toml import ConfigError

EXAMPLE = ROOT / "weights.example.toml"


def written(folder, text):
    file = folder / "weights.toml"
    file.write_text(text)
    return file


def test_the_example_is_a_catalogue_as_it_stands():
    assert load_catalog(EXAMPLE).models["nai-diffusion-3"].path.parent == EXAMPLE.parent


def test_every_key_the_example_offers_is_one(tmp_path):
    text = re.sub(r"^# (?=\w+ = )", "", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE)
    entry = load_catalog(written(tmp_path, text)).models["nai-diffusion-3"]
    assert entry.model_fields_set == set(type(entry).model_fields)
    assert entry.vae == tmp_path / "sdxl-vae.safetensors"
    assert [path.parent for path in entry.text_encoders] == [tmp_path, tmp_path]


def test_names_of_one_checkpoint_are_told_once_and_the_default_first(tmp_path):
    text = 'default = "b"\n[models.a]\npath = "a.st"\n[models.b]\npath = "b.st"\n[models.c]\npath = "a.st"'
    assert load_catalog(written(tmp_path, text)).distinct() == ("b", "a")


def test_absolute_paths_stay(tmp_path):
    file = written(tmp_path, f'default = "a"\n[models.a]\npath = "{tmp_path.as_posix()}/elsewhere/a.st"')
    assert load_catalog(file).models["a"].path == tmp_path / "elsewhere" / "a.st"


def test_one_checkpoint_is_a_catalogue():
    catalog = single_model_catalog(Path("mine.safetensors"))
    assert [entry.path for entry in catalog.models.values()] == [Path("mine.safetensors")]
    assert catalog.default == "nai-diffusion-3"


@pytest.mark.parametrize(
    ("key", "line"), [("path", 4), ("vae", 5), ("text_encoders", 6)], ids=["path", "vae", "text_encoders"]
)
def test_a_file_that_is_not_there_is_told_with_its_line(tmp_path, key, line):
    there = tmp_path / "there.st"
    there.touch()
    named = {name: "gone.st" if name == key else "there.st" for name in ("path", "vae", "text_encoders")}
    text = (
        f'default = "a"\n\n[models.a]\npath = "{named["path"]}"\nvae = "{named["vae"]}"\n'
        f'text_encoders = [\n  "{named["text_encoders"]}",\n]'
    )
    with pytest.raises(ConfigError, match=rf"weights\.toml:{line}: models\.a\.{key}.*gone\.st: no such file"):
        load_catalog(written(tmp_path, text)).require_files("a")


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({}, "name a checkpoint"),
        ({"checkpoint": Path("a.st"), "demo": True}, "a checkpoint and --demo contradict"),
        ({"demo": True, "weights": Path("w.toml")}, "--demo and --weights contradict"),
    ],
)
def test_a_command_is_about_one_catalogue(choice, said):
    arguments = {"checkpoint": None, "demo": False, "weights": None} | choice
    with pytest.raises(ConfigError, match=said):
        choose_catalog(Settings(), **arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('default = "a"\n[models.a]\npath = "a"\npredicton = "v"', "predicton"),
        ('default = "a"\n[models.a]\npath = "a"\nprediction = "flow"', "'flow'.*'eps', 'v' or 'edm_v'"),
        ('default = "a"\n[models.a]\npath = "a"\nsigma_max = 0', "sigma_max = 0: .*greater than 0"),
        ('default = "a"\n[models.a]', r"models\.a\.path.*required"),
        ('default = "b"\n[models.a]\npath = "a"', "default = 'b'.*a"),
    ],
)
def test_a_wrong_catalogue_is_refused_with_file_and_key(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said) as refused:
        load_catalog(written(tmp_path, text))
    assert "weights.toml" in str(refused.value)


def test_a_missing_catalogue_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_catalog(tmp_path / "weights.toml")
