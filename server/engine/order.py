"""The order in which jobs get the device: shortest remaining work first, with a fair share for each client.

A job's place follows from the work that its client was given lately, and has to get done before and with it, shorter
jobs first. So a short job passes long ones, a client with many jobs delays others no more than with one, and of equal
jobs the one that has begun is finished first. Waiting improves the place, so that every job's turn comes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

AGING = 0.5
"""Seconds of work that a second of waiting counts for. Below 1 a job that runs stays ahead of one that is as long."""
HALF_LIFE, LEAST = 60.0, 0.01
"""Seconds after which half of the work for a client counts, and the work below which it is forgotten."""
PRIORITY_UNIT = 10
"""Priority that doubles a client's share."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job's claim to the device.

    Attributes:
        number: in the order in which jobs were queued.
        client: whose job it is.
        remaining: seconds that the device still needs for it.
        waited: seconds in which the job existed and was not worked on.
        priority: of the client.
        served: seconds of the client's finished jobs that count, see `Shares`.
    """

    number: int
    client: str
    remaining: float
    waited: float
    priority: int = 0
    served: float = 0.0


class Shares:
    """The seconds that the finished jobs of each client took; of those a minute ago half count."""

    def __init__(self) -> None:
        self._served: dict[str, tuple[float, float]] = {}

    def add(self, client: str, seconds: float, now: float) -> None:
        """Count a job that ends now."""
        self._served[client] = self.get(client, now) + seconds, now
        self._served = {name: entry for name, entry in self._served.items() if self.get(name, now) >= LEAST}

    def get(self, client: str, now: float) -> float:
        """Return what counts of a client's seconds."""
        seconds, then = self._served.get(client, (0.0, now))
        return seconds * 0.5 ** ((now - then) / HALF_LIFE)


def rank_claims(claims: Iterable[Claim]) -> list[Claim]:
    """Return the claims in the order in which they should be served."""
    ranks: list[tuple[float, int, Claim]] = []
    by_client = sorted(claims, key=lambda claim: (claim.client, claim.remaining, claim.number))
    for _, group in groupby(by_client, key=lambda claim: claim.client):
        work = 0.0
        for claim in group:
            work += claim.remaining
            share = 2 ** (claim.priority / PRIORITY_UNIT)
            ranks.append(((claim.served + work) / share - AGING * claim.waited, claim.number, claim))
    return [claim for *_, claim in sorted(ranks, key=lambda rank: rank[:2])]
