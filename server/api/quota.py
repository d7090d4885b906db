"""What accounts have used of their limits: requests at a time, and images of the day, which begins at 00:00 UTC.

A request without an account (None) has no limits and is not counted. The counts are kept in memory; a restart sets them
to 0.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from threading import Lock
from typing import Protocol

from server.api.accounts import Account
from server.errors import LimitReached, Overloaded


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Use:
    """One request's share of its account's limits."""

    name: str
    images: int
    day: date


class AccountLimits(Protocol):
    """The limits of accounts, kept by this process (`Quotas`) or by one for all replicas (scale/limits.py)."""

    def count_images(self, name: str, /) -> int: ...
    def seconds_left(self) -> int: ...
    def check(self, account: Account | None, images: int = 1, free_in: float | None = None) -> None: ...
    def begin(self, account: Account | None, images: int, free_in: float | None = None) -> Use | None: ...
    def end(self, use: Use | None, *, refund: bool) -> None: ...


class Quotas:
    """The use of all accounts, by name. Safe to call from any thread, because jobs end on the device thread.

    Args:
        now: returns the current time in UTC.
    """

    def __init__(self, now: Callable[[], datetime] = utc_now) -> None:
        self._now = now
        self._lock = Lock()
        self._day = now().date()
        self._images: Counter[str] = Counter()  # of the day
        self._running: Counter[str] = Counter()

    def count_images(self, name: str) -> int:
        """Return how many images an account has used today."""
        with self._lock:
            self._start_day()
            return self._images[name]

    def seconds_left(self) -> int:
        """Return the seconds until the next day begins, at least 1."""
        now = self._now()
        midnight = datetime.combine(now.date() + timedelta(days=1), time.min, now.tzinfo)
        return max(1, int((midnight - now).total_seconds()))

    def check(self, account: Account | None, images: int = 1, free_in: float | None = None) -> None:
        """Raise what `begin` would raise now."""
        if account is not None:
            with self._lock:
                self._check(account, images, free_in)

    def begin(self, account: Account | None, images: int, free_in: float | None = None) -> Use | None:
        """Count a request as running until `end`, and its images as used today.

        Args:
            free_in: seconds in which one of the account's requests is expected to end, for the error's text.

        Raises:
            Overloaded: the account has reached its number of requests at a time.
            LimitReached: fewer images are left today.
        """
        if account is None:
            return None
        with self._lock:
            self._check(account, images, free_in)
            self._running[account.name] += 1
            self._images[account.name] += images
            return Use(account.name, images, self._day)

    def end(self, use: Use | None, *, refund: bool) -> None:
        """Count a request as finished. With `refund` its images do not count as used."""
        if use is None:
            return
        with self._lock:
            self._running[use.name] -= 1
            self._start_day()
            if refund and use.day == self._day:
                self._images[use.name] -= use.images

    def _check(self, account: Account, images: int, free_in: float | None) -> None:
        self._start_day()
        most, running = account.concurrency, self._running[account.name]
        if most is not None and running >= most:  # clients match the first four words
            allowed = "1 request at a time" if most == 1 else f"{most} requests at a time"
            raise Overloaded(f"Concurrent generation is locked: this account may have {allowed}", free_in)
        if account.limit is not None and self._images[account.name] + images > account.limit:
            raise LimitReached(self._describe_limit(account.limit, self._images[account.name], images))

    def _describe_limit(self, limit: int, used: int, images: int) -> str:
        minutes = -(-self.seconds_left() // 60)
        left = limit - used
        reason = f"{images} images were asked for, {left} of {limit} are left today" if left > 0 else ""
        reason = reason or f"all {limit} images of today are used"
        return f"Not enough Anlas: {reason}; a new day begins at 00:00 UTC, in {minutes // 60} h {minutes % 60} min"

    def _start_day(self) -> None:
        """Forget the images of another day."""
        today = self._now().date()
        if today != self._day:
            self._day = today
            self._images.clear()
