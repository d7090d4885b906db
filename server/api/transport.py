"""A transport that finds out whether a client that has shut down its sending side still reads."""

import asyncio
from socket import SO_ERROR, SOL_SOCKET
from typing import Any

START = b"HTTP/1.1 "
"""The beginning of every response, for any status; h11 writes no other version."""


class ProbingTransport:
    """A transport that can send the beginning of a response ahead of the response.

    A client that closes its socket and one that only shuts down its sending side look alike until something is sent to
    them: the closed socket refuses it, and that shows as an error of our socket. The beginning of a response is the one
    thing that may be sent while its status is not known. Between two chunks of a body it is a zero, which may precede
    the size of any chunk (RFC 9112 §7.1).
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._ahead, self._has_ended = transport, 0, False
        self._is_chunked = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- all other methods of a transport
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write data, without what was sent of it ahead; nothing after `end`."""
        if self._has_ended:
            return
        if data.startswith(START):
            self._is_chunked = b"\r\ntransfer-encoding: chunked\r\n" in data.lower()
        rest, self._ahead = data[self._ahead :], max(self._ahead - len(data), 0)
        self._transport.write(rest)

    def end(self) -> None:
        """Write nothing more after what was written, and shut down the sending side unless TLS is in between."""
        if not self._has_ended and not self._transport.is_closing():
            self._has_ended = True
            if self._transport.can_write_eof():
                self._transport.write_eof()

    def probe(self) -> None:
        """Send the beginning of the next response."""
        if not self._ahead:
            self._transport.write(START)
            self._ahead = len(START)

    def probe_body(self) -> None:
        """Send the beginning of the next chunk of a body, or of its end: a leading zero of its size."""
        if self._is_chunked and not self._has_ended:
            self._transport.write(b"0")

    def has_failed(self) -> bool:
        """Return whether the client has refused what was sent."""
        socket = self._transport.get_extra_info("socket")
        return socket is not None and socket.getsockopt(SOL_SOCKET, SO_ERROR) != 0
