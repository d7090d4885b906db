import pytest

from server.config.toml import ConfigError, StrictModel, line_of, read_toml, validate


class Engine(StrictModel):
    limit: int = 1


class House(StrictModel):
    port: int = 1
    share: float = 1.0
    token: str | None = None
    names: tuple[str, ...] = ()
    engine: Engine = Engine()
    rooms: tuple[Engine, ...] = ()


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

[[rooms]]
limit = 1

[[rooms]]
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
        (("rooms", 0, "limit"), 17),
        (("rooms", 1, "limit"), 20),
        (("rooms", 1, "missing"), 19),
        (("nowhere",), None),
    ],
)
def test_a_key_stands_on_a_line(key, line):
    assert line_of(DOCUMENT, key) == line


def read(tmp_path, text):
    file = tmp_path / "a.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return validate(House, read_toml(file), file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port = 1.0", r"a\.toml:1: port = 1\.0: should be a valid integer"),
        ("port = false", r"a\.toml:1: port = false: should be a valid integer"),
        ('share = "1"', r"a\.toml:1: share = '1': should be a valid number"),
        ("token = 12345678", r"a\.toml:1: token: should be a valid string"),
        ('names = ["a", 1]', r"a\.toml:1: names\.1 = 1: should be a valid string"),
        ("\nengine = 3", r"a\.toml:2: engine = 3"),
        ("port = 'x'\nprot = 1", r"a\.toml:2: 'prot' is not a key here; did you mean 'port'\?"),
        (
            "[engine]\nlimits = 1",
            r"a\.toml:2: 'engine\.limits' is not a key here; did you mean 'engine\.limit'\?",
        ),
        ("[[rooms]]\n[[rooms]]\nlimit = ''", r"a\.toml:3: rooms\.1\.limit = '': should be a valid integer"),
        ("port = 1\nport = 2", r"a\.toml:2: "),
        ("a = [\n1,\n", r"a\.toml:\d: "),
        (b"port = 1\n# \xff", r"a\.toml:2: not UTF-8"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_key(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, text)


def test_a_byte_order_mark_and_whole_numbers_for_fractions_are_fine(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfshare = 2") == House(share=2.0)


def test_a_secret_is_not_repeated(tmp_path):
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, 'token = ["sesame"]')
    assert "sesame" not in str(refused.value)
