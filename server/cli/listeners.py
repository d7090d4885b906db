"""The sockets that a server listens on, one for each address of the setting `host`."""

from collections.abc import Sequence
from contextlib import ExitStack
from errno import EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT
from ipaddress import ip_address
from socket import (
    AF_INET,
    AF_INET6,
    AI_PASSIVE,
    SOCK_STREAM,
    create_server,
    gaierror,
    getaddrinfo,
    has_dualstack_ipv6,
    socket,
)

from server.config.toml import ConfigError

Address = tuple[int, str]
"""Address family, and the address as text."""


def bind(hosts: Sequence[str], port: int) -> list[socket]:
    """Return listening sockets on all addresses of some hosts and on one port; if it is 0, on a free one.

    The unspecified IPv6 address `::` stands for all IPv4 addresses too, unless another host is an IPv4 address. Of a
    name with addresses of both kinds, those that this machine lacks are left out. Raises `ConfigError`.
    """
    resolved = [(host, _resolve(host)) for host in hosts]
    takes_ipv4 = all(family == AF_INET6 for _, addresses in resolved for family, _ in addresses)
    bound: dict[Address, socket] = {}
    with ExitStack() as stack:
        for host, addresses in resolved:
            for address in addresses:
                if (
                    address not in bound
                    and (listener := _listen(host, address, port, takes_ipv4)) is not None
                ):
                    bound[address] = stack.enter_context(listener)
                    port = listener.getsockname()[1]
            if not any(address in bound for address in addresses):
                raise ConfigError(f"host = {host!r} is not an address of this machine")
        stack.pop_all()
    return list(bound.values())


def format_address(host: str, port: int, scheme: str = "http") -> str:
    """Return the URL under which this machine reaches the server."""
    if is_unspecified(host):
        host = "::1" if ":" in host else "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def is_unspecified(host: str) -> bool:
    """Return whether a host stands for all addresses of this machine."""
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def _resolve(host: str) -> list[Address]:
    """Return the addresses of a host, IPv4 first."""
    try:
        found = getaddrinfo(host, 0, type=SOCK_STREAM, flags=AI_PASSIVE)
    except (gaierror, UnicodeError):  # UnicodeError: a label of more than 63 characters
        raise ConfigError(f"host = {host!r} is not an address of this machine") from None
    addresses = dict.fromkeys((family, str(address[0])) for family, *_, address in found)
    return sorted(addresses, key=lambda address: address[0] != AF_INET)


def _listen(host: str, address: Address, port: int, takes_ipv4: bool) -> socket | None:
    """Return a listening socket, or None if this machine has no such address."""
    family, text = address
    is_dual = takes_ipv4 and is_unspecified(text) and has_dualstack_ipv6()
    try:
        return create_server((text, port), family=family, dualstack_ipv6=is_dual)
    except OSError as error:
        if error.errno in (EADDRNOTAVAIL, EAFNOSUPPORT):
            return None
        reason = _explain(error, port)
        raise ConfigError(f"port = {port} on {host} cannot be used: {reason}") from None


def _explain(error: OSError, port: int) -> str | None:
    """Return why a port cannot be used, and for a privileged one what to do."""
    if error.errno == EACCES and port < 1024:
        command = f"sudo sysctl net.ipv4.ip_unprivileged_port_start={port}"
        return f"ports below 1024 are for root; allow everyone with {command} (Linux), or use sudo"
    return "another program listens there" if error.errno == EADDRINUSE else error.strerror
