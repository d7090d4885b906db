import json

import pytest
from starlette.datastructures import Headers
from stream_reader import read_stream

from server.api.frames import ENCODINGS, build_error_event, build_image_event, choose_encoding
from server.errors import Rejected

KEYS = {"event_type", "samp_ix", "step_ix", "gen_id", "sigma", "image"}
EVENT = build_image_event("intermediate", 2**31 - 1, 1, 7, 14.6, b"\xff\xd8\x00")


@pytest.mark.parametrize("name", ENCODINGS)
def test_an_event_keeps_its_keys_and_values(name):
    encoding = ENCODINGS[name]
    final = build_image_event("final", 5, 0, 27, 0.0, b"\x89PNG")
    assert set(EVENT) == set(final) == KEYS
    content = encoding.encode(EVENT) + encoding.encode(final)
    assert read_stream(content, encoding.media_type) == [EVENT, final]


@pytest.mark.parametrize("name", ENCODINGS)
def test_infinite_noise_is_a_number_that_json_can_hold(name):
    encoding = ENCODINGS[name]
    event = build_image_event("intermediate", 1, 0, 0, float("inf"), b"")
    (read,) = read_stream(encoding.encode(event), encoding.media_type)
    assert read["sigma"] == 20_000.0


def test_an_error_has_the_keys_of_the_others_and_can_be_printed_as_json():
    error = build_error_event(3, 500, "no memory")
    assert set(error) == KEYS | {"code", "message"}
    assert json.loads(json.dumps(error)) == error
    assert error["event_type"] == "error"
    assert (error["code"], error["message"], error["samp_ix"]) == (500, "no memory", 0)


def test_a_text_with_the_marker_of_a_line_does_not_split_it():
    error = build_error_event(3, 500, "a data: b\nc")
    line = ENCODINGS["sse"].encode(error).decode()
    assert line.count("data: ") == 1
    assert json.loads(line.removeprefix("data: "))["message"] == "a data: b\nc"


@pytest.mark.parametrize(
    ("stream", "accept", "name"),
    [
        ("msgpack", "text/event-stream", "msgpack"),
        ("sse", "application/x-msgpack", "sse"),
        ("sse", None, "sse"),
        (None, None, "msgpack"),
        (None, "*/*", "msgpack"),
        (None, "application/x-msgpack", "msgpack"),
        (None, "application/msgpack, text/event-stream", "msgpack"),
        (None, "text/event-stream", "sse"),
        (None, "text/html, text/event-stream;q=0.5, */*", "sse"),
    ],
)
def test_the_field_decides_and_without_it_accept(stream, accept, name):
    headers = Headers({} if accept is None else {"accept": accept})
    assert choose_encoding(stream, headers) is ENCODINGS[name]


@pytest.mark.parametrize("stream", ["", "MSGPACK", "jsonl", True, False, 1, [], {"a": 1}])
def test_another_value_is_refused_by_name(stream):
    with pytest.raises(Rejected, match=r"parameters\.stream: .* is not msgpack or sse"):
        choose_encoding(stream, Headers({}))
