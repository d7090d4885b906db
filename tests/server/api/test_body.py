"""Request bodies: which are read, how far, and how the others are refused."""

import asyncio
import json
import tracemalloc

import pytest
from fake_model import GENERATE
from starlette.requests import Request

from server.api.body import MIB, BodyLimits, read_body
from server.api.form import PART_LIMIT
from server.api.json_text import parse_json_object
from server.api.memory import Memory
from server.errors import ApiError, Rejected

OBJECT = {"input": "猫", "parameters": {"width": 64}}
TEXT = json.dumps(OBJECT).encode()
FORM = "multipart/form-data; boundary=line"


def build_request(*chunks, **headers):
    """Return a request and its list of pending messages; None is a disconnect, and after the last it blocks."""
    pending = [
        {"type": "http.disconnect"}
        if chunk is None
        else {"type": "http.request", "body": chunk, "more_body": True}
        for chunk in chunks
    ]

    async def receive():
        if not pending:
            await asyncio.Event().wait()
        return pending.pop(0)

    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": GENERATE, "headers": raw}, receive), pending


def run_read(request, size=MIB, timeout=60.0, memory=64 * MIB):
    return asyncio.run(
        read_body(request, BodyLimits(size, timeout), Memory(memory).reserve(), asyncio.Semaphore())
    )


def read(*chunks, ends=True, limit=1, timeout=60.0, memory=64 * MIB, kind="application/json", **headers):
    """Return the object in a body."""
    request, pending = build_request(*chunks, content_type=kind, **headers)
    if ends:
        pending.append({"type": "http.request", "body": b"", "more_body": False})
    return run_read(request, int(limit * MIB), timeout, memory)


def refuse(*chunks, **options):
    """Return the status and the message of the error that a body causes."""
    with pytest.raises(ApiError) as caught:
        read(*chunks, **options)
    return caught.value.status, caught.value.message


def form(*parts, line="line", end="--line--\r\n"):
    """Return a multipart body; each part is (disposition, content)."""
    encoded = [
        f"--{line}\r\nContent-Disposition: form-data; {about}\r\n\r\n".encode() + content
        for about, content in parts
    ]
    return b"".join(part + b"\r\n" for part in encoded) + end.encode()


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON; charset=utf-8", "application/json;charset=latin-1", " application/json "],
)  # fmt: skip
@pytest.mark.parametrize(
    "body",
    [TEXT, b"\xef\xbb\xbf" + TEXT, json.dumps(OBJECT, ensure_ascii=False).encode(), b" \n" + TEXT + b"\n"],
)
def test_json_is_read(kind, body):
    assert read(body, kind=kind) == OBJECT
    assert read(*(bytes([byte]) for byte in body), kind=kind) == OBJECT


@pytest.mark.parametrize(
    ("about", "kind"),
    [
        ('name="request"; filename="blob"\r\nContent-Type: application/json', FORM),
        ('name="request"', FORM),
        ("name=request", 'Multipart/Form-Data; charset=utf-8; Boundary="line"'),
        ('name="request"', FORM + "; charset=punycode"),
        ('name="request"', FORM + "; charset=utf-16"),
    ],
)
def test_a_form_as_nai_sends_it_is_read(about, kind):
    image = b"\x89PNG\r\n--lin"
    sent = json.dumps(OBJECT | {"image": "image"}, ensure_ascii=False).encode()
    body = form(('name="image"; filename="image"', image), (about, sent))
    assert read(body, kind=kind) == OBJECT | {"image": image}
    assert read(body[:100], body[100:], kind=kind) == OBJECT | {"image": image}


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("----WebKitFormBoundaryABC", "multipart/form-data; boundary=----WebKitFormBoundaryABC"),
        ("a 'b'=?:/", "multipart/form-data; boundary=\"a 'b'=?:/\""),
        ("x" * 70, f"multipart/form-data; boundary={'x' * 70}"),
    ],
)
def test_valid_boundaries_are_read(line, kind):
    assert read(form(('name="request"', TEXT), line=line, end=f"--{line}--"), kind=kind) == OBJECT


MANY = [('name="x"; filename="x"', b"")] * 10_000
ONE = form(('name="request"', TEXT))


@pytest.mark.parametrize(
    ("kind", "body", "status", "expected"),
    [
        # empty, not JSON, or not an object
        ("application/json", b"", 400, "body: is empty"),
        (FORM, b"", 400, "body: is empty"),
        ("application/json", b"{", 400, "body: is not JSON"),
        ("application/json", b"input=cat", 400, "body: is not JSON"),
        ("application/json", TEXT + b"x", 400, "body: is not JSON"),
        ("application/json", b"\xff\xfe{}", 400, "body: is not JSON in UTF-8"),
        ("application/json", TEXT.decode().encode("utf-16"), 400, "body: is not JSON in UTF-8"),
        ("application/json", b'{"a": "\xe9"}', 400, "body: is not JSON in UTF-8"),
        ("application/json", b"[" * MIB, 400, "nested too deeply"),
        ("application/json", b'{"a":' * 100_000, 400, "nested too deeply"),
        ("application/json", b'{"a": %s}' % (b"9" * 5000), 400, "body: is not JSON"),
        ("application/json", b"[]", 400, "body: must be a JSON object"),
        ("application/json", b"1", 400, "body: must be a JSON object"),
        ("application/json", b"null", 400, "body: must be a JSON object"),
        ("application/json", b'"{}"', 400, "body: must be a JSON object"),
        # malformed forms, and forms without the part
        (FORM, form(('name="parameters"', TEXT)), 400, "request: the part that must hold the JSON is missing"),
        (FORM, form(('name="request"', b"{")), 400, "body: is not JSON"),
        (FORM, form(('name="request"', b"\xff")), 400, "body: is not JSON"),
        (FORM, TEXT, 400, "body: is not a multipart form"),
        (FORM, b"--line\r\n\r\n\r\n--line--", 400, "body: a part of the form has no name"),
        (FORM, form(('name=""', TEXT)), 400, "body: a part of the form has no name"),
        (FORM, form(('name="request"', TEXT), ('name="request"', TEXT)), 400, "request: the form has two parts of this name"),
        (FORM, form(('name="a b"', b""), ('name="request"', TEXT), ('name="a b"', b"")), 400, "a b: the form has two parts"),
        (FORM, ONE[:30], 400, "request: the part that must hold"),
        (FORM, form(*MANY), 413, "more than 64 parts"),
        (FORM, b"--line\r\n" * 10_000, 413, "more than 64 parts"),
        (FORM, b"--line\r\n" + b"a: b\r\n" * 10_000, 400, "body: is not a multipart form"),
        ("multipart/form-data", ONE, 400, "Content-Type: names no boundary"),
        ("multipart/form-data; boundary=", ONE, 400, "Content-Type: names no boundary"),
        ("multipart/form-data; boundary=" + "x" * 71, ONE, 400, "Content-Type: names no boundary"),
        ("multipart/form-data; boundary*=utf-8''line", ONE, 400, "Content-Type: names no boundary"),
        ("multipart/form-data; boundary=l\xefne", ONE, 400, "Content-Type: names no boundary"),
        ("multipart/form-data; boundary=other; boundary=line", form(*MANY), 400, "body: is not a multipart form"),
        # media types that are not read, among them those that a browser sends without a preflight
        ("text/plain", TEXT, 415, "Content-Type: 'text/plain' is not application/json"),
        ("application/x-www-form-urlencoded", TEXT, 415, "Content-Type: 'application/x-www-form-urlencoded'"),
        ("", TEXT, 415, "Content-Type: '' is not application/json"),
        ("application/msgpack", b"\x80", 415, "Content-Type: 'application/msgpack'"),
        ("text/plain; application/json", TEXT, 415, "Content-Type: 'text/plain'"),
        ("text/json, application/json", TEXT, 415, "Content-Type: 'text/json, application/json'"),
        ("application/jsonx", TEXT, 415, "Content-Type: 'application/jsonx'"),
        ("x" * 5000, TEXT, 415, "Content-Type: '" + "x" * 80 + "' is not"),
        ("caf\xe9", TEXT, 415, r"Content-Type: 'caf\xe9' is not"),
    ],
    ids=lambda value: ascii(value)[:40],
)  # fmt: skip
def test_other_bodies_are_refused_with_a_reason(kind, body, status, expected):
    actual, message = refuse(body, kind=kind)
    assert actual == status
    assert expected in message
    assert len(message) < 300


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "gzip, identity", "x\xe9"])
def test_compressed_bodies_are_refused_unread(encoding):
    request, pending = build_request(
        b"\x1f\x8b" + b"\0" * 1000, content_type="application/json", content_encoding=encoding
    )
    with pytest.raises(ApiError, match="Content-Encoding") as caught:
        run_read(request)
    assert caught.value.status == 415
    assert len(pending) == 1
    assert read(TEXT, content_encoding="identity") == OBJECT


def test_a_form_with_the_maximum_number_of_parts_is_read():
    empty = [(f'name="{index}"; filename="x"', b"") for index in range(PART_LIMIT)]
    assert read(form(*empty[1:], ('name="request"', TEXT)), kind=FORM) == OBJECT
    assert refuse(form(*empty, ('name="request"', TEXT)), kind=FORM)[0] == 413


def test_the_last_value_of_a_repeated_key_counts():
    assert parse_json_object(b'{"input": "a", "parameters": {"steps": 1, "steps": 2}, "input": "b"}') == {
        "input": "b",
        "parameters": {"steps": 2},
    }


def test_a_body_as_large_as_the_limit_is_read_and_one_byte_more_is_not():
    full = TEXT + b" " * (MIB - len(TEXT))
    assert read(full[:1000], full[1000:]) == OBJECT
    assert refuse(full[:1000], full[1000:], b" ") == (413, "the body is larger than 1 MiB")
    assert read(full, b" ", limit=2) == OBJECT


@pytest.mark.parametrize("length", ["1048577", "9" * 30, "00001048577"])
def test_a_declared_length_over_the_limit_is_refused_unread(length):
    request, pending = build_request(TEXT, content_type="application/json", content_length=length)
    with pytest.raises(ApiError, match="larger than 1 MiB"):
        run_read(request)
    assert len(pending) == 1


@pytest.mark.parametrize("length", ["", "-1", "1e9", "\xb2", "12, 1048577"])
def test_an_invalid_length_is_ignored(length):
    assert read(TEXT, content_length=length) == OBJECT


def test_an_endless_body_is_not_kept_in_memory():
    tracemalloc.start()
    assert refuse(*[b" " * 65_536] * 1000, ends=False)[0] == 413
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB


@pytest.mark.parametrize(
    ("memory", "options", "status"),
    [(3 * 65_536, {}, 429), (64 * MIB, {"limit": 0.125}, 413), (64 * MIB, {"ends": False, "timeout": 0.05}, 408)],
)  # fmt: skip
def test_a_body_that_is_refused_holds_no_memory_while_it_is_answered(monkeypatch, memory, options, status):
    reservations, reserve = [], Memory.reserve
    monkeypatch.setattr(
        Memory, "reserve", lambda self: reservations.append(reserve(self)) or reservations[-1]
    )
    assert refuse(*[b" " * 65_536] * 4, memory=memory, **options)[0] == status
    assert reservations[0].size == 0
    assert reservations[0].largest >= 2 * 65_536


def test_a_body_that_does_not_arrive_times_out():
    assert refuse(b"{", ends=False, timeout=0.01) == (408, "the body did not arrive within 0.01 seconds")
    assert refuse(ends=False, timeout=0.01)[0] == 408


def test_a_body_cut_off_by_a_disconnect_is_rejected():
    assert refuse(TEXT, None) == (400, "body: ended before it was complete")


def test_an_error_has_no_text_of_a_library():
    with pytest.raises(Rejected) as caught:
        parse_json_object(b'{"a": tru}')
    assert "Expecting" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
