"""HTTP/1.1 over uvicorn's h11 protocol, with bounds on what a connection may cost and with errors in NAI's envelope.

An upgrade (to h2c, to WebSocket) is never accepted: the request is answered as if none had been offered. uvicorn's
httptools protocol is not used: it loses the body of requests that offer an upgrade to h2c, as curl_cffi's do over plain
HTTP.
"""

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from secrets import token_hex
from typing import Any, TypeAlias, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from server.api.error_responses import ErrorResponse
from server.api.peers import Peers
from server.api.transport import ProbingTransport

log = logging.getLogger("naiad.requests")
HEADERS_TIMEOUT = 30.0
"""Seconds within which a request's headers, and the rest of an unread body, must have arrived."""
IDLE_TIMEOUT = 90.0
"""Seconds for which a connection is kept without a request; pollers and connection pools rest for up to 75."""
WRITE_TIMEOUT = 60.0
"""Seconds within which a client must take a piece of a response (256 KiB, see `exchange`)."""
LINGER = 2.0
"""Seconds for which what a refused client still sends is read and dropped."""
PROBE_INTERVAL = 0.1
"""Seconds between looks at whether a client that has shut down its sending side still reads."""
LINE_LIMIT = 2**17
"""Line ends in a request: 65,536 chunks, whose cost h11 bears on the event loop, at 10 microseconds each."""
READ_SIZE = 16 * 1024
"""Bytes that are read at once: as 2,700 chunks of one byte they take 40 milliseconds."""
CHUNKS_READ_SIZE = 4 * 1024
"""Bytes that are read at once after a read with a line end every 32 bytes or more often."""
_READ_BUFFER = memoryview(bytearray(READ_SIZE))
OnRefusal: TypeAlias = Callable[[int], None]


def ignore_refusal(_: int) -> None:
    """Do nothing."""


class Protocol(H11Protocol, asyncio.BufferedProtocol):
    """One connection.

    `uvicorn.Config(http=...)` takes any `asyncio.Protocol`, and most of this one uses the public interfaces of asyncio
    and h11. Four names of `H11Protocol` are undocumented; tests/server/api/test_protocol.py holds them to what they
    do over a socket:

    - `conn`, the connection's `h11.Connection`. Its states are the only sign that a request has arrived or is being
      answered, and its trailing data the only sign that part of a next one has arrived.
    - `on_response_complete`, called after each response. The next request's deadline starts here; uvicorn's own
      keep-alive timeout ends with the first byte that arrives.
    - `_should_upgrade`, called for each request. uvicorn would log two warnings for each one that offers an upgrade.
    - `send_400_response`, called when h11 refuses what arrived. uvicorn has no setting for this response.

    Args:
        peers: all open connections; without them their number is not limited.
        on_refusal: called with the status of each request that is answered here, without the application.
    """

    _transport: ProbingTransport
    _deadline: asyncio.TimerHandle | None = None
    _write_deadline: asyncio.TimerHandle | None = None
    _is_expecting = False  # whether part of a request has arrived
    _is_half_closed = False
    _is_refused = False
    _lines = 0
    _read_size = READ_SIZE

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        peers: Peers | None = None,
        on_refusal: OnRefusal = ignore_refusal,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._peers = Peers(sys.maxsize) if peers is None else peers
        self._on_refusal = on_refusal

    @property
    def is_answering(self) -> bool:
        """Whether a complete request has arrived and its response has not been written."""
        return self._has_begun and not self._is_refused and self.conn.their_state is not h11.SEND_BODY

    @property
    def _has_begun(self) -> bool:
        """Whether the application handles a request, whose body may still be arriving."""
        return self.conn.our_state in (h11.SEND_RESPONSE, h11.SEND_BODY)

    @property
    def _is_reading_plain_body(self) -> bool:
        """Whether what arrives now is a body that is not sent in chunks, whose line ends cost nothing."""
        if self.conn.their_state is not h11.SEND_BODY:
            return False
        return all(name != b"transfer-encoding" for name, _ in self.scope["headers"])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = ProbingTransport(cast("asyncio.Transport", transport))
        super().connection_made(cast("asyncio.Transport", self._transport))
        if self._peers.add(self):
            self._start_deadline(IDLE_TIMEOUT)
        else:
            self._send_error(503, "too many connections; try again shortly")
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers.remove(self)
        self._cancel_deadline()
        self._cancel_write_deadline()
        super().connection_lost(exc)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer to read into; one serves all connections, because it is copied at once."""
        return _READ_BUFFER[: self._read_size]

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_READ_BUFFER[:nbytes]))

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        lines = 0 if self._is_reading_plain_body else data.count(b"\r\n")
        self._lines += lines
        self._read_size = CHUNKS_READ_SIZE if 32 * lines > len(data) else READ_SIZE
        if self._lines > LINE_LIMIT:
            self._refuse(413, "the body arrived in too many chunks")
            return
        super().data_received(data)
        if not self._is_expecting and self.conn.our_state is h11.IDLE:
            self._is_expecting = True
            self._start_deadline(HEADERS_TIMEOUT)

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride] -- as asyncio allows
        """Keep a connection whose client has sent a complete request and may still read the response.

        Over TLS it cannot be kept: asyncio closes it in both directions.
        """
        if not self._transport.can_write_eof():
            return False
        if self.is_answering and not self._is_half_closed:
            self._is_half_closed = True
            if self.conn.our_state is h11.SEND_RESPONSE:
                self._transport.probe()
            else:
                self._transport.probe_body()
            self._check_probe()
        return self.is_answering

    def on_response_complete(self) -> None:
        self._lines = 0
        self._peers.refresh(self)
        super().on_response_complete()
        if self._is_half_closed and not self._has_begun:
            self._transport.close()
            return
        self._is_expecting = bool(self.conn.trailing_data[0]) or self.conn.their_state is h11.SEND_BODY
        self._start_deadline(HEADERS_TIMEOUT if self._is_expecting else IDLE_TIMEOUT)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._cancel_write_deadline()
        loop = asyncio.get_running_loop()
        self._write_deadline = loop.call_later(WRITE_TIMEOUT, self._transport.abort)

    def resume_writing(self) -> None:
        self._cancel_write_deadline()
        super().resume_writing()

    def shutdown(self) -> None:
        with suppress(h11.LocalProtocolError):  # an error has been written without h11
            super().shutdown()

    def _should_upgrade(self) -> bool:
        return False

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, unless a response has begun, and close the connection.

        uvicorn calls this while it handles h11's exception, which carries the more exact status.
        """
        status = getattr(sys.exc_info()[1], "error_status_hint", 400)
        self._refuse(status, "the headers are too large" if status == 431 else "this is not HTTP/1.1")

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    def _check_probe(self) -> None:
        """Close a half-closed connection as soon as the client turns out to have closed it altogether."""
        if self._transport.is_closing():
            return
        if self._transport.has_failed():
            self._transport.abort()
        else:
            asyncio.get_running_loop().call_later(PROBE_INTERVAL, self._check_probe)

    def _start_deadline(self, seconds: float) -> None:
        self._cancel_deadline()
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._enforce_deadline)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()

    def _cancel_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()

    def _enforce_deadline(self) -> None:
        if self._has_begun or self._transport.is_closing():
            return
        # a connection on which nothing has arrived gets no 408: browsers open some ahead of use
        if self._is_expecting and self.conn.our_state is h11.IDLE:
            self._send_error(408, "the headers did not arrive in time")
        self._transport.close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer with an error, unless a response has begun, and close the connection.

        A client that still sends would lose the answer if it were closed at once.
        """
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._send_error(status, message)
        self._is_refused = True
        self._transport.end()
        asyncio.get_running_loop().call_later(LINGER, self._transport.close)

    def _send_error(self, status: int, message: str) -> None:
        """Write a response without h11, whose state must let the application answer until the socket is closed."""
        body = bytes(ErrorResponse(status, message).body)
        request_id = token_hex(8)
        fields = {"request_id": request_id, "status": status, "repeated": f"{status} {message}"}
        log.info("%s refused %d %s", request_id, status, message, extra=fields)
        if self.conn.our_state is h11.IDLE:  # else the application counts its end
            self._on_refusal(status)
        lines = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"x-request-id: {request_id}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        )
        self._transport.write("\r\n".join((*lines, "", "")).encode() + body)
