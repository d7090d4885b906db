"""The archive over HTTP: what is kept of each kind of request."""

import errno
import os
import zipfile
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from fake_model import GENERATE, FakeModel, build_state, start_client
from image_files import encode_base64
from stream_reader import read_msgpack
from waiting import wait_until

from server.archive.archive import Archive
from server.archive.names import parse_name
from server.picture.inspection import check_signatures, inspect

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 5}
IMAGE = encode_base64(np.full((64, 64, 3), 200, np.uint8))


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path / "archive")


@pytest.fixture
def client(model, fake_model, signing_key, archive):
    with start_client(build_state(model, fake_model, signing_key, archive=archive)) as client:
        yield client


def build_body(**parameters):
    return {"input": "1girl", "model": "nai-diffusion-3", "parameters": SMALL | parameters}


def unzip(response):
    archive = zipfile.ZipFile(BytesIO(response.content))
    return [archive.read(name) for name in archive.namelist()]


def read_finals(response):
    events = read_msgpack(response.content)
    return [event["image"] for event in events if event["event_type"] == "final"]


def read_openai(response):
    return [b64decode(entry["b64_json"]) for entry in response.json()["data"]]


REQUESTS = {
    "generate": (GENERATE, build_body(n_samples=2), unzip),
    "webp": (GENERATE, build_body(image_format="webp"), unzip),
    "stream": ("/ai/generate-image-stream", build_body(n_samples=2), read_finals),
    "openai": (
        "/v1/images/generations",
        {"prompt": "1girl", "size": "512x768", "n": 2, "seed": 5},
        read_openai,
    ),
    "upscale": ("/ai/upscale", {"image": IMAGE}, unzip),
    "filter": ("/ai/augment-image", {"image": IMAGE, "req_type": "lineart"}, unzip),
    "redraw": ("/ai/augment-image", {"image": IMAGE, "req_type": "declutter"}, unzip),
}
"""A request of each kind, and how the pictures of its response are read."""


@pytest.mark.parametrize(("path", "body", "read"), REQUESTS.values(), ids=REQUESTS)
def test_the_very_files_that_are_sent_are_kept(client, archive, signing_key, tmp_path, path, body, read):
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    sent = read(response)
    wait_until(lambda: archive.kept == len(sent))
    kept = list(tmp_path.glob("archive/*-*-*/*"))
    assert {file.read_bytes() for file in kept} == set(sent)
    for file in kept:
        checks = check_signatures(inspect(file.read_bytes()), signing_key.public, None)
        assert {check.signer for check in checks} == {"ours"}
    names = [name for file in kept if (name := parse_name(file.name)) is not None]
    assert {name.request_id for name in names} == {response.headers["x-request-id"]}
    assert {name.index for name in names} == {*range(len(sent))}
    if path == GENERATE:
        assert {name.seed - name.index for name in names} == {SMALL["seed"]}


def test_a_full_disk_does_not_fail_a_request(client, archive, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("server.archive.files.os.fsync", fail)
        response = client.post(GENERATE, json=build_body())
        wait_until(lambda: archive.failed == 1)
    assert response.status_code == 200
    assert len(unzip(response)) == 1
    assert list(tmp_path.glob("archive/*-*-*/*")) == []


def test_what_was_sent_is_written_before_the_server_has_stopped(model, signing_key, archive, tmp_path):
    state = build_state(model, FakeModel(), signing_key, archive=archive)
    with start_client(state) as client:
        client.post(GENERATE, json=build_body(n_samples=4))
    assert len([*tmp_path.glob("archive/*-*-*/*")]) == archive.kept == 4
