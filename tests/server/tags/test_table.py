"""Reading tag files, and the list without one."""

import gzip
from collections import Counter

import pytest

from demo.tag_counts import count_tags
from server.config.resources import configs
from server.config.toml import ConfigError
from server.tags.library import read_known_tags, read_tags
from server.tags.table import Tag, format_name, load_renames, parse_tags, read_rows, rename_tags

ROWS = '''1girl,0,6008644,"1girls,sole_female"
long_hair,0,4350743,"/lh,longhair, "

^_^,0,2000,
solo,0,5000954
"don't_say_""lazy""",0,1076,don't_say_lazy
solo,0,1,again
'''
TAGS = [
    Tag("1girl", 6008644, ("1girls", "sole_female")),
    Tag("long hair", 4350743, ("/lh", "longhair")),
    Tag("^_^", 2000),
    Tag("solo", 5000954),
    Tag('don\'t say "lazy"', 1076, ("don't_say_lazy",)),
]


@pytest.fixture
def write(tmp_path):
    def write(content, name="tags.csv"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return file

    return write


@pytest.mark.parametrize(
    "content",
    [ROWS, ROWS.replace("\n", "\r\n"), "name,category,count,aliases\n" + ROWS, "\ufeff" + ROWS, gzip.compress(ROWS.encode())],
    ids=["plain", "Windows lines", "header", "byte order mark", "gzip"],
)  # fmt: skip
def test_a_file_is_read_in_any_of_its_forms(write, content):
    assert parse_tags(read_rows(write(content))) == TAGS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1girl,0,5,\nsolo,0\n", ":2: needs name, category, number of images and aliases, separated by commas"),
        ("1girl,0,5,\n\n ,0,5,\n", ":3: needs name, category, number of images and aliases, separated by commas"),
        ("1girl,0,5,a,b\n", ":1: needs name, category, number of images and aliases, separated by commas"),
        ("1girl,0,many,\n", ":1: 'many' is not a number of images"),
        ("1girl,0,-5,\n", ":1: '-5' is not a number of images"),
        ("1girl,0,\u0665,\n", ":1: '\u0665' is not a number of images"),
        ("1girl,0,9999999999999,\n", ":1: '9999999999999' is not a number of images"),
        ("a,0,1,\n" + "b" * 200_000 + ",0,1,\n", ":2: not CSV; a field is too long or has a zero byte"),
        (b"1girl,0,5,\nsol\xff,0,5,\n", ":2: not UTF-8; a tag file must be"),
        ("", ": has 0 tags; at least 1, at most 1000000"),
        (gzip.compress(ROWS.encode(), mtime=0)[:40], ": is damaged; its gzip data cannot be unpacked"),
        (b"\x1f\x8bnonsense", ": is damaged; its gzip data cannot be unpacked"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_its_line(write, content, message):
    file = write(content)
    with pytest.raises(ConfigError) as error:
        read_tags(file)
    assert str(error.value) == f"{file}{message}"


def test_a_file_that_cannot_be_opened_is_refused(tmp_path):
    for file, message in ((tmp_path / "none.csv", "no such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=message):
            read_tags(file)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("long_hair", "long hair"), ("hatsune_miku_(cosplay)", "hatsune miku (cosplay)"), ("1girl", "1girl"), ("女の子", "女の子"),
        *((face, face) for face in ("^_^", "o_o", "(o)_(o)", "<|>_<|>", "0_0", "|_|", ":d", ">_@")),
    ],
)  # fmt: skip
def test_underscores_are_spaces_except_in_faces(name, shown):
    assert format_name(name) == shown


def test_a_renamed_tag_has_its_new_name_and_the_old_one_as_alias():
    tags = [Tag("v", 9, ("v-sign",)), Tag(":|", 3), Tag("solo", 2), Tag(";|", 5)]
    renames = {"v": "peace sign", ":|": "neutral face", ";|": "neutral face", "tachi-e": "character image"}
    assert rename_tags(tags, renames) == [
        Tag("solo", 2),
        Tag("peace sign", 9, ("v", "v-sign")),
        Tag("neutral face", 5, (":|", ";|")),
        Tag("character image", 0, ("tachi-e",)),
    ]


def test_the_renames_are_those_that_nai_publishes():
    renames = load_renames(configs() / "tag_renames.toml")
    assert len(renames) == 8
    assert renames["\\||/"] == "open \\m/"


def test_without_a_file_the_tags_of_the_demo_and_of_the_presets_are_known():
    known = {tag.name: tag.count for tag in read_known_tags()}
    assert not Counter(count_tags(300)).keys() - known.keys()
    assert known["solo"] > known["black square"] > 0
    assert known.keys() >= {
        "very aesthetic",
        "impact (font)",
        "@_@",
        "feet",
        "abstract",
        "peace sign",
        "rating:general",
    }
