"""The limits of accounts over all replicas: one ledger in a process of its own, and how replicas ask it."""

from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError

from server.api.accounts import Account
from server.api.quota import Quotas, Use
from server.errors import ApiError, Unavailable

NAME = "limits"
LEASE = 60.0
"""Seconds after which a replica that has not renewed is taken to have ended, and its requests with it."""
ANSWER_SECONDS = 5.0


class Ledger:
    """What accounts have used on all replicas. Errors are returned, because Ray raises others in their place."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._quotas, self._clock = Quotas(), clock
        self._running: dict[str, list[Use]] = {}
        self._renewed: dict[str, float] = {}

    def renew(self, replica: str) -> None:
        """Note that a replica runs."""
        self._renewed[replica] = self._clock()

    def check(self, account: Account, images: int, free_in: float | None) -> ApiError | None:
        """Return what `begin` would return as an error now."""
        self._forget_lost()
        try:
            self._quotas.check(account, images, free_in)
        except ApiError as error:
            return error
        return None

    def begin(
        self, replica: str, account: Account, images: int, free_in: float | None
    ) -> Use | ApiError | None:
        """Count a request of a replica as `Quotas.begin` does."""
        self._forget_lost()
        self.renew(replica)
        try:
            use = self._quotas.begin(account, images, free_in)
        except ApiError as error:
            return error
        if use is not None:
            self._running.setdefault(replica, []).append(use)
        return use

    def end(self, replica: str, use: Use, refund: bool) -> None:
        """Count a request as finished, unless its replica was taken to have ended."""
        running = self._running.get(replica, [])
        if use in running:
            running.remove(use)
            self._quotas.end(use, refund=refund)

    def count_images(self, name: str) -> int:
        """Return how many images an account has used today."""
        return self._quotas.count_images(name)

    def _forget_lost(self) -> None:
        lost = [name for name, renewed in self._renewed.items() if self._clock() - renewed > LEASE]
        for name in lost:
            del self._renewed[name]
            for use in self._running.pop(name, []):
                self._quotas.end(use, refund=True)


class SharedLimits:
    """The limits of accounts as one replica asks the ledger for them; without it, accounts are refused with 503."""

    def __init__(self, replica: str) -> None:
        self._replica = replica

    def renew(self) -> None:
        """Tell the ledger that this replica runs."""
        self._tell("renew", self._replica)

    def count_images(self, name: str) -> int:
        """Return how many images an account has used today."""
        return self._ask("count_images", name)

    def seconds_left(self) -> int:
        """Return the seconds until the next day begins, at least 1."""
        return Quotas().seconds_left()

    def check(self, account: Account | None, images: int = 1, free_in: float | None = None) -> None:
        """Raise what `begin` would raise now."""
        if account is not None and (error := self._ask("check", account, images, free_in)) is not None:
            raise error

    def begin(self, account: Account | None, images: int, free_in: float | None = None) -> Use | None:
        """Count a request as running until `end`, or raise what `Quotas.begin` does."""
        if account is None:
            return None
        answer = self._ask("begin", self._replica, account, images, free_in)
        if isinstance(answer, ApiError):
            raise answer
        return answer

    def end(self, use: Use | None, *, refund: bool) -> None:
        """Count a request as finished. Does not wait for the ledger."""
        if use is not None:
            self._tell("end", self._replica, use, refund)

    def _ask(self, method: str, *arguments: object) -> Any:  # noqa: ANN401  # as each method of the ledger
        try:
            return ray.get(self._call(method, *arguments), timeout=ANSWER_SECONDS)
        except (RayError, ValueError):
            raise Unavailable("the limits of accounts cannot be read now; try again shortly") from None

    def _tell(self, method: str, *arguments: object) -> None:
        with suppress(RayError, ValueError):  # a new ledger knows nothing of what has ended
            self._call(method, *arguments)

    def _call(self, method: str, *arguments: object) -> object:
        """Call the ledger, which Ray may have replaced since the last call. ValueError: it is being replaced."""
        return getattr(serve.get_deployment_actor(NAME), method).remote(*arguments)
