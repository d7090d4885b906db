"""HTTP/1.1 over uvicorn's h11 protocol, with a deadline for headers and with errors in NAI's envelope.

uvicorn's httptools protocol is not used: it loses the body of requests that offer an upgrade to h2c, as curl_cffi's do
over plain HTTP.
"""

import asyncio
import logging
import sys
from http import HTTPStatus
from secrets import token_hex

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from server.errors import build_envelope

log = logging.getLogger("naiad.requests")
HEADERS_TIMEOUT = 30.0
"""Seconds within which the next request's headers, and the rest of the previous request's body, must have arrived."""


class Protocol(H11Protocol):
    """One connection.

    `uvicorn.Config(http=...)` takes any `asyncio.Protocol`, and most of this one uses the public interfaces of asyncio
    and h11. Three names of `H11Protocol` are undocumented; tests/server/api/test_protocol.py holds them to what they
    do over a socket:

    - `conn`, the connection's `h11.Connection`. Its state is the only sign that a request is being answered, and its
      trailing data the only sign that part of a next one has arrived.
    - `on_response_complete`, called after each response. The next request's deadline starts here; uvicorn's own
      keep-alive timeout ends with the first byte that arrives.
    - `send_400_response`, called when h11 refuses what arrived. uvicorn has no setting for this response.
    """

    _transport: asyncio.Transport
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._transport = transport
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._start_deadline()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, unless a response has begun, and close the connection.

        uvicorn calls this while it handles h11's exception, which carries the more exact status.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            status = getattr(sys.exc_info()[1], "error_status_hint", 400)
            self._send_error(status, "the headers are too large" if status == 431 else "this is not HTTP/1.1")
        self._transport.close()

    def _start_deadline(self) -> None:
        self._cancel_deadline()
        self._deadline = asyncio.get_running_loop().call_later(HEADERS_TIMEOUT, self._enforce_deadline)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _enforce_deadline(self) -> None:
        is_answering = self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY)
        if is_answering or self._transport.is_closing():
            return
        arrived, _ = self.conn.trailing_data
        # a connection on which nothing has arrived gets no 408: browsers open some ahead of use
        if arrived and self.conn.our_state is h11.IDLE:
            self._send_error(408, "the headers did not arrive in time")
        self._transport.close()

    def _send_error(self, status: int, message: str) -> None:
        """Write a response without h11, whose state must let the application answer until the socket is closed."""
        body = bytes(build_envelope(status, message).body)
        request_id = token_hex(8)
        log.info("%s refused %d %s", request_id, status, message)
        lines = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"x-request-id: {request_id}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        )
        self._transport.write("\r\n".join((*lines, "", "")).encode() + body)
