"""ControlNets of a request: which fields hold them, their values, and what is refused."""

from base64 import b64encode
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from server.config.catalog import single_model_catalog
from server.config.controlnets import ControlNetFile
from server.config.resources import configs
from server.engine.controlnets import ServedControl, ServedControls
from server.engine.model import detect_model
from server.errors import Rejected
from server.request.controls import has_controls
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import read_request

PRESETS = load_presets(configs() / "presets.toml")
OTHER_FAMILY = "is a ControlNet for Stable Diffusion 1, the model is SDXL; choose one for SDXL"


def encode(image):
    file = BytesIO()
    image.save(file, "PNG")
    return b64encode(file.getvalue()).decode()


MAP = encode(Image.new("RGB", (64, 64), "red"))
HALVES = Image.new("RGB", (128, 64), "red")
HALVES.paste("blue", (0, 0, 32, 64))
CLEAR = Image.new("RGBA", (64, 64))


def serve(name, modes=None, **settings):
    return ServedControl(name, ControlNetFile(path=Path(f"{name}.st"), **settings), modes, f"{len(name):08X}")


NETWORKS = (
    serve("hed"),
    serve("Depth", strength=0.5, start=0.1, end=0.8),
    serve("canny", 6, mode=3),
    serve("union", 6),
)


@pytest.fixture(scope="module")
def served(demo_file):
    controls = ServedControls({network.name: network for network in NETWORKS}, {"openpose": OTHER_FAMILY})
    return replace(detect_model(single_model_catalog(demo_file)), controls=controls)


def read(**parameters):
    return read_request({"input": "cat", "parameters": {"width": 64, "height": 64, **parameters}})


@pytest.fixture
def ask(served):
    def ask(model=served, **parameters):
        return resolve(read(**parameters), RequestPolicy(model, PRESETS), lambda: 9).job.controls

    return ask


@pytest.fixture
def refusal(ask):
    def refusal(*model, **parameters):
        with pytest.raises(Rejected) as caught:
            ask(*model, **parameters)
        return caught.value.message

    return refusal


def list_values(controls):
    return [(one.name, one.strength, one.start, one.end, one.mode) for one in controls]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"controlnet_model": "hed"}, ("hed", 1.0, 0.0, 1.0, None)),
        ({"controlnet_model": "HED", "controlnet_strength": None}, ("hed", 1.0, 0.0, 1.0, None)),
        ({"controlnet_model": "midas", "controlnet_strength": "0.6"}, ("Depth", 0.3, 0.1, 0.8, None)),
        ({"controlnet_model": "canny", "controlnet_strength": -2}, ("canny", -2.0, 0.0, 1.0, 3)),
    ],
)
def test_the_map_of_nai_goes_to_the_network_that_is_named(ask, parameters, expected):
    (control,) = ask(controlnet_condition=MAP, **parameters)
    assert list_values([control]) == [expected]
    assert control.path == Path(f"{control.name}.st")
    assert control.fingerprint == f"{len(control.name):08X}"
    assert control.image.rgb == b"\xff\0\0" * 64 * 64


def test_a_list_has_several_maps_with_values_of_their_own(ask):
    controls = ask(
        controls=[
            {"model": "union", "image": MAP, "mode": "tile", "strength": 0.5, "end": 0.4}
            | {"mode": "segment"},
            {"model": "canny", "image": MAP, "mode": 0, "start": 0.2},
            {"model": "depth", "image": MAP, "strength": 2},
        ],
        controlnet_condition=MAP,
        controlnet_model="hed",
    )
    assert list_values(controls) == [
        ("hed", 1.0, 0.0, 1.0, None),
        ("union", 0.5, 0.0, 0.4, 5),
        ("canny", 1.0, 0.2, 1.0, 0),
        ("Depth", 1.0, 0.1, 0.8, None),
    ]


@pytest.mark.parametrize("empty", [None, "", [], [{}], [""]])
def test_values_without_a_map_mean_nothing(ask, empty):
    values = {"controlnet_model": 7, "controlnet_strength": "much"}
    assert ask(controlnet_condition=empty, controls=empty, **values) == ()
    assert not has_controls(read(controlnet_condition=empty, controls=empty, **values).parameters)
    assert has_controls(read(controls=[{"model": "hed"}]).parameters)


def test_a_map_of_strength_0_is_read_and_left_out(ask, refusal):
    assert ask(controlnet_condition=MAP, controlnet_model="hed", controlnet_strength=0) == ()
    message = refusal(controlnet_condition="AAAA", controlnet_model="hed", controlnet_strength=0)
    assert message.startswith("parameters.controlnet_condition: not a PNG, WebP or JPEG")


def test_the_only_network_need_not_be_named(ask, served):
    alone = replace(served, controls=ServedControls({"hed": NETWORKS[0]}))
    assert list_values(ask(alone, controlnet_condition=MAP)) == [("hed", 1.0, 0.0, 1.0, None)]
    assert len(ask(alone, controls=[{"image": MAP}])) == 1


def test_a_map_covers_the_image_and_is_black_where_it_is_transparent(ask):
    (control,) = ask(controls=[{"model": "hed", "image": encode(HALVES)}])
    assert (control.image.width, control.image.height) == (64, 64)
    assert control.image.rgb == b"\xff\0\0" * 64 * 64  # the left and the right quarter are cut off
    (control,) = ask(controls=[{"model": "hed", "image": encode(CLEAR)}])
    assert set(control.image.rgb) == {0}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "controlnet_model: is required: hed, Depth, canny, union"),
        (
            {"controlnet_model": "cany"},
            "controlnet_model: 'cany' is not one of the ControlNets; did you mean 'canny'? offered: hed, Depth, canny",
        ),
        ({"controlnet_model": "../hed"}, "controlnet_model: '../hed' is not one of the ControlNets"),
        ({"controlnet_model": "openpose"}, f"controlnet_model: 'openpose' {OTHER_FAMILY}"),
        ({"controlnet_model": "union"}, "controlnet_model: 'union' needs a control type: `mode` in the catalog"),
        ({"controlnet_model": 3}, "controlnet_model: 3 is not a name of at most 200 characters"),
        ({"controlnet_strength": 2.1}, "controlnet_strength: 2.1 is not a number from -2 to 2"),
        ({"controlnet_strength": "nan"}, "controlnet_strength: 'nan' is not a number from -2 to 2"),
        ({"controlnet_model": "hed", "controlnet_condition": 3}, "controlnet_condition: not a string"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_map_of_nai_is_refused_by_name(refusal, parameters, message):
    assert refusal(**{"controlnet_condition": MAP} | parameters).startswith(f"parameters.{message}")


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ("hed", ": 'hed' is not an array of objects with model and image"),
        (["hed"], ".0: 'hed' is not an object with model and image"),
        ([{"model": "hed"}], ".0.image: no image; send a map in Base64"),
        ([{"model": "hed", "image": "AAAA"}], ".0.image: not a PNG, WebP or JPEG image"),
        ([{"model": "hed", "image": MAP}, {"model": "hedd", "image": MAP}], ".1.model: 'hedd' is not one of"),
        ([{"model": "hed", "image": MAP, "strength": 3}], ".0.strength: 3 is not a number from -2 to 2"),
        ([{"model": "hed", "image": MAP, "start": 2}], ".0.start: 2 is not a number from 0 to 1"),
        ([{"model": "Depth", "image": MAP, "start": 0.8}], ".0.start: 0.8 is not below the end, 0.8"),
        ([{"model": "hed", "image": MAP, "mode": 0}], ".0.mode: remove it; 'hed' has one control type"),
        ([{"model": "union", "image": MAP, "mode": 6}], ".0.mode: 6 is not a control type of 'union'; 0 to 5 are"),
        ([{"model": "union", "image": MAP, "mode": "repaint"}], ".0.mode: 7 is not a control type of 'union'; 0 to"),
        ([{"model": "union", "image": MAP, "mode": "edges"}], ".0.mode: 'edges' is not a union network's control type"),
        ([{"model": "hed", "image": MAP}] * 5, ": 5 control maps; at most 4"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_list_is_refused_by_name(refusal, controls, message):
    assert refusal(controls=controls).startswith(f"parameters.controls{message}")


def test_a_model_without_networks_names_what_is_missing(refusal, served):
    none = replace(served, controls=ServedControls())
    message = "parameters.controlnet_condition: remove the control map; the server has no ControlNets"
    assert refusal(none, controlnet_condition=MAP, controlnet_model="hed").startswith(message)
    others = replace(served, controls=ServedControls({}, {"hed": OTHER_FAMILY}))
    for parameters in ({}, {"controlnet_model": "hed"}):
        assert OTHER_FAMILY in refusal(others, controlnet_condition=MAP, **parameters)
