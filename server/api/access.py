"""Access checks before anything else is read: Host, Origin and bearer token.

A web page in a browser may send requests to any address, this server's included. So the Host must be one of this
server's names, because a foreign name that resolves to this address would put its page on the same origin (DNS
rebinding), and a request that changes something must not come from a foreign page. NAI's own host names are allowed
because its clients send them even when they are configured with another address.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from hmac import compare_digest
from ipaddress import IPv4Address, IPv6Address, ip_address

from fastapi import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.accounts import Account, Accounts
from server.api.credentials import read_bearer
from server.api.error_responses import build_error_response
from server.config.addresses import parse_host, parse_origin
from server.errors import (
    ApiError,
    Forbidden,
    HeadersTooLarge,
    Rejected,
    Unauthorized,
    shorten,
)

PROTECTED_PATHS = ("/ai/", "/user/", "/v1/", "/archive", "/queue", "/metrics")
NAI_HOST = re.compile(r"(?:[a-z0-9-]+\.)?novelai\.net")
HEAD_LIMIT = 16 * 1024
"""Bytes of a request before its body. h11 has a limit too, but applies it only to headers that arrive in pieces."""
EXPOSED_HEADERS = "Content-Disposition, Server-Timing, X-Job-Id, X-Naiad-Warning, X-Request-Id"
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "DELETE, GET, HEAD, POST, PUT",
    "Access-Control-Allow-Private-Network": "true",
    "Access-Control-Max-Age": "600",
    "Vary": "Access-Control-Request-Headers",
}
ALLOWED_HEADERS = ("Authorization", "Content-Type", "X-Correlation-Id", "X-Initiated-At")
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")
HEADER_NAMES_LIMIT = 64


@dataclass(frozen=True, slots=True)
class AccessRules:
    """The Hosts, Origins and tokens that one server accepts."""

    tokens: tuple[str, ...] = ()  # the server's own bearer tokens, whose requests have no limits
    bound: tuple[str, ...] = ("127.0.0.1",)  # listened on; if one is unspecified, any IP may be the Host
    hosts: tuple[str, ...] = ()  # additional host names, as `normalize_host` returns them
    origins: tuple[str, ...] = ()  # of web pages that may send requests, as `normalize_origin` returns them
    read_accounts: Callable[[], Accounts] | None = None  # accounts, whose tokens are accepted too

    @property
    def has_tokens(self) -> bool:
        """Whether protected paths need a token; with an accounts file they do, even if it lists no account."""
        return bool(self.tokens) or self.read_accounts is not None

    @property
    def accounts(self) -> Accounts:
        """The accounts as they are now."""
        return Accounts() if self.read_accounts is None else self.read_accounts()

    def allows_host(self, host: str) -> bool:
        """Return whether a Host header names this server."""
        name = parse_host(host)
        address = _parse_address(name)
        if address is None:
            named = ("localhost", *(one.lower().removesuffix(".") for one in self.bound), *self.hosts)
            return name in named or name.endswith(".localhost") or NAI_HOST.fullmatch(name) is not None
        bound = [_parse_address(one) for one in self.bound]
        is_listed = address in bound or str(address) in self.hosts
        return (
            address.is_loopback or is_listed or any(one is not None and one.is_unspecified for one in bound)
        )

    def lists_origin(self, origin: str) -> bool:
        """Return whether an Origin header names one of `origins`."""
        return parse_origin(origin) in self.origins

    def allows_origin(self, origin: str, host: str) -> bool:
        """Return whether pages of this origin may send requests: this server's own, or one of `origins`."""
        sent = parse_origin(origin)
        own = (parse_origin(f"{scheme}://{host}") for scheme in ("http", "https"))
        return sent is not None and sent in (*own, *self.origins)

    def allows_token(self, authorization: str) -> bool:
        """Return whether an Authorization header carries an accepted token, in constant time, or needs none."""
        return (
            not self.has_tokens
            or self._has_own(authorization)
            or self.find_account(authorization) is not None
        )

    def is_operator(self, authorization: str) -> bool:
        """Return whether an Authorization header carries the server's own token, or none is needed."""
        return not self.has_tokens or self._has_own(authorization)

    def find_account(self, authorization: str) -> Account | None:
        """Return the account whose token an Authorization header carries, or None; the server's own has none."""
        token = read_bearer(authorization)
        return None if token is None or self._has_own(authorization) else self.accounts.find(token)

    def _has_own(self, authorization: str) -> bool:
        sent = (read_bearer(authorization) or "").encode()
        matches = [compare_digest(sent, token.encode()) for token in self.tokens]  # all, whichever is first
        return any(matches)

    def check(self, method: str, path: str, headers: Headers) -> ApiError | None:
        """Return the error that refuses a request, or None if it is allowed."""
        host, origin = _join_values(headers, "host") or "", _join_values(headers, "origin")
        if not self.allows_host(host):
            return Forbidden(f"Host: {shorten(host)} is not a name of this server (setting api.hosts)")
        is_foreign = origin is not None and not self.allows_origin(origin, host)
        is_preflight = method == "OPTIONS" and "access-control-request-method" in headers
        # clients that are not browsers send NAI's origin as a constant; a browser sends a preflight first
        is_change = method not in ("GET", "HEAD", "OPTIONS") and origin != "https://novelai.net"
        if is_foreign and (is_preflight or is_change):
            return Forbidden(f"Origin: {shorten(origin)} may not send requests here (setting api.origins)")
        is_protected = path.startswith(PROTECTED_PATHS) and path != "/user/login" and method != "OPTIONS"
        if is_protected and not self.allows_token(_join_values(headers, "authorization") or ""):
            return Unauthorized()
        return None


def enforce_access(app: ASGIApp, rules: AccessRules) -> ASGIApp:
    """Return `app` behind the access rules. CORS preflights are answered here."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        error = _find_error(scope, headers, rules)
        origin = headers.get("origin")

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start" and origin is not None and rules.lists_origin(origin):
                response_headers = MutableHeaders(scope=message)
                response_headers["Access-Control-Allow-Origin"] = origin
                response_headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
                response_headers.add_vary_header("Origin")
            await send(message)

        if error is not None:
            await build_error_response(error)(scope, receive, send_with_cors)
        elif scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _build_preflight_response(headers)(scope, receive, send_with_cors)
        else:
            scope["account"] = rules.find_account(headers.get("authorization", ""))
            await app(scope, receive, send_with_cors)

    return run


def _build_preflight_response(headers: Headers) -> Response:
    """Return the answer to a preflight of an allowed origin; it allows the headers that the page asks for."""
    asked = headers.get("access-control-request-headers", "").split(",", HEADER_NAMES_LIMIT)
    names = [name for entry in asked[:HEADER_NAMES_LIMIT] if HEADER_NAME.fullmatch(name := entry.strip())]
    known = {name.lower() for name in ALLOWED_HEADERS}
    allowed = dict.fromkeys((*ALLOWED_HEADERS, *(name for name in names if name.lower() not in known)))
    allow_headers = {"Access-Control-Allow-Headers": ", ".join(allowed)}
    return Response(status_code=204, headers=PREFLIGHT_HEADERS | allow_headers)


def _find_error(scope: Scope, headers: Headers, rules: AccessRules) -> ApiError | None:
    """Return the error that refuses a request because of its headers, or None if it is allowed."""
    if _head_size(scope) > HEAD_LIMIT:
        return HeadersTooLarge("the headers are too large")
    if "content-length" in headers and "transfer-encoding" in headers:
        # a proxy that trusts the other one would take part of the body for a second request
        return Rejected("Content-Length", "cannot be sent together with Transfer-Encoding")
    path = scope["path"].removeprefix(scope.get("root_path", ""))  # as the router sees it
    return rules.check(scope["method"], path, headers)


def needs_token(host: str) -> bool:
    """Return whether listening on this address makes the server reachable from other machines."""
    address = _parse_address(host)
    return host != "localhost" and (address is None or not address.is_loopback)


def _join_values(headers: Headers, name: str) -> str | None:
    """Return a header's value, or None. The values of a repeated header are joined, so they match nothing allowed."""
    values = headers.getlist(name)
    return ", ".join(values) if values else None


def _head_size(scope: Scope) -> int:
    headers = sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])
    return headers + len(scope.get("raw_path") or b"") + len(scope["query_string"])


def _parse_address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None
