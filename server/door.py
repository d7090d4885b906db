"""Who may come in: a bearer token for everything NAI asks one for, always when the server listens off loopback."""

from collections.abc import Awaitable, Callable
from hmac import compare_digest
from ipaddress import ip_address
from secrets import choice
from string import ascii_letters, digits

from fastapi import Request, Response

from server.errors import Unauthorized, envelope

GUARDED = ("/ai/", "/user/")


def needs_token(host: str) -> bool:
    """Whether listening on this address reaches beyond the machine itself."""
    if host == "localhost":
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return True


def new_token() -> str:
    """A token in NAI's own form, `pst-` and 64 letters or digits, which some clients check."""
    return "pst-" + "".join(choice(ascii_letters + digits) for _ in range(64))


def guard(token: str) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Middleware that lets a guarded path through only with this token."""
    wanted = f"Bearer {token}".encode()

    async def check(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "").encode()
        if request.url.path.startswith(GUARDED) and not compare_digest(given, wanted):
            return envelope(Unauthorized.status, "Unauthorized")
        return await proceed(request)

    return check
