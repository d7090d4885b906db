"""Host names and origins as browsers send them, and what is refused because none sends it."""

import pytest

from server.config.addresses import (
    normalize_host,
    normalize_origin,
    normalize_prefix,
    parse_host,
    parse_origin,
)


@pytest.mark.parametrize(
    ("header", "name"),
    [("A.b:80", "a.b"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("a.", "a"), ("a.:80", "a"), ("", "")],
)
def test_parse_host_returns_the_name(header, name):
    assert parse_host(header) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [("Box.LAN.", "box.lan"), ("naiad", "naiad"), ("my_naiad", "my_naiad"), ("10.0.0.7", "10.0.0.7"),
     ("[::1]", "::1"), ("2001:DB8:0:0::1", "2001:db8::1"), ("xn--bcher-kva.example", "xn--bcher-kva.example")],
)  # fmt: skip
def test_a_host_is_written_as_it_is_compared(text, name):
    assert normalize_host(text) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*", "list each one"),
        ("*.example.org", "list each one"),
        ("bücher.example", "xn--"),
        ("http://a.example", "without http://"),
        ("a.example:80", "without a port"),
        ("a.example/b", "a name like example.org"),
        ("-", "a name like example.org"),
    ],
)
def test_a_host_that_no_header_names_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        normalize_host(text)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://example.org", "https://example.org"),
        ("HTTPS://Example.ORG:443", "https://example.org"),
        ("http://a.example:80", "http://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[0:0::1]:8080", "http://[::1]:8080"),
        ("tauri://localhost", "tauri://localhost"),
        ("https://tauri.localhost", "https://tauri.localhost"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("moz-extension://4a2b-11", "moz-extension://4a2b-11"),
        ("safari-web-extension://8C7E-AA", "safari-web-extension://8c7e-aa"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("app://.", "app://."),
        ("vscode-webview://1q2w3e", "vscode-webview://1q2w3e"),
        ("wails://wails.localhost:34115", "wails://wails.localhost:34115"),
        ("file://", "file://"),
        ("APP://", "app://"),
        ("moz-extension://4A2B-11", "moz-extension://4a2b-11"),
        ("null", "null"),
    ],
)
def test_an_origin_is_written_as_it_is_compared(text, origin):
    assert normalize_origin(text) == parse_origin(text) == origin


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("*", "list the origin of each"),
        ("https://*.example.org", "list each one"),
        ("example.org", "write http://example.org or https://example.org"),
        ("localhost:3000", "write http://localhost:3000"),
        ("https://example.org/", "no / at its end; write https://example.org$"),
        ("https://example.org:8443/page?x#y", "write https://example.org:8443$"),
        ("https://me:pass@example.org", "write https://example.org$"),
        ("https://bücher.example", "xn--"),
        ("https://", "names no host"),
        ("tauri://", "names no host; write it like tauri://localhost"),
        ("app://:80", "names no host"),
        ("http://a:0", "1 to 65535"),
        ("http://a:70000", "1 to 65535"),
        ("http://[::g]", "should be like"),
        ("http://[1:2]", "not an IPv6 address"),
        ("data:text/html", "should be like"),
        ("http://a b", "should be like"),
        ("", "should be like"),
    ],
)
def test_an_origin_that_no_browser_sends_is_refused_with_what_to_write(text, message):
    with pytest.raises(ValueError, match=message):
        normalize_origin(text)
    assert parse_origin(text) is None


@pytest.mark.parametrize(
    ("text", "prefix"),
    [("/native", "/native"), ("native", "/native"), (" //native// ", "/native"), ("/a//b.c/~d_-/", "/a/b.c/~d_-"), ("/aidan", "/aidan")],
)  # fmt: skip
def test_a_prefix_is_written_as_it_is_compared(text, prefix):
    assert normalize_prefix(text) == prefix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a path like /native"),
        ("/", "a path like /native"),
        ("/a/../b", "a path like /native"),
        ("/.", "a path like /native"),
        ("http://a", "a path like /native"),
        ("/a b", "a path like /native"),
        ("/a%2f", "a path like /native"),
        ("/ai", "begins like the server's own /ai"),
        ("/user/native", "begins like the server's own /user"),
    ],
)
def test_a_prefix_that_is_no_path_or_hides_one_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        normalize_prefix(text)
