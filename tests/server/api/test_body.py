"""Bodies: which are read, how far, and what is said of the others."""

import asyncio
import json
import tracemalloc

import pytest
from painter import URL
from starlette.requests import Request

from server.api.body import MIB, MOST_PARTS, parse_json_object, read_body
from server.errors import ApiError, Rejected

OBJECT = {"input": "猫", "parameters": {"width": 64}}
TEXT = json.dumps(OBJECT).encode()
FORM = "multipart/form-data; boundary=line"


def request(*chunks, **headers):
    """A request whose body comes in chunks; None stands for the client going, and after the last it waits."""
    coming = [
        {"type": "http.disconnect"}
        if chunk is None
        else {"type": "http.request", "body": chunk, "more_body": True}
        for chunk in chunks
    ]

    async def receive():
        if not coming:
            await asyncio.Event().wait()
        return coming.pop(0)

    raw = [(name.replace("_", "-").encode(), told.encode("latin-1")) for name, told in headers.items()]
    return Request({"type": "http", "method": "POST", "path": URL, "headers": raw}, receive), coming


def read(*chunks, ends=True, limit=1, patience=60.0, kind="application/json", **headers):
    """What is made of a body."""
    one, coming = request(*chunks, content_type=kind, **headers)
    if ends:
        coming.append({"type": "http.request", "body": b"", "more_body": False})
    return asyncio.run(read_body(one, limit, patience))


def refused(*chunks, **how):
    """What is said of a body that is not read."""
    with pytest.raises(ApiError) as caught:
        read(*chunks, **how)
    return caught.value.status, caught.value.message


def form(*parts, line="line", end="--line--\r\n"):
    """A multipart body of (disposition, content)."""
    said = [
        f"--{line}\r\nContent-Disposition: form-data; {about}\r\n\r\n".encode() + content
        for about, content in parts
    ]
    return b"".join(part + b"\r\n" for part in said) + end.encode()


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
def test_a_form_with_the_part_that_nais_page_sends_is_read(about, kind):
    body = form(
        ('name="image"; filename="image"', b"\x89PNG\r\n--lin"),
        (about, json.dumps(OBJECT, ensure_ascii=False).encode()),
    )
    assert read(body, kind=kind) == OBJECT
    assert read(body[:100], body[100:], kind=kind) == OBJECT


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("----WebKitFormBoundaryABC", "multipart/form-data; boundary=----WebKitFormBoundaryABC"),
        ("a 'b'=?:/", "multipart/form-data; boundary=\"a 'b'=?:/\""),
        ("x" * 70, f"multipart/form-data; boundary={'x' * 70}"),
    ],
)
def test_boundaries_are_taken_as_they_may_be(line, kind):
    assert read(form(('name="request"', TEXT), line=line, end=f"--{line}--"), kind=kind) == OBJECT


MANY = [('name="x"; filename="x"', b"")] * 10_000
ONE = form(('name="request"', TEXT))


@pytest.mark.parametrize(
    ("kind", "body", "status", "said"),
    [
        # nothing, or no JSON, or no object
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
        # forms without the part, or out of shape
        (FORM, form(('name="parameters"', TEXT)), 400, "request: is the part that must hold the JSON"),
        (FORM, form(('name="request"', b"{")), 400, "body: is not JSON"),
        (FORM, form(('name="request"', b"\xff")), 400, "body: is not JSON"),
        (FORM, TEXT, 400, "body: is not a multipart form"),
        (FORM, b"--line\r\n\r\n\r\n--line--", 400, "body: is not a multipart form"),
        (FORM, ONE[:30], 400, "request: is the part"),
        (FORM, form(*MANY), 413, "more than 64 parts"),
        (FORM, b"--line\r\n" * 10_000, 413, "more than 64 parts"),
        (FORM, b"--line\r\n" + b"a: b\r\n" * 10_000, 400, "body: is not a multipart form"),
        ("multipart/form-data", ONE, 400, "Content-Type: names no boundary"),
        ("multipart/form-data; boundary=", ONE, 400, "Content-Type: names no boundary"),
        ("multipart/form-data; boundary=" + "x" * 71, ONE, 400, "Content-Type: names no boundary"),
        ("multipart/form-data; boundary*=utf-8''line", ONE, 400, "Content-Type: names no boundary"),
        ("multipart/form-data; boundary=l\xefne", ONE, 400, "Content-Type: names no boundary"),
        ("multipart/form-data; boundary=other; boundary=line", form(*MANY), 400, "body: is not a multipart form"),
        # kinds that are not read, least of all those that a browser sends without asking
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
    ids=lambda told: ascii(told)[:40],
)  # fmt: skip
def test_what_is_not_read_is_refused_in_words(kind, body, status, said):
    answered, message = refused(body, kind=kind)
    assert answered == status
    assert said in message
    assert len(message) < 300


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "gzip, identity", "x\xe9"])
def test_packed_bodies_are_not_unpacked(encoding):
    one, coming = request(
        b"\x1f\x8b" + b"\0" * 1000, content_type="application/json", content_encoding=encoding
    )
    with pytest.raises(ApiError, match="Content-Encoding") as caught:
        asyncio.run(read_body(one, 1, 60))
    assert caught.value.status == 415
    assert len(coming) == 1
    assert read(TEXT, content_encoding="identity") == OBJECT


def test_as_many_parts_as_are_allowed_are_read():
    empty = [('name="x"; filename="x"', b"")] * (MOST_PARTS - 1)
    assert read(form(*empty, ('name="request"', TEXT)), kind=FORM) == OBJECT
    assert refused(form(*empty, *empty[:1], ('name="request"', TEXT)), kind=FORM)[0] == 413


def test_of_a_key_given_twice_the_last_value_counts():
    assert parse_json_object(b'{"input": "a", "parameters": {"steps": 1, "steps": 2}, "input": "b"}') == {
        "input": "b",
        "parameters": {"steps": 2},
    }


def test_a_body_as_large_as_the_limit_is_read_and_one_byte_more_is_not():
    full = TEXT + b" " * (MIB - len(TEXT))
    assert read(full[:1000], full[1000:]) == OBJECT
    assert refused(full[:1000], full[1000:], b" ") == (413, "the body is larger than 1 MiB")
    assert read(full, b" ", limit=2) == OBJECT


@pytest.mark.parametrize("length", ["1048577", "9" * 30, "00001048577"])
def test_a_length_over_the_limit_is_refused_before_anything_is_read(length):
    one, coming = request(TEXT, content_type="application/json", content_length=length)
    with pytest.raises(ApiError, match="larger than 1 MiB"):
        asyncio.run(read_body(one, 1, 60))
    assert len(coming) == 1


@pytest.mark.parametrize("length", ["", "-1", "1e9", "\xb2", "12, 1048577"])
def test_a_length_that_is_none_is_not_believed(length):
    assert read(TEXT, content_length=length) == OBJECT


def test_what_comes_without_end_is_not_kept():
    tracemalloc.start()
    assert refused(*[b" " * 65_536] * 1000, ends=False)[0] == 413
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB


def test_a_body_that_does_not_come_is_not_waited_for():
    assert refused(b"{", ends=False, patience=0.01) == (408, "the body did not arrive within 0.01 seconds")
    assert refused(ends=False, patience=0.01)[0] == 408


def test_a_client_that_goes_in_the_middle_is_told_from_one_that_has_finished():
    assert refused(TEXT, None) == (400, "body: ended before it was complete")


def test_no_library_speaks_in_a_refusal():
    with pytest.raises(Rejected) as caught:
        parse_json_object(b'{"a": tru}')
    assert "Expecting" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
