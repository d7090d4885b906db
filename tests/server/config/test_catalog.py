import os
import re
from pathlib import Path

import pytest
from paths import ROOT

from server.config.catalog import choose_catalog, load_catalog, single_model_catalog
from server.config.settings import Settings
from server.config.toml import ConfigError

EXAMPLE = ROOT / "weights.example.toml"


def write_catalog(folder, text):
    file = folder / "weights.toml"
    file.write_text(text)
    return file


def test_the_example_is_a_valid_catalog():
    assert load_catalog(EXAMPLE).models["nai-diffusion-3"].path.parent == EXAMPLE.parent


def test_every_key_in_the_example_is_valid_and_used(tmp_path):
    text = re.sub(r"^# (?=\w+ = )", "", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE)
    entry = load_catalog(write_catalog(tmp_path, text)).models["nai-diffusion-3"]
    assert entry.model_fields_set == set(type(entry).model_fields)
    assert entry.vae == tmp_path / "sdxl-vae.safetensors"
    assert [path.parent for path in entry.text_encoders] == [tmp_path, tmp_path]


def test_each_checkpoint_is_listed_once_and_the_default_first(tmp_path):
    text = 'default = "b"\n[models.a]\npath = "a.st"\n[models.b]\npath = "b.st"\n[models.c]\npath = "a.st"'
    assert load_catalog(write_catalog(tmp_path, text)).distinct_models() == ("b", "a")


def test_absolute_paths_are_kept(tmp_path):
    file = write_catalog(
        tmp_path, f'default = "a"\n[models.a]\npath = "{tmp_path.as_posix()}/elsewhere/a.st"'
    )
    assert load_catalog(file).models["a"].path == tmp_path / "elsewhere" / "a.st"


def test_a_single_checkpoint_makes_a_catalog():
    catalog = single_model_catalog(Path("mine.safetensors"))
    assert [entry.path for entry in catalog.models.values()] == [Path("mine.safetensors")]
    assert catalog.default == "nai-diffusion-3"


@pytest.mark.parametrize(
    ("key", "line"), [("path", 4), ("vae", 5), ("text_encoders", 6)], ids=["path", "vae", "text_encoders"]
)
def test_a_missing_file_is_reported_with_its_line(tmp_path, key, line):
    (tmp_path / "present.st").touch()
    files = {name: "missing.st" if name == key else "present.st" for name in ("path", "vae", "text_encoders")}
    text = (
        f'default = "a"\n\n[models.a]\npath = "{files["path"]}"\nvae = "{files["vae"]}"\n'
        f'text_encoders = [\n  "{files["text_encoders"]}",\n]'
    )
    with pytest.raises(
        ConfigError, match=rf"weights\.toml:{line}: models\.a\.{key}.*missing\.st: no such file"
    ):
        load_catalog(write_catalog(tmp_path, text)).require_files("a")


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("models.a", "path"),
        ("models.a", "vae"),
        ("models.a", "inpainting"),
        ("models.a", "preview_decoder"),
        ("tools", "matting"),
    ],
)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, table, key):
    (tmp_path / "present.st").touch()
    os.mkfifo(tmp_path / "pipe.st")
    entry = "" if key == "path" else 'path = "present.st"\n'
    text = (
        f'default = "a"\n[models.a]\n{entry}'
        + (f"[{table}]\n" if table == "tools" else "")
        + f'{key} = "pipe.st"\n'
    )
    with pytest.raises(ConfigError, match=rf"{table}\.{key}: .*pipe\.st: a pipe, device or socket"):
        load_catalog(write_catalog(tmp_path, text)).require_files("a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name a checkpoint"),
        ({"checkpoint": Path("a.st"), "demo": True}, "a checkpoint and --demo cannot be combined"),
        ({"demo": True, "weights": Path("w.toml")}, "--demo and --weights cannot be combined"),
        (
            {"weights": Path("w.toml"), "prediction": "v"},
            r"--prediction = 'v' is for a checkpoint .*; set prediction .*w\.toml",
        ),
        (
            {"weights": Path("w.toml"), "zsnr": False},
            r"--zsnr = 'false' is for a checkpoint .*; set zsnr .*w\.toml",
        ),
    ],
)
def test_a_command_uses_exactly_one_catalog(options, message):
    arguments = {"checkpoint": None, "demo": False, "weights": None} | options
    with pytest.raises(ConfigError, match=message):
        choose_catalog(Settings(), **arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('default = "a"\n[models.a]\npath = "a"\npredicton = "v"', "predicton"),
        ('default = "a"\n[models.a]\npath = "a"\nprediction = "flow"', "'flow'.*'eps', 'v' or 'edm_v'"),
        (
            'default = "a"\n[models.a]\npath = "a"\nsigma_max = 0',
            "sigma_max = 0: should be a number, above 0",
        ),
        ('default = "a"\n[models.a]', r"models\.a\.path.*required"),
        ('default = "b"\n[models.a]\npath = "a"', "default = 'b'.*a"),
    ],
)
def test_an_invalid_catalog_is_refused_with_file_and_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_catalog(write_catalog(tmp_path, text))
    assert "weights.toml" in str(error.value)


def test_a_missing_catalog_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_catalog(tmp_path / "weights.toml")


@pytest.mark.parametrize("options", [{"demo": True}, {"checkpoint": Path("a.st")}])
def test_flags_say_what_a_checkpoint_on_the_command_line_predicts(options):
    arguments = {"checkpoint": None, "demo": False, "weights": None} | options
    catalog = choose_catalog(Settings(), **arguments, prediction="v", zsnr=False)
    entry = catalog.models[catalog.default]
    assert (entry.prediction, entry.zsnr) == ("v", False)


@pytest.mark.parametrize(
    ("text", "encoder", "strength"),
    [
        ('vibe = "ip.st"', None, 1.0),
        ('vibe = {path = "ip.st", image_encoder = "h", strength = 0.8}', "h", 0.8),
        ('[models.a.vibe]\npath = "ip.st"\nimage_encoder = "h"', "h", 1.0),
    ],
)
def test_an_image_adapter_is_a_path_or_a_table(tmp_path, text, encoder, strength):
    catalog = load_catalog(write_catalog(tmp_path, f'default = "a"\n[models.a]\npath = "a.st"\n{text}\n'))
    vibe = catalog.models["a"].vibe
    assert vibe is not None
    assert vibe.path == tmp_path / "ip.st"
    assert vibe.image_encoder == (None if encoder is None else tmp_path / encoder)
    assert vibe.strength == strength
    (tmp_path / "a.st").touch()
    with pytest.raises(ConfigError, match=r"weights\.toml:[45]: models\.a\.vibe\.path: .*no such file"):
        catalog.require_files("a")
    (tmp_path / "ip.st").touch()
    if encoder is None:
        catalog.require_files("a")
    else:
        with pytest.raises(ConfigError, match=r"models\.a\.vibe\.image_encoder: .*no such file"):
            catalog.require_files("a")


@pytest.mark.parametrize("strength", ["0", "-1", "inf", '"a"'])
def test_a_factor_of_strengths_is_positive(tmp_path, strength):
    text = f'default = "a"\n[models.a]\npath = "a.st"\nvibe = {{path = "ip.st", strength = {strength}}}'
    with pytest.raises(ConfigError, match="strength"):
        load_catalog(write_catalog(tmp_path, text))


def test_the_demo_has_its_own_adapter():
    catalog = choose_catalog(Settings(), None, demo=True, weights=None)
    vibe = catalog.models[catalog.default].vibe
    assert vibe is not None
    assert vibe.path.name == "naiad-demo-vibe.safetensors"
    catalog.require_files(catalog.default)
