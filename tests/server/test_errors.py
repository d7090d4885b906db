"""The errors, their statuses, and values in their messages."""

import pytest

from server import errors
from server.errors import ApiError, Overloaded, shorten


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (True, "true"), (False, "false"), (1, "1"), (1.5, "1.5"), (float("nan"), "nan"),
        (float("inf"), "inf"), ("a", "'a'"), ("é\0\ud800", r"'\xe9\x00\ud800'"), ({"a": 1}, "an object"),
        ([1], "an array"), ("x" * 78, "'" + "x" * 78 + "'"), ("x" * 79, "'" + "x" * 76 + "..."),
        ("\U0001f600" * 10**6, "'" + r"\U0001f600" * 7 + r"\U0001..."), (10**100, "1" + "0" * 76 + "..."),
    ],
    ids=lambda part: ascii(part)[:30],
)  # fmt: skip
def test_values_in_messages_are_shortened(value, text):
    assert shorten(value) == text


@pytest.mark.parametrize(
    ("seconds", "header", "when"),
    [
        (None, "5", "shortly"), (0.0, "1", "in 1 second"), (0.2, "1", "in 1 second"), (1.1, "2", "in 2 seconds"),
        (600.0, "600", "in 600 seconds"), (1e9, "600", "in 600 seconds"), (float("inf"), "600", "in 600 seconds"),
    ],
)  # fmt: skip
def test_when_to_try_again_is_a_number_of_seconds_within_bounds(seconds, header, when):
    error = Overloaded("full", seconds)
    assert error.headers == {"Retry-After": header}
    assert error.message == f"full; try again {when}"


def test_every_error_has_its_status_and_is_in_the_docstring():
    assert {kind.__name__: kind.status for kind in ApiError.__subclasses__()} == {
        "Rejected": 400, "UnknownKeys": 400, "Unauthorized": 401, "LimitReached": 402, "Forbidden": 403, "NotFound": 404, "MethodNotAllowed": 405, "BodyTimeout": 408, "Conflict": 409, "BodyTooLarge": 413,
        "Unsupported": 415, "Overloaded": 429, "HeadersTooLarge": 431, "Disconnected": 499, "Failed": 500, "Unavailable": 503,
    }  # fmt: skip
    assert all(
        f"{kind.__name__:<16} {kind.status}" in (errors.__doc__ or "") for kind in ApiError.__subclasses__()
    )
