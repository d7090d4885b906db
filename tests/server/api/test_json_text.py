"""Bodies parsed as `json` parses them, whatever their long strings hold, and the bounds on others."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.json_text import LARGEST_REST, LONG, MIB, MOST_ELEMENTS, MOST_ESCAPES, parse_json_object
from server.errors import ApiError

PIECES = [
    "A",
    '"',
    "\\",
    "/",
    "\n",
    "\x7f",
    "\xe9",
    "猫",
    "\U0001f600",
    "\ud83d",
    "\u2028",
    " ",
    '\\"',
    '", "',
]
LONG_TEXTS = st.builds(
    lambda head, piece, count, tail: head + piece * count + tail,
    st.text(max_size=3), st.sampled_from(PIECES), st.integers(LONG - 4, LONG + 4), st.text(max_size=3),
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | LONG_TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | LONG_TEXTS, inner, max_size=3)
    ),
    max_leaves=6,
)


def parse_with_json(body):
    try:
        value = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def parse(body):
    try:
        return parse_json_object(body)
    except ApiError:
        return None


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.data())
def test_an_object_is_parsed_as_json_parses_it_also_if_it_is_damaged(value, data):
    body = bytearray(json.dumps(value).encode())
    assert parse_json_object(bytes(body)) == value
    assert parse_json_object(b"\xef\xbb\xbf" + body) == value
    index = data.draw(st.integers(0, len(body) - 1))
    body[index] = data.draw(st.sampled_from(b'"\\,[]{}: \n\0A\xff'))
    assert parse(body) == parse_with_json(body)


@pytest.mark.parametrize("text", ["é" * 5000, "猫" * 5000, "\U0001f600" * 5000, "a\u2028" * 5000])
def test_long_texts_that_are_not_ascii_are_kept(text):
    for each in (text, f'{text}"', f"\\{text}\\"):
        assert parse_json_object(json.dumps({"a": [each]}, ensure_ascii=False).encode()) == {"a": [each]}


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"a":[%s1]}' % (b"[]," * (MOST_ELEMENTS // 2)), 400, "more than 100000 elements"),
        (b'{"a":[%s1]}' % (b"[]," * (20 * MIB // 3)), 413, "more than 4 MiB besides its long texts"),
        (b'{"a":[%s1]}' % (b'"",' * (2 * MOST_ELEMENTS)), 400, "more than 100000 texts"),
        (b'{"a":"%s"}' % (b'\\"' * (2 * MOST_ELEMENTS + 1)), 400, "more than 100000 texts"),
        (b'"' * (20 * MIB), 400, "more than 100000 texts"),
        (b'{"a":%s}' % (b" " * LARGEST_REST), 413, "more than 4 MiB"),
        (b'{"a":%s}' % (b"9" * LARGEST_REST), 413, "more than 4 MiB"),
        (b'{"a":"%s' % (b"A" * 20 * MIB), 413, "more than 4 MiB"),
        (b'{"a":"%s"}' % (b"\\/" * (MOST_ESCAPES + 1)), 413, "more than 2000000 escapes"),
        (b'{"a":"%s"}' % ("é".encode() * MIB), 413, "a text of more than 1 MiB"),
        (b"[" * MIB, 400, "nested too deeply"),
        (b'{"a":' * 1000, 400, "nested too deeply"),
        (b'{"a":"%s","b":%s1%s}' % (b"A" * 5000, b"[" * 900, b"]" * 900), 400, "nested too deeply"),
        (b'{"a":"%s\n"}' % (b"A" * 5000), 400, "is not JSON"),
    ],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_what_is_costly_is_refused_at_once(body, status, message):
    started = time.process_time()
    with pytest.raises(ApiError, match=message) as caught:
        parse_json_object(body)
    assert caught.value.status == status
    assert time.process_time() - started < 5  # 0.2 on an idle machine; unbounded they take 10


def test_an_image_is_not_limited_by_its_escapes_or_commas():
    image = "A" * 76 + "\r\n"
    body = json.dumps({"image": "data:image/png;base64," + image * 100_000, "php": "\\/," * 200_000})
    assert parse_json_object(body.encode()) == json.loads(body)
