"""How long a request may wait for its job: the server's limit, or what the client prefers if that is less.

Clients say it by `Prefer: wait=30` (RFC 7240, section 4.3): seconds since the request was received.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from server.api.state import get_app_state
from server.errors import Unavailable

WAIT = re.compile(r"[,;\s]wait\s*=\s*\"?([0-9]{1,9})\"?\s*[,;]", re.IGNORECASE)
"""A preference in a list, around which there is a comma at either side."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """Until when a request waits.

    Attributes:
        at: by the event loop's clock.
        seconds: since the request arrived.
        source: who set it, for the error's text.
    """

    at: float
    seconds: float
    source: str

    def apply(self, result: asyncio.Future[Any], expect_room: Callable[[], float | None]) -> None:
        """Fail a future if it is not done by then.

        Args:
            expect_room: returns in how many seconds another attempt is worth it; None if that is not known.
        """
        timer = asyncio.get_running_loop().call_at(self.at, self._fail, result, expect_room)
        result.add_done_callback(lambda _: timer.cancel())

    def _fail(self, result: asyncio.Future[Any], expect_room: Callable[[], float | None]) -> None:
        if not result.done():
            reason = f"not finished within {self.seconds:g} seconds ({self.source})"
            advice = "try again later, or with fewer steps, images or pixels"
            result.set_exception(Unavailable(f"{reason}; {advice}", expect_room()))


def read_deadline(request: Request) -> Deadline | None:
    """Return the deadline of a request; None if it has none."""
    limit, arrived = get_app_state(request).deadline, request.scope["arrived"]
    preferred = WAIT.search(f",{','.join(request.headers.getlist('prefer'))},")
    if preferred is not None and (not limit or int(preferred[1]) < limit):
        seconds = int(preferred[1])
        return Deadline(arrived + seconds, seconds, f"Prefer: wait={seconds}")
    return Deadline(arrived + limit, limit, "setting engine.deadline") if limit else None
