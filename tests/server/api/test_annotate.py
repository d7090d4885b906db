"""Annotators over HTTP, with a fake model and networks of this project's own making."""

import json

import numpy as np
import pytest
from fake_model import FakeModel, build_state, start_client, unzip_images
from image_files import encode_base64

from server.config.catalog import ToolFile
from server.director.network import load_network
from server.director.toolbox import Toolbox

ANNOTATE = "/ai/annotate-image"
PIXELS = np.zeros((64, 64, 3), np.uint8)
PIXELS[16:48, 16:48] = 40
IMAGE = {"image": encode_base64(PIXELS)}


@pytest.fixture(scope="module")
def state(model, signing_key):
    return build_state(model, FakeModel(), signing_key)


@pytest.fixture(scope="module")
def client(state):
    with start_client(state) as client:
        yield client


def annotate(client, model, **parameters):
    return client.post(ANNOTATE, json={"model": model, "parameters": IMAGE | parameters})


@pytest.mark.parametrize("name", ["canny", "hed", "fake_scribble", "scribble"])
def test_a_filter_answers_with_white_edges_on_black(client, name):
    response = annotate(
        client, name, **({"low_threshold": 60, "high_threshold": 90} if name == "canny" else {})
    )
    assert response.status_code == 200, response.text
    (image,) = unzip_images(response).values()
    gray = np.asarray(image.convert("L"))
    assert gray.shape == (64, 64)
    assert gray[16:48, 14:19].max() > 200
    assert gray[5, 5] == gray[32, 32] == 0


def test_the_thresholds_are_cannys(client):
    counts = []
    for low, high in ((60, 90), (500, 900), ("60", None)):
        response = annotate(client, "canny", low_threshold=low, high_threshold=high)
        (image,) = unzip_images(response).values()
        counts.append(np.count_nonzero(np.asarray(image.convert("L"))))
    assert counts[0] > 0 == counts[1]
    assert counts[2] > 0
    comment = json.loads(image.info["Comment"])
    assert (comment["annotator"], comment["low"]) == ("canny", 60.0)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "model: is required"),
        ({"model": "canny"}, "parameters: is required"),
        ({"model": "canny", "parameters": {}}, "parameters.image: is required"),
        ({"model": "cany", "parameters": IMAGE}, "model: 'cany' is not one of canny, hed, midas"),
        ({"model": "openpose", "parameters": IMAGE}, "model: 'openpose' needs an ONNX network"),
        ({"model": "seg", "parameters": IMAGE}, "model: 'seg' needs an ONNX network"),
        (
            {"model": "canny", "parameters": {**IMAGE, "low_threshold": -1}},
            "parameters.low_threshold: -1 is not a number from 0 to 2040",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(client, body, message):
    response = client.post(ANNOTATE, json=body)
    assert response.status_code == 400
    assert response.json()["message"].startswith(message)


@pytest.mark.parametrize("name", ["midas", "normal"])
def test_depth_comes_with_its_normals(tmp_path, name):
    pytest.importorskip("onnxruntime")
    networks = pytest.importorskip("benchmarks.onnx_networks")
    nodes = [("ReduceMean", ["x"], "y", {"axes": [1]})]
    network = load_network("midas", ToolFile(path=networks.write_network(tmp_path / "plain.onnx", nodes, {})))
    drawings = Toolbox({"midas": network}).draw(name, np.asarray(PIXELS) * 6)
    assert len(drawings) == (1 if name == "normal" else 2)
    if name != "normal":
        depth = drawings[0].rgb[..., 0]
        assert depth[32, 32] == 255
        assert depth[2, 2] == 0
    normals = drawings[-1].rgb.astype(int)
    assert (np.abs(normals[32, 32] - (128, 128, 255)) < 3).all()
    assert normals[32, 16, 0] != normals[32, 47, 0]
