"""Who may come in: which host names, which browser pages, and with which token.

A page that a browser shows may send requests to any address, this server's included. So the Host must be one of
ours, since a name that somebody else resolves to our address would make their page ours (DNS rebinding), and a
request that changes something must not come from a foreign page. NAI's own names are let in because its clients
send them whatever address they were given.
"""

import re
from dataclasses import dataclass
from hmac import compare_digest
from ipaddress import IPv4Address, IPv6Address, ip_address
from secrets import choice
from string import ascii_letters, digits

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, Forbidden, HeadersTooLarge, Unauthorized, error_response, shorten

PROTECTED_PATHS = ("/ai/", "/user/")
LOGIN = "/user/login"
NAI_HOST = re.compile(r"(?:[a-z0-9-]+\.)?novelai\.net")
NAI_ORIGIN = "https://novelai.net"
LARGEST_HEAD = 16 * 1024
"""Bytes of a request before its body; h11 refuses more by itself, but only when they come in pieces."""
READING = frozenset({"GET", "HEAD", "OPTIONS"})
EXPOSED = "Content-Disposition, Server-Timing, X-Naiad-Warning, X-Request-Id"
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, X-Correlation-Id, X-Initiated-At",
    "Access-Control-Allow-Private-Network": "true",
    "Access-Control-Max-Age": "600",
}


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The rules of one server.

    Args:
        tokens: bearer tokens that guarded paths need one of; with none everybody may come in.
        bound: the address listened on; when that is every address, any address in numbers is one of ours.
        hosts: further host names; origins: browser pages, as "https://example.org", that may send requests.
    """

    tokens: tuple[str, ...] = ()
    bound: str = "127.0.0.1"
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def allows_host(self, host: str) -> bool:
        """Whether a Host header names this server."""
        name = parse_host(host)
        if name in ("localhost", self.bound.lower(), *(host.lower() for host in self.hosts)):
            return True
        address, bound = _address(name), _address(self.bound)
        if address is None:
            return name.endswith(".localhost") or NAI_HOST.fullmatch(name) is not None
        return address.is_loopback or address == bound or (bound is not None and bound.is_unspecified)

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may send requests: our own, or one that the operator named."""
        return origin in (f"http://{host}", f"https://{host}", *self.origins)

    def allows_token(self, authorization: str) -> bool:
        """Whether an Authorization header carries one of the tokens; takes as long for a near miss."""
        return not self.tokens or self.find_token(authorization) is not None

    def find_token(self, authorization: str) -> str | None:
        """The token among ours that an Authorization header carries."""
        scheme, _, given = authorization.partition(" ")
        sent = given.strip().encode()
        found = [token for token in self.tokens if compare_digest(sent, token.encode())]
        return found[0] if found and scheme.lower() == "bearer" else None

    def check(self, method: str, path: str, headers: Headers) -> ApiError | None:
        """Why a request may not come in, or None."""
        host, origin = _only(headers, "host") or "", _only(headers, "origin")
        if not self.allows_host(host):
            return Forbidden(f"Host: {shorten(host)} is not a name of this server (setting api.hosts)")
        foreign = origin is not None and not self.allows_origin(origin, host)
        preflight = method == "OPTIONS" and "access-control-request-method" in headers
        # clients that are no browser send NAI's origin as a constant; a browser asks first, and is refused then
        if foreign and (preflight or (method not in READING and origin != NAI_ORIGIN)):
            return Forbidden(f"Origin: {shorten(origin)} may not send requests here (setting api.origins)")
        guarded = path.startswith(PROTECTED_PATHS) and path != LOGIN and method != "OPTIONS"
        if guarded and not self.allows_token(_only(headers, "authorization") or ""):
            return Unauthorized()
        return None


def enforce_access(app: ASGIApp, rules: AccessRules) -> ASGIApp:
    """The application behind a door; answers browsers that ask whether they may send something."""

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # as the router sees it
        too_large = _size_of_head(scope) > LARGEST_HEAD
        refusal = HeadersTooLarge() if too_large else rules.check(scope["method"], path, headers)
        origin = headers.get("origin")
        listed = origin is not None and origin in rules.origins

        async def shared(message: Message) -> None:
            if message["type"] == "http.response.start" and listed:
                answer = MutableHeaders(scope=message)
                answer["Access-Control-Allow-Origin"] = str(origin)
                answer["Access-Control-Expose-Headers"] = EXPOSED
                answer.add_vary_header("Origin")
            await send(message)

        if refusal is not None:
            await error_response(refusal)(scope, receive, shared)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await Response(status_code=204, headers=PREFLIGHT)(scope, receive, shared)
        else:
            await app(scope, receive, shared)

    return checked


def parse_host(host: str) -> str:
    """The name in a Host header: no port, no brackets, lower case."""
    name = re.sub(r":\d*$", "", host.strip().lower())
    return name.removeprefix("[").removesuffix("]").removesuffix(".")


def needs_token(host: str) -> bool:
    """Whether listening on this address reaches beyond the machine itself."""
    if host == "localhost":
        return False
    address = _address(host)
    return address is None or not address.is_loopback


def generate_token() -> str:
    """A token in NAI's own form, `pst-` and 64 letters or digits, which some clients check."""
    return "pst-" + "".join(choice(ascii_letters + digits) for _ in range(64))


def _only(headers: Headers, name: str) -> str | None:
    """A header's value; one sent twice is all its values, and so nothing that is let in."""
    found = headers.getlist(name)
    return ", ".join(found) if found else None


def _size_of_head(scope: Scope) -> int:
    headers = sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])
    return headers + len(scope.get("raw_path") or b"") + len(scope["query_string"])


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None
