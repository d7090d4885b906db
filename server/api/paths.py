"""One spelling for each path, before access is checked and a route is chosen.

Clients join a base address that ends in a slash with a path that begins with one. Access rules and routes must see the
same path, or `//ai/generate-image` would need no token.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send


def normalize_paths(app: ASGIApp) -> ASGIApp:
    """Return `app` behind a change of the path: single slashes, and none at the end."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root = scope.get("root_path", "")
            scope = {**scope, "path": root + normalize_path(scope["path"].removeprefix(root))}
        await app(scope, receive, send)

    return run


def normalize_path(path: str) -> str:
    """Return a path with single slashes, and without one at its end unless it is the root.

    A segment `.` or `..` stays and matches no route: clients resolve these themselves.
    """
    return re.sub(r"/{2,}", "/", path).rstrip("/") or "/"
