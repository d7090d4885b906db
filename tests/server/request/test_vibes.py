"""Reference images of a request: which fields hold them, their values, and what is refused."""

from base64 import b64encode
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from demo.checkpoint import VIBE
from pipelines.job import EncodedVibe, RgbImage
from server.config.catalog import single_model_catalog
from server.config.resources import configs
from server.engine.model import detect_model
from server.errors import Rejected
from server.request.encoded_vibe import pack_vibe, unpack_vibe
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import read_request
from server.request.vibes import SIDE, has_references, normalize, read_reference

PRESETS = load_presets(configs() / "presets.toml")
SECRET = b"s" * 32
TOKENS = EncodedVibe(8, 96, np.arange(768, dtype="<f4").tobytes(), 0.4)


def encode(size=(64, 32), color="red", mode="RGB"):
    file = BytesIO()
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()


IMAGE = b64encode(encode()).decode()


@pytest.fixture(scope="module")
def served(demo_file):
    return detect_model(single_model_catalog(demo_file, vibe=VIBE))


@pytest.fixture
def ask(served):
    def ask(model=None, action="generate", **parameters):
        policy = RequestPolicy(model or served, PRESETS, vibe_secret=SECRET)
        sent = {"input": "cat", "action": action, "parameters": {"width": 64, "height": 64, **parameters}}
        return resolve(read_request(sent), policy, lambda: 9).job.vibes

    return ask


@pytest.fixture
def refusal(ask):
    def refusal(**parameters):
        with pytest.raises(Rejected) as caught:
            ask(**parameters)
        return caught.value.message

    return refusal


def list_values(vibes):
    return [(vibe.strength, vibe.information_extracted) for vibe in vibes]


def test_nai_defaults_fill_in(ask):
    for parameters in (
        {"reference_image": IMAGE},
        {"reference_image_multiple": [IMAGE]},
        {"reference_image_multiple": [IMAGE], "reference_strength_multiple": [], "reference_strength": 0.2},
        {"reference_image_multiple_cached": [{"cache_secret_key": "k", "data": IMAGE}]},
        {"reference_image_multiple": [IMAGE], "reference_strength_multiple": [None]},
    ):
        assert list_values(ask(**parameters)) == [(0.6, 1.0)]


def test_each_image_has_its_own_values(ask):
    vibes = ask(
        reference_image=IMAGE,
        reference_strength=1,
        reference_information_extracted=0.5,
        reference_image_multiple=[IMAGE, IMAGE],
        reference_strength_multiple=[0.1, "-0.2"],
        reference_information_extracted_multiple=[0.3, 0],
    )
    assert list_values(vibes) == [(1, 0.5), (0.1, 0.3), (-0.2, 0)]


def test_images_of_img2img_and_infill_may_be_joined_by_references(ask):
    both = {"image": IMAGE, "mask": b64encode(encode(color="white")).decode()}
    for action in ("img2img", "infill"):
        assert len(ask(action=action, reference_image_multiple=[IMAGE], **both)) == 1


def test_strengths_are_normalized_if_asked_for(ask):
    several = {"reference_image_multiple": [IMAGE] * 3, "reference_strength_multiple": [1, -0.5, 0.5]}
    assert [vibe.strength for vibe in ask(**several)] == [1, -0.5, 0.5]
    flag = {"normalize_reference_strength_multiple": True}
    assert [vibe.strength for vibe in ask(**several, **flag)] == [0.5, -0.25, 0.25]
    assert normalize([0.3, -0.4]) == [0.3, -0.4]


def test_values_without_an_image_may_be_anything(ask, served):
    for values in (
        {"reference_strength": "junk", "reference_strength_multiple": [9e9], "reference_image": ""},
        {"reference_image_multiple": [], "reference_information_extracted_multiple": "x"},
    ):
        assert ask(**values) == ()
        assert ask(replace(served, vibe=None), **values) == ()


def test_values_of_the_other_form_may_be_anything(ask):
    for parameters in (
        {"reference_image": IMAGE, "reference_strength_multiple": [9e9, "x"]},
        {"reference_image": IMAGE, "reference_strength_multiple": [0.1]},
        {
            "reference_image_multiple": [IMAGE],
            "reference_strength": 9e9,
            "reference_information_extracted": "x",
        },
    ):
        assert list_values(ask(**parameters)) == [(0.6, 1)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"reference_image": IMAGE, "reference_strength": 1e9}, "parameters.reference_strength: 1000000000.0 is not a number from -2 to 2"),
        ({"reference_image": IMAGE, "reference_strength": float("nan")}, "parameters.reference_strength: nan is not"),
        ({"reference_image": IMAGE, "reference_information_extracted": 1.5}, "parameters.reference_information_extracted: 1.5 is not a number from 0 to 1"),
        ({"reference_image_multiple": [IMAGE], "reference_strength_multiple": ["x"]}, "parameters.reference_strength_multiple.0: 'x' is not a number from -2 to 2"),
        ({"reference_image_multiple": [IMAGE], "reference_strength_multiple": 0.5}, "parameters.reference_strength_multiple: 0.5 is not an array with a number from -2 to 2 for each image"),
        ({"reference_image_multiple": [IMAGE], "reference_strength_multiple": [0.1, 0.2]}, "parameters.reference_strength_multiple: 2 values for 1 image; send one for each, or none for 0.6"),
        ({"reference_image_multiple": [IMAGE] * 2, "reference_information_extracted_multiple": [1]}, "parameters.reference_information_extracted_multiple: 1 value for 2 images; send one for each, or none for 1"),
        ({"reference_image_multiple": [IMAGE] * 17}, "parameters.reference_image_multiple.16: 17 reference images; at most 16"),
        ({"reference_image_multiple": IMAGE}, "parameters.reference_image_multiple: not an array; send an array of images"),
        ({"reference_image_multiple": [IMAGE, None]}, "parameters.reference_image_multiple.1: no image; send one in Base64, or remove the entry"),
        ({"reference_image_multiple_cached": [{"data": IMAGE}, {"cache_secret_key": "k"}]}, "parameters.reference_image_multiple_cached.1.data: no image"),
        *[({"reference_image_multiple": [empty]}, "parameters.reference_image_multiple.0: no image") for empty in ([], None, "", False)],
        ({"reference_image_multiple": [{}]}, "parameters.reference_image_multiple.0.data: no image"),
        ({"reference_image_multiple_cached": [[]]}, "parameters.reference_image_multiple_cached.0: no image"),
        ({"reference_image_multiple": [[[]]]}, "parameters.reference_image_multiple.0: not a string"),
        ({"reference_image": [[]]}, "parameters.reference_image: not a string"),
        ({"reference_image": "AAAA"}, "parameters.reference_image: neither a PNG, WebP or JPEG image nor a vibe of this server"),
        ({"reference_image": "https://example.org/a.png"}, "parameters.reference_image: not Base64"),
        ({"reference_image": IMAGE[:60]}, "parameters.reference_image: a broken PNG"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(refusal, parameters, message):
    assert refusal(**parameters).startswith(message)


def test_a_model_without_an_adapter_says_how_to_get_one(refusal, served):
    message = refusal(model=replace(served, vibe=None), reference_image_multiple=[IMAGE])
    assert message == (
        "parameters.reference_image_multiple.0: "
        "remove the reference images; the model has no image adapter (`vibe` in the catalog)"
    )


def test_an_image_is_fitted_into_a_black_square():
    image = read_reference(encode((64, 32)), "image")
    pixels = np.frombuffer(image.rgb, np.uint8).reshape(SIDE, SIDE, 3)
    assert (image.width, image.height) == (448, 448)
    assert (pixels[:112] == 0).all()
    assert (pixels[112:336] == (255, 0, 0)).all()
    assert (pixels[336:] == 0).all()


def test_what_is_transparent_is_black_as_on_nais_page():
    image = read_reference(encode((64, 64), "#ffffff00", "RGBA"), "image")
    assert not any(image.rgb)


def test_an_image_of_one_column_is_not_lost():
    pixels = np.frombuffer(read_reference(encode((1, 2000), "white"), "image").rgb, np.uint8)
    assert pixels.reshape(SIDE, SIDE, 3)[:, 223:225].max() == 255


def test_an_encoded_vibe_stands_for_an_image(ask, served):
    data = b64encode(pack_vibe(TOKENS, served, SECRET)).decode()
    images = ask(reference_image_multiple=[IMAGE, data], reference_information_extracted_multiple=[1, 1])
    assert isinstance(images[0].source, RgbImage)
    assert images[1].source == TOKENS
    assert list_values(images) == [(0.6, 1), (0.6, 0.4)]  # its information was chosen when it was encoded


def test_any_changed_byte_of_an_encoded_vibe_is_refused(served):
    data = pack_vibe(TOKENS, served, SECRET)
    changed = [bytearray(data) for _ in range(3)]
    for content, position in zip(changed, (20, 200, -1), strict=True):
        content[position] ^= 1
    for content in (*map(bytes, changed), data[:-1], data[:14], data + b"\0"):
        with pytest.raises(
            Rejected, match="image: encoded by another server, or damaged; encode the image again"
        ):
            unpack_vibe(content, "image", served, SECRET)
    with pytest.raises(Rejected, match="another server"):
        unpack_vibe(data, "image", served, b"t" * 32)


def test_a_vibe_of_another_model_is_refused_by_the_names_of_both(served):
    other = replace(served, id="nai-diffusion-furry-3", vibe=replace(served.vibe, files={"vibe": "00000000"}))
    data = pack_vibe(TOKENS, other, SECRET)
    assert unpack_vibe(data, "image", other, SECRET) == TOKENS
    with pytest.raises(Rejected) as caught:
        unpack_vibe(data, "image", served, SECRET)
    assert caught.value.message == (
        "image: encoded for the model 'nai-diffusion-furry-3' with another image adapter; "
        "encode the image again for 'nai-diffusion-3' at /ai/encode-vibe"
    )


def test_a_request_with_references_waits_for_a_slot_to_decode_them():
    for parameters, expected in (({}, False), ({"reference_image_multiple": [""]}, False), ({"reference_image": "x"}, True)):  # fmt: skip
        request = read_request({"input": "a", "parameters": parameters})
        assert has_references(request.parameters) == expected
