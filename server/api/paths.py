"""One spelling for each path, before access is checked and a route is chosen.

Clients join a base address that ends in a slash with a path that begins with one, and relays put a prefix before all
paths. Access rules, routes and the log must see the same path, or `//ai/generate-image` would need no token.
"""

import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

ABSOLUTE_FORM = re.compile(r"^https?://[^/]*", re.IGNORECASE)
"""The scheme and host of a request target as proxies are sent it (RFC 9112, section 3.2.2); Host is still checked."""


def normalize_paths(app: ASGIApp, prefixes: Sequence[str] = ()) -> ASGIApp:
    """Return `app` behind a change of the path: single slashes, none at the end, and without one of the prefixes."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root = scope.get("root_path", "")
            sent = ABSOLUTE_FORM.sub("", scope["path"].removeprefix(root))
            path = normalize_path(sent, prefixes)
            scope = {**scope, "path": root + path}
        await app(scope, receive, send)

    return run


def normalize_path(path: str, prefixes: Sequence[str] = ()) -> str:
    """Return a path with single slashes, none at its end unless it is the root, and without the longest prefix it has.

    A prefix is removed once. A segment `.` or `..` stays and matches no route: clients resolve these themselves.
    """
    normal = re.sub(r"/{2,}", "/", f"/{path}").rstrip("/")
    found = [prefix for prefix in prefixes if f"{normal}/".startswith(f"{prefix}/")]
    return normal.removeprefix(max(found, key=len, default="")) or "/"
