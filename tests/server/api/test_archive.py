"""The archive over HTTP: what is kept of each kind of request."""

import errno
import os
import sqlite3
import time
import zipfile
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO

import numpy as np
import pytest
from fake_model import GENERATE, FakeModel, build_state, start_client
from image_files import encode_base64
from live_server import build_post, connect, exchange, serve
from raw_responses import find_header
from stream_reader import read_msgpack
from waiting import LIMIT, wait_until

from server.api.access import AccessRules
from server.api.accounts import Account, Accounts
from server.api.active_jobs import ActiveJob
from server.api.archive import build_query, read_query
from server.archive.archive import Archive
from server.archive.names import parse_name, to_milliseconds
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


def test_a_retry_that_gets_the_same_picture_keeps_it_once(model, gate, archive, monkeypatch):
    joined, join = [], ActiveJob.join
    monkeypatch.setattr(ActiveJob, "join", lambda job: (joined.append(job), join(job))[1])
    request = build_post(GENERATE, build_body(), "X-Correlation-Id: k3Xw9a")
    with (
        serve(build_state(model, FakeModel(gate), archive=archive)) as address,
        ThreadPoolExecutor(2) as threads,
    ):
        responses = [threads.submit(exchange, address, request) for _ in range(2)]
        wait_until(lambda: len(joined) == 2)
        gate.release(10)
        ids = {find_header(response.result(LIMIT), "x-job-id") for response in responses}
    assert (len(ids), archive.kept) == (1, 1)
    assert list_ids(archive.folder) == {f"{ids.pop()}-0"}


def test_a_picture_whose_client_has_gone_is_kept_if_it_is_finished(model, gate, archive, caplog):
    caplog.set_level("INFO", "naiad.requests")
    fake_model = FakeModel(gate)
    state = build_state(model, fake_model, archive=archive, on_disconnect="finish")
    with serve(state) as address:
        with connect(address) as lost:
            lost.sendall(build_post(GENERATE, build_body()))
            wait_until(lambda: fake_model.evaluations)
        gate.release(10)
        wait_until(lambda: archive.kept == 1)
    assert len(list_ids(archive.folder)) == 1


def list_ids(folder):
    """The ids of the files in an archive's folder."""
    return {name.id for file in folder.glob("*-*-*/*") if (name := parse_name(file.name)) is not None}


def generate(client, headers=None, prompt="1girl", count=1, **parameters):
    """Generate pictures, and return their ids in the archive."""
    body = build_body(n_samples=count, **parameters) | {"input": prompt}
    response = client.post(GENERATE, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return [f"{response.headers['x-request-id']}-{index}" for index in range(count)]


def read_page(client, headers=None, **query):
    response = client.get("/archive", params=query, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def wait_kept(archive, count):
    wait_until(lambda: archive.kept == count and not archive.is_scanning)


def test_pictures_are_listed_with_what_made_them(client, archive, model):
    (first,) = generate(client, prompt="1girl, red hair", negative_prompt="lowres")
    (second,) = generate(client, prompt="1boy")
    wait_kept(archive, 2)
    page = read_page(client)
    assert ([one["id"] for one in page["pictures"]], page["next"], page["complete"]) == (
        [second, first],
        None,
        True,
    )
    picture = page["pictures"][1]
    assert picture["prompt"].startswith("1girl, red hair")
    assert picture["negative_prompt"] == "lowres"
    assert (picture["seed"], picture["width"], picture["height"], picture["steps"]) == (5, 64, 64, 2)
    assert (picture["model"], picture["source"]) == ("nai-diffusion-3", model.fingerprint)
    assert picture["file"].endswith(f"-0-5-{picture['request_id']}.png")
    assert (picture["request_id"], picture["account"]) == (first.removesuffix("-0"), None)
    assert datetime.fromisoformat(picture["created"]).tzinfo == UTC
    assert set(picture) == {
        *("id", "file", "created", "request_id", "seed", "width", "height", "prompt", "negative_prompt"),
        *("model", "source", "sampler", "steps", "account"),
    }


def test_prompt_model_and_day_are_looked_for(client, archive, model):
    (first,) = generate(client, prompt="1girl, red hair")
    (second,) = generate(client, prompt="1girl, blue hair")
    wait_kept(archive, 2)
    today = datetime.now(UTC).astimezone().date()
    yesterday, tomorrow = today - timedelta(days=1), today + timedelta(days=1)
    queries = [
        ({"prompt": "red"}, [first]),
        ({"prompt": "HAIR, 1girl"}, [second, first]),
        ({"prompt": "red blue"}, []),
        ({"model": "nai-diffusion-3", "prompt": ""}, [second, first]),
        ({"model": model.fingerprint}, [second, first]),
        ({"model": "nai-diffusion-2"}, []),
        ({"from": yesterday, "to": tomorrow}, [second, first]),
        ({"from": tomorrow + timedelta(days=1)}, []),
        ({"to": yesterday - timedelta(days=1)}, []),
    ]
    for query, found in queries:
        assert [one["id"] for one in read_page(client, **query)["pictures"]] == found, query


def test_pages_follow_each_other(client, archive):
    ids = [id for _ in range(3) for id in generate(client, count=3)]
    wait_kept(archive, 9)
    pages = [read_page(client, limit=4)]
    while pages[-1]["next"] is not None:
        pages.append(read_page(client, limit=4, before=pages[-1]["next"]))
        generate(client)  # a new picture comes first and moves nothing
    assert [len(page["pictures"]) for page in pages] == [4, 4, 1]
    assert {one["id"] for page in pages for one in page["pictures"]} == {*ids}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (
            {"form": "2026-11-01"},
            "form: is not one of prompt, model, from, to, limit, before; did you mean from?",
        ),
        ({"from": "1.11.2026"}, "from: '1.11.2026' is not a date like 2026-11-01"),
        ({"from": "2026-02-30"}, "from: '2026-02-30' is not a date"),
        ({"to": "1700000000"}, "to: '1700000000' is not a date"),
        ({"from": "0001-01-01"}, "from: '0001-01-01' is not a date"),
        ({"from": "2026-11-02", "to": "2026-11-01"}, "from: 2026-11-02 is after to, 2026-11-01"),
        ({"limit": "0"}, "limit: '0' is not a whole number from 1 to 200"),
        ({"limit": "201"}, "limit: '201' is not"),
        ({"limit": "many"}, "limit: 'many' is not"),
        ({"before": "1"}, "before: '1' is not what an answer has as `next`"),
        ({"prompt": "x" * 1001}, "is not a text of at most 1000 characters"),
        ({"prompt": "!!"}, "prompt: '!!' has no words to look for"),
        ({"\x1b[31m": "x"}, "\\x1b[31m: is not one of"),
    ],
)
def test_a_wrong_query_is_refused_by_the_name_of_its_field(client, query, message):
    response = client.get("/archive", params=query)
    assert response.status_code == 400
    assert message in response.json()["message"]


@pytest.mark.parametrize(
    "prompt", ['" OR "', "words MATCH '", "NEAR(a b)", "a* NOT b", "prompt:x", "a\0b", "-", "%"]
)
def test_no_text_is_read_as_a_query_of_the_database(client, archive, prompt):
    generate(client)
    wait_kept(archive, 1)
    assert client.get("/archive", params={"prompt": prompt}).status_code in (200, 400)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_picture_is_sent_as_it_was_the_first_time(client, archive, suffix):
    response = client.post(GENERATE, json=build_body(image_format=suffix))
    wait_kept(archive, 1)
    path = f"/archive/{response.headers['x-request-id']}-0"
    picture = client.get(path)
    assert [picture.content] == unzip(response)
    assert picture.headers["content-type"] == f"image/{suffix}"
    assert picture.headers["cache-control"] == "private, max-age=31536000, immutable"
    again = client.get(path, headers={"If-None-Match": picture.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(path, headers={"Range": "bytes=5-1"}).content == picture.content
    head = client.head(path)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(picture.content)))


def test_a_picture_can_be_deleted(client, archive, tmp_path):
    first, second = generate(client, count=2)
    wait_kept(archive, 2)
    assert client.delete(f"/archive/{first}").status_code == 204
    assert (
        client.get(f"/archive/{first}").status_code == client.delete(f"/archive/{first}").status_code == 404
    )
    assert [one["id"] for one in read_page(client)["pictures"]] == [second]
    assert len([*tmp_path.glob("archive/*-*-*/*")]) == 1


@pytest.mark.parametrize("id", ["0" * 16 + "-0", "x", "%2e%2e%2fsigning.pem", "0" * 16 + "-0%00", "a" * 3000])
def test_what_is_not_in_the_archive_is_not_found(client, id):
    for method in ("GET", "DELETE"):
        assert client.request(method, f"/archive/{id}").status_code == 404


def test_a_picture_whose_file_was_deleted_is_not_found(client, archive, tmp_path):
    (id,) = generate(client)
    wait_kept(archive, 1)
    next(tmp_path.glob("archive/*-*-*/*")).unlink()
    response = client.get(f"/archive/{id}")
    assert response.status_code == 404
    assert str(tmp_path) not in response.text


ACCOUNTS = {"anna": "pst-" + "a" * 16, "ben": "pst-" + "b" * 16}
OPERATOR = "pst-" + "o" * 16


def build_headers(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def shared_client(model, fake_model, signing_key, archive):
    """Client of a server with accounts and a token of its own."""
    listed = tuple(Account(name=name, token=token) for name, token in ACCOUNTS.items())
    access = AccessRules((OPERATOR,), read_accounts=lambda: Accounts(account=listed))
    with start_client(build_state(model, fake_model, signing_key, archive=archive, access=access)) as client:
        yield client


def test_accounts_see_their_own_pictures_and_the_operator_all(shared_client, archive):
    anna, ben, operator = (build_headers(token) for token in (*ACCOUNTS.values(), OPERATOR))
    (of_anna,), (of_ben,), (of_operator,) = (
        generate(shared_client, headers) for headers in (anna, ben, operator)
    )
    wait_kept(archive, 3)
    for headers, ids in ((anna, [of_anna]), (ben, [of_ben]), (operator, [of_operator, of_ben, of_anna])):
        pictures = read_page(shared_client, headers)["pictures"]
        assert [one["id"] for one in pictures] == ids
        assert [one.get("account") for one in pictures] == (
            [None] if len(ids) == 1 else [None, "ben", "anna"]
        )
        assert ("account" in pictures[0]) == (len(ids) > 1)
    for method in ("GET", "DELETE"):
        assert shared_client.request(method, f"/archive/{of_anna}", headers=ben).status_code == 404
    assert shared_client.get(f"/archive/{of_anna}", headers=operator).status_code == 200
    assert shared_client.delete(f"/archive/{of_anna}", headers=anna).status_code == 204


def test_without_a_token_nothing_is_shown(shared_client, archive):
    (id,) = generate(shared_client, build_headers(OPERATOR))
    wait_kept(archive, 1)
    for path in ("/archive", f"/archive/{id}", "/archive/", f"/archive//{id}/"):
        for headers in (None, build_headers("pst-unknown-token")):
            assert shared_client.get(path, headers=headers).status_code == 401


def test_owners_are_kept_when_the_index_is_lost(shared_client, archive):
    anna = build_headers(ACCOUNTS["anna"])
    (id,) = generate(shared_client, anna)
    generate(shared_client, build_headers(ACCOUNTS["ben"]))
    wait_kept(archive, 2)
    (archive.folder / "naiad-index.sqlite").write_bytes(b"damaged" * 1000)
    wait_until(lambda: len(read_page(shared_client, anna)["pictures"]) == 1)
    assert read_page(shared_client, anna)["pictures"][0]["id"] == id


def test_an_index_that_cannot_be_used_is_a_503(client, archive, monkeypatch, tmp_path):
    def fail(*_):
        raise sqlite3.OperationalError(f"unable to open {tmp_path}")

    monkeypatch.setattr(archive._index, "find", fail)
    response = client.get("/archive")
    assert response.status_code == 503
    assert response.json()["message"].startswith("the archive cannot be used now")
    assert str(tmp_path) not in response.text


def test_without_metadata_no_prompt_is_kept(model, fake_model, archive):
    state = build_state(model, fake_model, archive=archive)
    state = replace(state, metadata=replace(state.metadata, level="none"))
    with start_client(state) as client:
        (id,) = generate(client, prompt="secret")
        wait_kept(archive, 1)
        (picture,) = read_page(client)["pictures"]
    assert (picture["id"], picture["prompt"], picture["negative_prompt"], picture["seed"]) == (id, "", "", 5)
    assert b"secret" not in b"".join(file.read_bytes() for file in archive.folder.glob("naiad-index*"))


def test_a_server_without_an_archive_says_how_to_get_one(model, fake_model, signing_key):
    with start_client(build_state(model, fake_model, signing_key)) as client:
        for method, path in (("GET", "/archive"), ("GET", "/archive/x"), ("DELETE", "/archive/x")):
            response = client.request(method, path)
            assert response.status_code == 404
            assert response.json()["message"] == (
                "this server keeps no archive; start it with --archive DIR, or set archive"
            )


@pytest.mark.parametrize(
    ("zone", "since", "until"),
    [
        ("UTC0", "2026-11-29T00:00Z", "2026-11-30T00:00Z"),
        ("CET-1", "2026-11-28T23:00Z", "2026-11-29T23:00Z"),
        ("EST5", "2026-11-29T05:00Z", "2026-11-30T05:00Z"),
    ],
)
def test_days_are_those_of_local_time(monkeypatch, zone, since, until):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        query = build_query(read_query({"from": "2026-11-29", "to": "2026-11-29"}), None)
    finally:
        monkeypatch.undo()
        time.tzset()
    times = [to_milliseconds(datetime.fromisoformat(text)) for text in (since, until)]
    assert [query.since, query.until] == times
