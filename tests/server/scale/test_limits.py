"""The ledger of the accounts' use on all replicas, without Ray's processes."""

from importlib.util import find_spec
from warnings import catch_warnings

import pytest

from server.api.accounts import Account
from server.errors import LimitReached, Overloaded, Unavailable

if find_spec("ray") is None:
    pytest.skip("the extra `scale` is not installed", allow_module_level=True)

with catch_warnings(action="ignore"):  # of Ray's own code
    from ray.exceptions import RayError

    from server.scale import limits
    from server.scale.limits import LEASE, Ledger, SharedLimits

pytestmark = pytest.mark.scale

ONE = Account(name="one", token="token-of-one", concurrency=1)
FEW = Account(name="few", token="token-of-few", limit=3)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ledger(clock, monkeypatch):
    """A ledger that `SharedLimits` calls directly instead of through Ray."""
    ledger = Ledger(clock)

    class Handle:
        def __getattr__(self, name):
            method = getattr(ledger, name)
            return type("Method", (), {"remote": staticmethod(method)})

    monkeypatch.setattr(limits.serve, "get_deployment_actor", lambda _name: Handle())
    monkeypatch.setattr(limits.ray, "get", lambda answer, timeout: answer)
    return ledger


@pytest.mark.usefixtures("ledger")
def test_requests_at_a_time_are_counted_over_all_replicas():
    first, second = SharedLimits("a"), SharedLimits("b")
    use = first.begin(ONE, 1)
    with pytest.raises(Overloaded, match="1 request at a time"):
        second.begin(ONE, 1)
    with pytest.raises(Overloaded):
        second.check(ONE)
    first.end(use, refund=False)
    assert second.begin(ONE, 1) is not None


@pytest.mark.usefixtures("ledger")
def test_images_of_the_day_are_counted_over_all_replicas():
    first, second = SharedLimits("a"), SharedLimits("b")
    first.end(first.begin(FEW, 2), refund=False)
    assert second.count_images("few") == 2
    with pytest.raises(LimitReached, match="1 of 3 are left"):
        second.begin(FEW, 2)
    second.end(second.begin(FEW, 1), refund=True)
    assert first.count_images("few") == 2


def test_the_requests_of_a_lost_replica_end(ledger, clock):
    lost, other = SharedLimits("lost"), SharedLimits("other")
    use = lost.begin(ONE, 1)
    clock.now = LEASE
    with pytest.raises(Overloaded):
        other.begin(ONE, 1)
    clock.now = LEASE + 1
    taken = other.begin(ONE, 1)
    assert ledger.count_images("one") == 1  # those of the lost one are given back
    lost.end(use, refund=False)  # it was only slow
    with pytest.raises(Overloaded):
        lost.begin(ONE, 1)
    other.end(taken, refund=False)
    assert lost.begin(ONE, 1) is not None


def test_a_replica_that_renews_keeps_its_requests(ledger, clock):
    mine, other = SharedLimits("mine"), SharedLimits("other")
    mine.begin(ONE, 1)
    for _ in range(3):
        clock.now += LEASE
        mine.renew()
    with pytest.raises(Overloaded):
        other.begin(ONE, 1)
    assert ledger.count_images("one") == 1


@pytest.mark.usefixtures("ledger")
def test_without_an_account_nothing_is_counted(monkeypatch):
    monkeypatch.setattr(limits.serve, "get_deployment_actor", None)
    mine = SharedLimits("a")
    mine.check(None)
    assert mine.begin(None, 1) is None
    mine.end(None, refund=True)
    assert 1 <= mine.seconds_left() <= 86_400


@pytest.mark.parametrize("error", [RayError, ValueError])
def test_without_the_ledger_accounts_are_refused(monkeypatch, error):
    def fail(_name):
        raise error

    monkeypatch.setattr(limits.serve, "get_deployment_actor", fail)
    mine = SharedLimits("a")
    with pytest.raises(Unavailable, match="cannot be read now"):
        mine.begin(ONE, 1)
    mine.renew()
