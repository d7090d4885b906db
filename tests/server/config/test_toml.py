import os
from pathlib import Path

import pytest

from server.config.toml import ConfigError, StrictModel, find_line, read_toml, validate
from server.tags.table import read_rows
from server.tls.certificates import Certificates


class Engine(StrictModel):
    limit: int = 1


class Example(StrictModel):
    port: int = 1
    share: float = 1.0
    token: str | None = None
    names: tuple[str, ...] = ()
    engine: Engine = Engine()
    workers: tuple[Engine, ...] = ()


DOCUMENT = """
port = 1
names = [
  "one",
  "two",
]
"quoted key" = 1
engine.limit = 3

[other]
text = '''
port = 2
'''
inline = {a = 1, b = {c = 2}}

[[workers]]
limit = 1

[[workers]]
limit = 2
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("port",), 2),
        (("names",), 3),
        (("names", 1), 3),
        (("quoted key",), 7),
        (("engine", "limit"), 8),
        (("other",), 10),
        (("other", "text"), 11),
        (("other", "inline", "b", "c"), 14),
        (("workers", 0, "limit"), 17),
        (("workers", 1, "limit"), 20),
        (("workers", 1, "missing"), 19),
        (("nowhere",), None),
    ],
)
def test_the_line_of_a_key_is_found(key, line):
    assert find_line(DOCUMENT, key) == line


def read_example(tmp_path, text):
    file = tmp_path / "a.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return validate(Example, read_toml(file), file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 1.0", r"a\.toml:1: port = 1\.0: should be a whole number$"),
        ("port = false", r"a\.toml:1: port = false: should be a whole number$"),
        ('share = "1"', r"a\.toml:1: share = '1': should be a number$"),
        ("token = 12345678", r"a\.toml:1: token: should be text in quotes"),
        ('names = ["a", 1]', r"a\.toml:1: names\.1 = 1: should be text in quotes"),
        ("\nengine = 3", r"a\.toml:2: engine = 3: should be a table: write \[engine\] and its keys below"),
        ("workers = 3", r"workers = 3: should be an array: write \[\[workers\]\] and its keys below"),
        ("workers = [3]", r"workers\.0 = 3: should be a table: write \[\[workers\]\] and its keys below"),
        ("names = 3", r"names = 3: should be an array: write its values in \[ \]"),
        ("port = 'x'\nprot = 1", r"a\.toml:2: 'prot' is not a key here; did you mean 'port'\?"),
        (
            "[engine]\nlimits = 1",
            r"a\.toml:2: 'engine\.limits' is not a key here; did you mean 'engine\.limit'\?",
        ),
        (
            "[[workers]]\n[[workers]]\nlimit = ''",
            r"a\.toml:3: workers\.1\.limit = '': should be a whole number",
        ),
        ("port = 1\nport = 2", r"a\.toml:2: port is set above already; put it in one place"),
        ("a = [\n1,\n", r"a\.toml:3: the file ends within a value"),
        (b"port = 1\n# \xff", r"a\.toml:2: not UTF-8"),
    ],
)
def test_an_error_has_file_line_and_key(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_example(tmp_path, text)


def test_a_byte_order_mark_and_integers_for_floats_are_accepted(tmp_path):
    assert read_example(tmp_path, b"\xef\xbb\xbfshare = 2") == Example(share=2.0)


def test_a_secret_is_not_in_the_message(tmp_path):
    with pytest.raises(ConfigError) as error:
        read_example(tmp_path, 'token = ["sesame"]')
    assert "sesame" not in str(error.value)


def test_a_file_without_an_end_is_refused():
    with pytest.raises(ConfigError, match=r"/dev/zero: a pipe, device or socket; name a regular file"):
        read_toml(Path("/dev/zero"))


def test_a_file_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "large.toml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match=r"large\.toml: more than 1 MiB; name a TOML file"):
        read_toml(tmp_path / "large.toml")


@pytest.mark.skipif(os.name != "posix", reason="named pipes")
@pytest.mark.parametrize(
    "read",
    [read_toml, read_rows, lambda file: Certificates(file.parent).read_end()],
    ids=["toml", "tags", "tls"],
)
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path, read):
    pipe = tmp_path / "server.pem"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match=r"server\.pem: a pipe, device or socket"):
        read(pipe)
