"""Failed logins: an address may have a few in a minute, because an access key can be guessed like a password."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from time import monotonic

from server.errors import Overloaded

MOST_FAILURES = 10
SECONDS = 60.0
MOST_ADDRESSES = 10_000


@dataclass(slots=True)
class Failures:
    """How many logins from an address have failed since a time."""

    since: float
    count: int = 0


class LoginAttempts:
    """The failed logins of the last minute, of at most `MOST_ADDRESSES` addresses. Used only on the event loop."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[str, Failures] = OrderedDict()  # the oldest first

    def check(self, address: str) -> None:
        """Raise `Overloaded` if too many logins from an address have failed."""
        failures = self._find(address)
        if failures.count >= MOST_FAILURES:
            wait = int(failures.since + SECONDS - self._clock()) + 1
            raise Overloaded(f"{failures.count} logins have failed", wait)

    def record_failure(self, address: str) -> None:
        """Count a login that has failed."""
        failures = self._find(address)
        failures.count += 1
        self._failures.setdefault(_name_network(address), failures)
        if len(self._failures) > MOST_ADDRESSES:
            self._failures.popitem(last=False)

    def _find(self, address: str) -> Failures:
        now = self._clock()
        while self._failures and next(iter(self._failures.values())).since <= now - SECONDS:
            self._failures.popitem(last=False)
        return self._failures.get(_name_network(address), Failures(now))


def _name_network(address: str) -> str:
    """Return an IPv4 address as it is, and of an IPv6 address the network of 64 bits, which one client may have."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or ip_network((int(parsed), 64), strict=False))
    return address
