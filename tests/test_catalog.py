import re
from pathlib import Path

import pytest

from server.catalog import load_catalog, single
from server.settings import ConfigError

EXAMPLE = Path(__file__).parent.parent / "weights.example.toml"


def written(folder, text):
    file = folder / "weights.toml"
    file.write_text(text)
    return file


def test_the_example_is_a_catalogue_as_it_stands():
    assert load_catalog(EXAMPLE).entry("nai-diffusion-3").path.parent == EXAMPLE.parent


def test_every_key_the_example_offers_is_one(tmp_path):
    text = re.sub(r"^# (?=\w+ = )", "", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE)
    entry = load_catalog(written(tmp_path, text)).entry("nai-diffusion-3")
    assert entry.model_fields_set == set(type(entry).model_fields)
    assert entry.vae == tmp_path / "sdxl-vae.safetensors"
    assert [path.parent for path in entry.text_encoders] == [tmp_path, tmp_path]


def test_an_id_that_is_not_listed_gets_the_default(tmp_path):
    file = written(tmp_path, 'default = "a"\n[models.a]\npath = "a.st"\n[models.b]\npath = "b.st"')
    catalog = load_catalog(file)
    assert catalog.entry("b").path == tmp_path / "b.st"
    assert catalog.entry("nai-diffusion-furry-3") == catalog.entry("a")


def test_absolute_paths_stay(tmp_path):
    file = written(tmp_path, f'default = "a"\n[models.a]\npath = "{tmp_path.as_posix()}/elsewhere/a.st"')
    assert load_catalog(file).entry("a").path == tmp_path / "elsewhere" / "a.st"


def test_one_checkpoint_answers_for_every_id():
    for name in ("nai-diffusion-3", "nai-diffusion-3-inpainting", "anything"):
        assert single(Path("mine.safetensors")).entry(name).path == Path("mine.safetensors")


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
