"""Host names, origins and path prefixes in the form in which requests have them, so that a setting can be compared."""

import re
from ipaddress import ip_address

DEFAULT_PORTS = {"http": 80, "https": 443}
HOST_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_.-]*[a-z0-9_])?")
ORIGIN = re.compile(r"([a-z][a-z0-9+.-]*)://([a-z0-9._~-]*|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
"""Scheme, host and port (RFC 6454). Not only http: extensions and desktop shells have schemes of their own."""
HOSTLESS = ("file", "app")
"""Schemes whose pages may have an origin without a host."""
PATH = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
OWN_SEGMENTS = frozenset(
    {
        "ai",
        "user",
        "v1",
        "queue",
        "archive",
        "live",
        "ready",
        "metrics",
        "models",
        "key",
        "docs",
        "openapi.json",
    }
)
"""First segments of the server's own paths; a prefix that begins with one could hide them."""
PATTERN = "* does not stand for other names; list each one"
NOT_ASCII = "browsers send such a name in ASCII; write it as they do, with xn--"


def normalize_host(text: str) -> str:
    """Return a host name or an address in lower case, an address in its shortest form.

    Raises `ValueError`, with what to write instead, for a text that no Host header can match.
    """
    name = text.strip().lower().removesuffix(".")
    if name.startswith("[") and name.endswith("]"):
        name = name[1:-1]
    try:
        return str(ip_address(name))
    except ValueError:
        pass
    if "*" in name:
        raise ValueError(PATTERN)
    if not name.isascii():
        raise ValueError(NOT_ASCII)
    if not HOST_NAME.fullmatch(name):
        raise ValueError(
            "should be a name like example.org or an address, without http:// and without a port"
        )
    return name


def parse_host(header: str) -> str:
    """Return the name in a Host header: lower case, without port and brackets."""
    name = re.sub(r":\d*$", "", header.strip().lower())
    return name.removeprefix("[").removesuffix("]").removesuffix(".")


def normalize_origin(text: str) -> str:
    """Return an origin in lower case, without the default port of its scheme.

    `null` stays: browsers send it for local files, and for sandboxed frames of any page.

    Raises `ValueError`, with what to write instead, for a text that no browser sends as Origin.
    """
    folded = text.strip().lower()
    if folded == "null":
        return folded
    found = ORIGIN.fullmatch(folded)
    if found is None:
        raise ValueError(_explain_origin(folded))
    scheme, name, port = found[1], found[2], None if found[3] is None else int(found[3])
    if not name and (scheme not in HOSTLESS or port is not None):
        raise ValueError(f"names no host; write it like {scheme}://localhost")
    if port is not None and not 0 < port < 65536:
        raise ValueError("the port should be 1 to 65535")
    if name.startswith("["):
        try:
            name = f"[{ip_address(name[1:-1])}]"
        except ValueError:
            raise ValueError("the address in brackets is not an IPv6 address") from None
    suffix = "" if port in (None, DEFAULT_PORTS.get(scheme)) else f":{port}"
    return f"{scheme}://{name}{suffix}"


def parse_origin(header: str) -> str | None:
    """Return an Origin header's origin as `normalize_origin` does, or None if it is none."""
    try:
        return normalize_origin(header)
    except ValueError:
        return None


def normalize_prefix(text: str) -> str:
    """Return a path prefix with single slashes, one at its beginning and none at its end.

    Raises `ValueError`, with what to write instead, for a text that is no path or that begins like one of the server's.
    """
    prefix = re.sub(r"/{2,}", "/", f"/{text.strip()}").rstrip("/")
    segments = prefix.split("/")[1:]
    if not PATH.fullmatch(prefix) or {".", ".."} & set(segments):
        raise ValueError("should be a path like /native, of letters, digits and . _ ~ -")
    if segments[0] in OWN_SEGMENTS:
        raise ValueError(f"begins like the server's own /{segments[0]}; choose another path, like /native")
    return prefix


def _explain_origin(origin: str) -> str:
    """Return why a text is not an origin, and what to write."""
    scheme, _, rest = origin.partition("://")
    if origin == "*":
        return "any page could then send requests here; list the origin of each, like https://example.org"
    if "*" in origin:
        return PATTERN
    if not origin.isascii():
        return NOT_ASCII
    if origin and ORIGIN.fullmatch(f"http://{origin}"):
        return f"has no scheme; write http://{origin} or https://{origin}"
    shortened = f"{scheme}://{re.split(r'[/?#]', rest)[0].rpartition('@')[2]}"
    if shortened != origin and ORIGIN.fullmatch(shortened):
        return f"should end after the host and the port, with no path and no / at its end; write {shortened}"
    return "should be like https://example.org or chrome-extension://abcdefghijklmnop"
