"""What the error says of a settings file that is not TOML."""

import pytest

from server.config.syntax import STATEMENT
from server.config.toml import ConfigError, read_toml

BACKSLASH = "a backslash in \"…\" begins an escape; put a path into '…' or write it with /"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("graphs = auto", 'graphs = auto: text needs quotes: graphs = "auto"'),
        ("graphs = auto  # off", 'graphs = auto: text needs quotes: graphs = "auto"'),
        ("host = 127.0.0.1", 'host = 127.0.0.1: not a number; text needs quotes: host = "127.0.0.1"'),
        ("host = “::1”", 'host = “::1”: text needs quotes: host = "::1"'),
        ("tls = True", "tls = True: should be true, in lower case"),
        ("port =", "port has no value"),
        ("port = # any", "port has no value"),
        ('host = "a" "b"', 'host = "a" "b": something follows the closing quote'),
        ("hosts = [a, b]", "hosts: each text in it needs quotes"),
        ("hosts = [\na,\n]", "this is no value; text needs quotes"),
        ("hosts = [1 2]", "a list needs a comma between its values, and ] at its end"),
        ("hosts = [\n1,\n", "the file ends within a value"),
        ("api = {a = 1", "an inline table needs a comma between its keys, and } at its end"),
        ("api = {a = 1, a = 2}", "a table in { } has a key twice; keep one"),
        ('tags = "C:\\models"', BACKSLASH),
        ('tags = "C:\\users"', BACKSLASH),
        ('host = "a', "a text has no closing quote"),
        ("host = 'a", "a text has no closing quote"),
        ('host = "a\nb"', "a text has no closing quote"),
        ("host = 'a\0'", "a control character, which TOML does not allow; delete it"),
        ("port = 1\nport = 2", "port is set above already; put it in one place"),
        ("[speed]\n[api]\n[speed]", "[speed] is set above already; put it in one place"),
        ("speed.a = 1\n[speed]", "[speed] is set above already; put it in one place"),
        ("speed = {a = 1}\nspeed.b = 2", "speed.b is set above already; put it in one place"),
        ("port 4242", STATEMENT),
        ("port: 4242", STATEMENT),
        ("[speed", STATEMENT),
        ("[speed]]", STATEMENT),
        ("= 1", STATEMENT),
        ('{"port": 1}', STATEMENT),
    ],
)
def test_an_error_says_what_is_wrong_with_the_line(tmp_path, text, message):
    file = tmp_path / "a.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as error:
        read_toml(file)
    where, _, reason = str(error.value).removeprefix(f"{file}:").partition(": ")
    assert reason == message
    assert 1 <= int(where) <= text.count("\n") + 1


@pytest.mark.parametrize(
    "text",
    [
        "token = sesame",
        "account = [{token = sesame}]",
        "[[account]]\ntoken_hash = sesame",
        "token: sesame",
        "token = 'sesame",
        'token = "sesame" "sesame"',
        "sesame",
    ],
)
def test_a_secret_is_in_no_message(tmp_path, text):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_toml(tmp_path / "a.toml")
    assert "sesame" not in str(error.value)
