"""The director tools over HTTP, with a fake model and networks of this project's own making."""

import json
from base64 import b64encode
from dataclasses import replace

import numpy as np
import pytest
from fake_model import FakeModel, build_state, start_client, unzip_images
from image_files import encode_base64

from server.config.catalog import ToolFile
from server.director.network import load_network
from server.director.toolbox import Toolbox
from server.picture.inspection import check_signatures, inspect

AUGMENT = "/ai/augment-image"
PIXELS = np.full((96, 64, 3), 250, np.uint8)
PIXELS[30:70, 20:50] = (200, 30, 30)
SENT = {"image": encode_base64(PIXELS), "width": 64, "height": 96, "prompt": "", "defry": 0}


def start(model, key, **changes):
    return start_client(build_state(model, FakeModel(), key, **changes))


@pytest.fixture
def client(model, signing_key):
    with start(model, signing_key) as client:
        yield client


@pytest.fixture(scope="module")
def matting(tmp_path_factory):
    """A toolbox with a matting network."""
    pytest.importorskip("onnxruntime")
    networks = pytest.importorskip("benchmarks.onnx_networks")
    path = networks.write_matting_network(tmp_path_factory.mktemp("tools") / "corners.onnx")
    return Toolbox({"matting": load_network("matting", ToolFile(path=path))})


def open_bare(response):
    """The metadata of a response that is one image, and its pixels."""
    assert response.status_code == 200, response.text
    return inspect(response.content)


@pytest.mark.parametrize("tool", ["lineart", "sketch"])
def test_a_filter_answers_with_one_signed_picture_of_the_same_size(client, signing_key, tool):
    response = client.post(AUGMENT, json=SENT | {"req_type": tool})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "binary/octet-stream"
    assert list(unzip_images(response)) == ["image_0.png"]
    inspection = open_bare(
        client.post(AUGMENT, json=SENT | {"req_type": tool}, headers={"Accept": "image/png"})
    )
    assert inspection.size == (64, 96)
    assert {check.signer for check in check_signatures(inspection, signing_key.public, None)} == {"ours"}
    assert (inspection.rgb == inspection.rgb[..., :1]).all()
    assert (inspection.rgb[5, 5] == 255).all()
    assert inspection.rgb[30:70, 18:22].min() < 150


def test_the_metadata_has_the_form_of_nais_director_tools_and_the_source_below_derived_from(client):
    source = client.post(
        "/ai/generate-image",
        json={"input": "1girl", "parameters": {"width": 64, "height": 128, "seed": 3}},
        headers={"Accept": "image/png"},
    ).content
    sent = {"req_type": "lineart", "image": b64encode(source).decode()}
    fields = open_bare(client.post(AUGMENT, json=sent, headers={"Accept": "image/png"})).text
    assert (fields["Title"], fields["Software"]) == ("AI augmented image", "NovelAI")
    assert "Description" not in fields
    comment, old = json.loads(fields["Comment"]), inspect(source).text
    assert next(iter(comment.items())) == ("req_type", "lineart")
    assert comment["naiad"]["tool"] == {"name": "lineart", "by": "filter"}
    assert "self-hosted, not NovelAI" in comment["generator"]
    assert comment["derived_from"]["Source"] == old["Source"]
    assert "signed_hash" not in comment["derived_from"]["Comment"]
    assert json.loads(comment["derived_from"]["Comment"])["prompt"] == "1girl"


def test_a_removed_background_is_transparent_in_three_signed_pictures(model, signing_key, matting):
    with start(model, signing_key, toolbox=matting) as client:
        sent = SENT | {"req_type": "bg-removal"}
        images = unzip_images(client.post(AUGMENT, json=sent))
        bare = client.post(AUGMENT, json=sent, headers={"Accept": "image/png"})
        webp = client.post(AUGMENT, json=sent | {"image_format": "webp"}, headers={"Accept": "image/webp"})
    assert list(images) == ["image_0.png", "image_1.png", "image_2.png"]
    for image in images.values():
        assert (image.mode, image.size) == ("RGBA", (64, 96))
        pixels = np.asarray(image)
        assert (pixels[2, 2] == 0).all()
        assert (pixels[50, 35] == (200, 30, 30, 255)).all()
        assert json.loads(image.info["Comment"])["naiad"]["tool"]["by"] == "corners.onnx"
    for response in (bare, webp):
        inspection = open_bare(response)
        assert inspection.alpha is None
        checks = check_signatures(inspection, signing_key.public, None)
        assert [check.signer for check in checks] == ["ours"]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({}, "req_type: is required"),
        (
            {"req_type": "paint"},
            "req_type: 'paint' is not one of bg-removal, lineart, sketch, colorize, emotion",
        ),
        ({"req_type": "pixel-snap"}, "req_type: 'pixel-snap' is not offered: nothing is published"),
        ({"req_type": "lineart"}, "image: is required"),
        ({"req_type": "lineart", "image": "AAAA"}, "image: not a PNG, WebP or JPEG image"),
        ({**SENT, "req_type": "lineart", "width": "wide"}, "width: 'wide' is not a whole number"),
        ({**SENT, "req_type": "bg-removal"}, "req_type: 'bg-removal' needs an ONNX network"),
        (
            {"req_type": "lineart", "image": encode_base64(np.zeros((2000, 2000, 3), np.uint8))},
            "image: 2000 x 2000 is more than 3145728 pixels",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(client, sent, message):
    response = client.post(AUGMENT, json=sent)
    assert response.status_code == 400
    assert response.json()["message"].startswith(message)
    assert "\n" not in response.json()["message"]


def test_the_refusal_of_a_tool_without_a_network_names_the_setting(client):
    message = client.post(AUGMENT, json=SENT | {"req_type": "bg-removal"}).json()["message"]
    assert "tools.matting" in message


def test_a_form_is_read_like_json(client):
    parts = {"request": ("blob", json.dumps(SENT | {"req_type": "lineart"}), "application/json")}
    response = client.post(AUGMENT, files=parts)
    assert list(unzip_images(response)) == ["image_0.png"]


@pytest.mark.parametrize("level", ["plain", "none"])
def test_other_levels_of_metadata_keep_the_transparency(model, signing_key, matting, level):
    state = build_state(model, FakeModel(), signing_key, toolbox=matting)
    state = replace(state, metadata=replace(state.metadata, level=level))
    with start_client(state) as client:
        images = unzip_images(client.post(AUGMENT, json=SENT | {"req_type": "bg-removal"}))
    (first, *_) = images.values()
    assert np.asarray(first)[2, 2, 3] == 0
    assert first.info.get("Software", "naiad").startswith("naiad")


def record_job(client, fake_model, sent):
    """The job of a prompted tool, and the picture's Comment."""
    response = client.post(AUGMENT, json=SENT | sent, headers={"Accept": "image/png"})
    inspection = open_bare(response)
    assert inspection.size == (64, 96)
    return fake_model.jobs[-1], json.loads(inspection.text["Comment"]), inspection


@pytest.fixture
def drawn(model, signing_key):
    """A client and its fake model."""
    fake_model = FakeModel()
    state = build_state(model, fake_model, signing_key)
    with start_client(state) as client:
        yield client, fake_model


def test_a_prompted_tool_is_an_img2img_job_with_the_models_presets(drawn):
    client, fake_model = drawn
    job, comment, inspection = record_job(
        client, fake_model, {"req_type": "colorize", "prompt": "red hair", "defry": 2, "seed": 7}
    )
    (only,) = job.passes
    assert job.prompts.positive.startswith("red hair, ")
    assert "best quality" in job.prompts.positive
    assert job.prompts.negative.startswith("monochrome, ")
    assert (only.seeds, only.strength, only.width % 32, only.height % 32) == ((7,), 0.72, 0, 0)
    assert list(comment)[:3] == ["req_type", "prompt", "defry"]
    assert (comment["prompt"], comment["defry"]) == ("red hair", 2)
    assert comment["naiad"]["tool"]["name"] == "colorize"
    assert comment["naiad"]["job"]["source"]["strength"] == 0.72
    assert inspection.text["Title"] == "AI augmented image"


def test_a_colorized_picture_keeps_the_lines(model, signing_key):
    lines = np.full((96, 64, 3), 255, np.uint8)
    lines[40:43, 8:56] = 0
    with start(model, signing_key) as client:
        sent = {"req_type": "colorize", "image": encode_base64(lines), "seed": 1}
        response = client.post(AUGMENT, json=sent, headers={"Accept": "image/png"})
    picture = open_bare(response).rgb
    assert picture[41, 12:52].max() < 60
    assert picture[10:30].mean() > 90


def test_an_emotion_is_recorded_by_its_mood_and_takes_the_images_own_prompt(drawn):
    client, fake_model = drawn
    source = client.post(
        "/ai/generate-image",
        json={"input": "1girl, smile, hat", "parameters": {"width": 64, "height": 96, "seed": 3}},
        headers={"Accept": "image/png"},
    ).content
    sent = {"req_type": "emotion", "image": b64encode(source).decode(), "prompt": "Sad;;beach,", "defry": "1"}
    job, comment, _ = record_job(client, fake_model, sent)
    assert job.prompts.positive.startswith("sad, frown, downcast eyes, beach, 1girl, hat, ")
    assert (comment["prompt"], comment["defry"]) == ("sad", 1)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"req_type": "emotion"}, "prompt: '' is not a mood"),
        (
            {"req_type": "emotion", "prompt": "sad;;", "defry": 9},
            "defry: 9 is not a whole number from 0 to 5",
        ),
        ({"req_type": "colorize", "prompt": 5}, "prompt: 5 is not a text"),
        ({"req_type": "colorize", "seed": "x"}, "seed: 'x' is not a whole number"),
        (
            {"req_type": "declutter", "image": encode_base64(np.zeros((4, 200, 3), np.uint8))},
            "image: 200 x 4: one side may be at most 16 times",
        ),
    ],
)
def test_prompted_tools_name_what_they_cannot_use(drawn, sent, message):
    client, fake_model = drawn
    response = client.post(AUGMENT, json=SENT | sent)
    assert response.status_code == 400
    assert response.json()["message"].startswith(message)
    assert fake_model.jobs == []


def test_fields_that_a_tool_does_not_read_may_hold_anything(client):
    sent = SENT | {"req_type": "lineart", "prompt": None, "defry": "x", "seed": []}
    assert client.post(AUGMENT, json=sent).status_code == 200


def test_sizes_that_are_not_the_images_get_a_warning(client):
    response = client.post(AUGMENT, json=SENT | {"req_type": "lineart", "width": 65})
    assert response.headers["x-naiad-warning"] == "width: 65: the image has 64x96"
    assert "x-naiad-warning" not in client.post(AUGMENT, json=SENT | {"req_type": "lineart"}).headers
