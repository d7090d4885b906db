import json

import pytest

from demo.architecture import demo_architecture
from pipelines.weights.architecture import sd15, sdxl
from pipelines.weights.embedded import parse_architecture

NONSENSE = {
    "not JSON": "{",
    "not an object": "[]",
    "no text encoders": '{"family": "sdxl"}',
    "another family": {"family": "sd3"},
    "no UNet": {"unet": None},
    "a list for a UNet": {"unet": ["in_channels"]},
    "a key too many": {"unet": dict(sdxl().unet) | {"surprise": 1}},
    "a key too few": {"vae": {"in_channels": 3}},
    "a value of another type": {"unet": dict(sdxl().unet) | {"in_channels": "4"}},
    "one text encoder": {"towers": json.loads(sdxl().to_json())["towers"][:1]},
    "the text encoders in reverse order": {"towers": json.loads(sdxl().to_json())["towers"][::-1]},
}


@pytest.mark.parametrize("architecture", [sdxl(9), sd15(), demo_architecture()])
def test_an_architecture_survives_its_json(architecture):
    text = architecture.to_json()
    assert parse_architecture(text) == architecture
    assert parse_architecture(text).to_json() == text


@pytest.mark.parametrize("nonsense", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_no_architecture(nonsense):
    text = nonsense if isinstance(nonsense, str) else json.dumps(json.loads(sdxl().to_json()) | nonsense)
    with pytest.raises(ValueError, match=r"not an architecture|Expecting"):
        parse_architecture(text)


def test_the_inpainting_architecture_differs_only_in_its_input_channels():
    four, nine = json.loads(sdxl().to_json()), json.loads(sdxl(9).to_json())
    assert (sdxl().channels, sdxl(9).channels) == (4, 9)
    four["unet"]["in_channels"] = 9
    assert four == nine
