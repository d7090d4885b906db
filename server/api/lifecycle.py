"""uvicorn's server with our protocol, a bounded number of connections and a bounded stop."""

import logging
import os
import signal
import ssl
from functools import partial
from socket import socket
from threading import Timer
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from server.api.peers import Peers
from server.api.protocol import IDLE_TIMEOUT, OnRefusal, Protocol, ignore_refusal

try:
    import resource
except ImportError:  # Windows has no limit worth asking for
    resource = None

log = logging.getLogger("naiad")
OTHER_FILES = 64
"""File descriptors that are left for everything but connections: about 30 are open once a model is loaded."""
ACCEPTED_AT_ONCE = 16
"""Connections accepted before the event loop closes others in their place; they take descriptors too."""
BACKLOG = 2048
"""Connections that the kernel keeps until they are accepted."""
STOP_MARGIN = 1.0
"""Seconds before the end of the drain at which requests that still run are answered with 503."""


class Server(uvicorn.Server):
    """uvicorn's server, whose process ends within `drain_seconds` of the first signal, and at once at a second one.

    After the first one its status is 0, and not that of a process which the signal has killed.

    There is nothing to save at the end, so remaining work may be cut off: an evaluation, loading a model, decoding an
    image, a response that the client does not take.

    Attributes:
        exit_status: of the process, if it ends because `drain_seconds` are over.
    """

    def __init__(self, config: uvicorn.Config, drain_seconds: float) -> None:
        super().__init__(config)
        self._drain_seconds, self.exit_status = drain_seconds, 0
        self._timer = Timer(drain_seconds, self._give_up)
        self._timer.daemon = True

    def run(self, sockets: list[socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            self._timer.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True  # uvicorn would also keep the signal, and raise it again at the end

    async def startup(self, sockets: list[socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # asyncio accepts as many at once as it lets the kernel keep

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self._timer.start()
        await super().shutdown(sockets)

    def _give_up(self) -> None:
        log.warning("stopped after drain_seconds = %g with work left", self._drain_seconds)
        os._exit(self.exit_status)


def build_server(
    app: ASGIApp,
    connections: int,
    drain_seconds: float,
    context: ssl.SSLContext | None = None,
    on_refusal: OnRefusal = ignore_refusal,
) -> Server:
    """Return a server of an application, over TLS if there is a context for it.

    It keeps fewer connections open if it may not open as many files.

    Args:
        on_refusal: called with the status of each request that does not reach the application.
    """
    peers = Peers(_limit_connections(connections))
    config = uvicorn.Config(
        app,
        http=cast("Any", partial(Protocol, peers=peers, on_refusal=on_refusal)),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        ssl_context_factory=None if context is None else lambda _config, _default: context,
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=int(IDLE_TIMEOUT),
        timeout_graceful_shutdown=cast("int", max(drain_seconds - STOP_MARGIN, 0)),
    )
    return Server(config, drain_seconds)


def stop_on_hangup() -> None:
    """Make SIGHUP, which a closed terminal sends, act like SIGTERM, unless it is ignored (`nohup`)."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        signal.signal(hangup, _terminate)


def _terminate(_number: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)


def _limit_connections(connections: int) -> int:
    if resource is None:
        return connections
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return connections
    return min(connections, max(files - OTHER_FILES, ACCEPTED_AT_ONCE))
