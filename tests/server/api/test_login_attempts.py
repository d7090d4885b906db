"""The number of failed logins from an address."""

import pytest

from server.api import login_attempts
from server.api.login_attempts import MOST_FAILURES, LoginAttempts
from server.errors import Overloaded


class Clock:
    """A clock that a test moves."""

    seconds = 100.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def attempts(clock):
    return LoginAttempts(clock)


def fail(attempts, address, times=MOST_FAILURES):
    for _ in range(times):
        attempts.check(address)
        attempts.record_failure(address)


def test_an_address_is_refused_until_a_minute_after_its_first_failure(attempts, clock):
    fail(attempts, "192.0.2.1")
    clock.seconds += 20.5
    with pytest.raises(Overloaded, match="10 logins have failed; try again in 40 seconds") as caught:
        attempts.check("192.0.2.1")
    assert caught.value.headers["Retry-After"] == "40"
    attempts.check("192.0.2.2")
    clock.seconds += 39.5
    fail(attempts, "192.0.2.1")


def test_fewer_failures_are_allowed_and_forgotten(attempts, clock):
    for _ in range(5):
        fail(attempts, "192.0.2.1", MOST_FAILURES - 1)
        attempts.check("192.0.2.1")
        clock.seconds += 60


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("testclient", "testclient", True),
        ("", "192.0.2.1", False),
    ],
)
def test_addresses_of_one_network_count_together(attempts, one, other, is_same):
    fail(attempts, one)
    if is_same:
        with pytest.raises(Overloaded):
            attempts.check(other)
    else:
        attempts.check(other)


def test_the_number_of_addresses_is_bounded(attempts, monkeypatch):
    monkeypatch.setattr(login_attempts, "MOST_ADDRESSES", 3)
    for number in range(5):
        fail(attempts, f"192.0.2.{number}")
    attempts.check("192.0.2.1")
    with pytest.raises(Overloaded):
        attempts.check("192.0.2.4")
