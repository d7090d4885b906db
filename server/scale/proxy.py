"""HTTP in Ray Serve's proxies: this server's own protocol, and its errors in place of Ray's.

A proxy calls `build_middleware` when it starts, before it listens.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import HTTP_PROTOCOLS

from server.api.error_responses import ErrorResponse

CALLBACK = "server.scale.proxy.build_middleware"
NO_REPLICA = "no replica can take this request now; try again shortly"
LOST = "the replica that had this request has ended; send it again"
RETRY = {"Retry-After": "2"}
TIMEOUT_HEADER, DISCONNECT_HEADER = b"x-request-timeout-seconds", b"x-request-disconnect-disabled"
"""Headers by which clients could change what Ray does with their requests."""


def build_middleware() -> list[Middleware]:
    """Make this process speak HTTP as a single server does, and return the middleware of its proxy."""
    # uvicorn's own choice has no deadlines, and loses the body of requests that offer an upgrade to h2c
    HTTP_PROTOCOLS["auto"] = "server.api.protocol:Protocol"
    return [Middleware(translate_errors)]


def translate_errors(app: ASGIApp) -> ASGIApp:
    """Return a proxy's `app` with NAI's form of errors, 503 for each, and with one `X-Request-Id`, the replica's.

    Ray has text for requests that no replica takes, and nothing for those whose replica has ended. Where the response
    has begun by then, the connection is closed before its end. That a client has hung up is left to the replica, which
    cancels the job or finishes it (`engine.on_disconnect`); Ray would cancel it.
    """

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        has_started = is_replaced = False

        async def send_translated(message: Message) -> None:
            nonlocal has_started, is_replaced
            if message["type"] == "http.response.start":
                has_started, is_replaced = True, _is_error_of_ray(message)
                if is_replaced:
                    await ErrorResponse(503, NO_REPLICA, RETRY)(scope, receive, send)
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = headers.get("X-Request-Id", "")
            if not is_replaced:
                await send(message)

        await app({**scope, "headers": _set_headers(scope["headers"])}, receive, send_translated)
        if not has_started:
            await ErrorResponse(503, LOST, RETRY)(scope, receive, send)

    return run


def _set_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return a request's headers with Ray's own as this server wants them."""
    kept = [header for header in headers if header[0] not in (TIMEOUT_HEADER, DISCONNECT_HEADER)]
    return [*kept, (DISCONNECT_HEADER, b"?1")]


def _is_error_of_ray(start: Message) -> bool:
    """Return whether a response is an error that the proxy made; those of replicas are JSON."""
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return start["status"] >= 400 and kind.startswith("text/plain")
