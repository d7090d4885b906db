import json

import pytest

from demo.architecture import demo_architecture
from pipelines.weights.architecture import Architecture, sd15, sdxl

NONSENSE = {
    "not JSON": "{",
    "not an object": "[]",
    "no towers": '{"family": "sdxl"}',
    "another family": {"family": "sd3"},
    "no UNet": {"unet": None},
    "a list for a UNet": {"unet": ["in_channels"]},
    "a key too many": {"unet": dict(sdxl().unet) | {"surprise": 1}},
    "a key too few": {"vae": {"in_channels": 3}},
    "a value of another type": {"unet": dict(sdxl().unet) | {"in_channels": "4"}},
    "one tower": {"towers": json.loads(sdxl().to_json())["towers"][:1]},
    "the towers the wrong way round": {"towers": json.loads(sdxl().to_json())["towers"][::-1]},
}


@pytest.mark.parametrize("architecture", [sdxl(9), sd15(), demo_architecture()])
def test_an_architecture_survives_its_json(architecture):
    assert Architecture.from_json(architecture.to_json()) == architecture


@pytest.mark.parametrize("told", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_no_architecture(told):
    text = told if isinstance(told, str) else json.dumps(json.loads(sdxl().to_json()) | told)
    with pytest.raises(ValueError, match=r"not an architecture|Expecting"):
        Architecture.from_json(text)


def test_the_inpainting_architecture_differs_in_its_input_channels_alone():
    four, nine = json.loads(sdxl().to_json()), json.loads(sdxl(9).to_json())
    assert (sdxl().channels, sdxl(9).channels) == (4, 9)
    four["unet"]["in_channels"] = 9
    assert four == nine
