"""Which ControlNets of a catalog a model can use, and what `naiad check` and `naiad models` say of them."""

import pytest
from control_files import ARCHITECTURES, build_control, save_control
from safetensors.torch import load_file, save_file

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.header import read_header
from server.cli.check import check_setup
from server.config.catalog import load_catalog
from server.config.settings import Settings
from server.config.toml import ConfigError
from server.engine.model import detect_model, format_card


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a plain network and a union for the demo model, and one for Stable Diffusion 1."""
    folder, (sdxl, sd15) = tmp_path_factory.mktemp("controls"), ARCHITECTURES.values()
    save_control(folder / "edges", build_control(sdxl), sdxl)
    save_control(folder / "union.safetensors", build_control(sdxl, 6), sdxl)
    save_control(folder / "small.safetensors", build_control(sd15), sd15)
    return folder


@pytest.fixture
def load(demo_file, folder):
    def load(text):
        file = folder / "weights.toml"
        file.write_text(f'default = "a"\n[models.a]\npath = "{demo_file.as_posix()}"\n[controlnets]\n{text}')
        return load_catalog(file)

    return load


def check(catalog):
    return list(check_setup(catalog, Settings(metadata="plain")))


def test_the_file_for_the_models_family_is_chosen(load, folder):
    catalog = load('hed = ["small.safetensors", "edges"]\ncanny = {path = "union.safetensors", mode = 3}')
    model = detect_model(catalog)
    hed, canny = model.controls.usable.values()
    assert (hed.settings.path, hed.modes, hed.fingerprint) == (
        folder / "edges",
        None,
        fingerprint(folder / "edges"),
    )
    assert (canny.settings.path, canny.settings.mode, canny.modes) == (folder / "union.safetensors", 3, 6)
    assert model.controls.problems == {}
    assert format_card(model.card()).splitlines()[1:3] == [
        "  controlnet hed: edges",
        "  controlnet canny: union.safetensors",
    ]
    assert str(folder) not in str(model.card())
    assert [line for line in check(catalog) if line.startswith("controlnet ")] == [
        "controlnet hed: small.safetensors, for Stable Diffusion 1",
        "controlnet hed: edges, for SDXL",
        "controlnet canny: union.safetensors, for SDXL, a union of 6 control types",
    ]


def test_a_network_for_another_family_is_not_offered_and_says_why(load):
    controls = detect_model(load('hed = "small.safetensors"')).controls
    assert controls.usable == {}
    assert controls.problems == {
        "hed": "is a ControlNet for Stable Diffusion 1, the model is SDXL; choose one for SDXL"
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('hed = ["edges", "union.safetensors"]', r"weights\.toml:5: controlnets\.hed\.1: 'edges' is for the same models"),
        ('hed = {path = "edges", mode = 1}', r"weights\.toml:5: controlnets\.hed\.mode: edges: .*one control type"),
        ('hed = {path = "union.safetensors", mode = 6}', r"controlnets\.hed\.mode: union\.safetensors: .*0 to 5 are"),
    ],
)  # fmt: skip
def test_what_does_not_suit_a_file_is_refused_with_its_line(load, text, message):
    with pytest.raises(ConfigError, match=message):
        detect_model(load(text))


def test_a_file_that_is_no_controlnet_is_refused(load, demo_file):
    with pytest.raises(WeightsError, match="no ControlNet but a model"):
        detect_model(load(f'hed = "{demo_file.as_posix()}"'))


def test_check_refuses_what_cannot_be_loaded(load, folder):
    file = folder / "union.safetensors"
    tensors = {key: tensor for key, tensor in load_file(file).items() if ".mid_block." not in f".{key}"}
    save_file(tensors, folder / "half.safetensors", dict(read_header(file).metadata))
    with pytest.raises(ConfigError, match=r"half\.safetensors: .* missing"):
        check(load('hed = "half.safetensors"'))
