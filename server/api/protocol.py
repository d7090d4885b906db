"""HTTP/1.1 as uvicorn speaks it by h11, with a deadline for headers and refusals in NAI's envelope.

h11, because httptools loses the body of requests that offer to upgrade to h2c, as curl_cffi's do over plain HTTP.
"""

import asyncio
import logging
import sys
from http import HTTPStatus
from secrets import token_hex
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from server.errors import envelope

log = logging.getLogger("naiad.requests")
PATIENCE = 30.0
"""Seconds within which the headers of the next request must have arrived, and what is left of the last one's body."""


class Protocol(H11Protocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Start the clock for the first request."""
        super().connection_made(transport)
        self._start_clock()

    def on_response_complete(self) -> None:
        """Start it again for the next; uvicorn's own waits only as long as nothing at all arrives."""
        super().on_response_complete()
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def _start_clock(self) -> None:
        self._stop_clock()
        self._deadline = self.loop.call_later(PATIENCE, self._hang_up_unless_asked)

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; called while the reason is being handled, which knows the better status."""
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        asked = cast("RequestResponseCycle | None", self.cycle)
        if asked is not None:
            asked.disconnected = True
            asked.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(status, "the headers are too large" if status == 431 else "this is not HTTP/1.1")
        self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        body = bytes(envelope(status, message).body)
        identity = token_hex(8)
        log.info("%s refused %d %s", identity, status, message)
        headers = [
            ("x-request-id", identity),
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        response = h11.Response(
            status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()
        )
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _hang_up_unless_asked(self) -> None:
        asked = cast("RequestResponseCycle | None", self.cycle)
        if self.transport.is_closing() or (asked is not None and not asked.response_complete):
            return
        arrived, _ = self.conn.trailing_data
        if arrived and self.conn.our_state is h11.IDLE:  # browsers open connections ahead, and get no answer
            self._refuse(408, "the headers did not arrive in time")
        self.transport.close()
