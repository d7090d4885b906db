"""The addresses that a server listens on."""

import errno
import socket
from contextlib import ExitStack
from select import select

import pytest
from waiting import LIMIT

from server.cli import listeners
from server.cli.listeners import bind, format_address
from server.config.toml import ConfigError


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def bind_somewhere(hosts):
    """Bind hosts on a port that is free on all of them; on the second, another program may have it."""
    while True:
        try:
            return bind(hosts, 0)
        except ConfigError as error:
            if "another program" not in str(error):
                raise


def answers(listeners, address):
    """Return whether a connection to an address reaches one of the listeners, and no other program's."""
    try:
        client = socket.create_connection((address, listeners[0].getsockname()[1]), timeout=LIMIT)
    except OSError:
        return False
    with client:
        for listener in select(listeners, [], [], 0)[0]:
            accepted, peer = listener.accept()
            accepted.close()
            if peer[1] == client.getsockname()[1]:
                return True
    return False


def find_answering(*hosts):
    """Return which loopback addresses answer while some hosts are bound."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in bind_somewhere(hosts)]
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
        return [address for address in ("127.0.0.1", "::1") if answers(listeners, address)]


def test_an_ipv4_address_answers_alone():
    assert find_answering("127.0.0.1") == find_answering("0.0.0.0") == ["127.0.0.1"]
    assert find_answering("127.0.0.1", "127.0.0.1") == ["127.0.0.1"]


@needs_ipv6
@pytest.mark.parametrize(
    "hosts", [("::",), ("127.0.0.1", "::1"), ("::1", "127.0.0.1"), ("0.0.0.0", "::"), ("::", "127.0.0.1")]
)
def test_both_kinds_of_address_answer(hosts):
    assert find_answering(*hosts) == ["127.0.0.1", "::1"]


@needs_ipv6
def test_an_ipv6_address_answers_alone():
    assert find_answering("::1") == ["::1"]


def test_a_name_is_bound_on_ipv4_first():
    (first, *others) = bind(["localhost"], 0)
    with ExitStack() as stack:
        for listener in (first, *others):
            stack.enter_context(listener)
        assert first.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port = {port} on 127.0.0.1 cannot be used: another program"):
            bind(["127.0.0.1"], port)


def find_no_host(*_, **__):
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_a_host_that_is_not_this_machine_is_refused(monkeypatch):
    for host in ("203.0.113.7", "a" * 64 + ".invalid", "no-such-host.invalid"):
        if host == "no-such-host.invalid":  # a name server may take seconds
            monkeypatch.setattr(listeners, "getaddrinfo", find_no_host)
        with pytest.raises(ConfigError, match=f"{host}' is not an address of this machine"):
            bind([host], 0)


def test_a_privileged_port_is_refused_with_the_remedy(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(listeners, "create_server", refuse)
    with pytest.raises(ConfigError, match=r"for root; allow everyone with sudo sysctl net\.ipv4.*_start=443"):
        bind(["127.0.0.1"], 443)
    with pytest.raises(ConfigError, match="cannot be used: Permission denied"):
        bind(["127.0.0.1"], 4242)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:80"), ("::", "http://[::1]:80"), ("0.0.0.0", "http://127.0.0.1:80"),
     ("0:0:0:0:0:0:0:0", "http://[::1]:80"), ("box.lan", "http://box.lan:80")],
)  # fmt: skip
def test_the_announced_address_is_one_that_answers_here(host, url):
    assert format_address(host, 80) == url
