"""What the index keeps of a picture's file."""

import json

import pytest
from archived_files import build_name, write_comment, write_picture

from server.archive.names import tag_account
from server.archive.records import read_record
from server.picture.parts import UnreadableFile

NAME = build_name(owner=tag_account("anna"))


def read(data):
    return read_record(NAME, NAME.path, data)


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_record_has_what_name_and_metadata_say(suffix):
    record = read(write_comment("1girl, красный", suffix))
    assert (record.id, record.file, record.owner, record.seed) == (NAME.id, NAME.path, NAME.owner, 7)
    assert (record.width, record.height, record.created) == (96, 64, NAME.milliseconds)
    assert (record.prompt, record.negative_prompt) == ("1girl, красный", "lowres")
    assert (record.model, record.source) == ("nai-diffusion-3", "94712E0C")
    assert (record.sampler, record.steps) == ("k_euler", 28)


def test_a_picture_without_metadata_has_no_prompt():
    record = read(write_picture())
    assert (record.prompt, record.negative_prompt, record.model, record.source) == ("", "", "", "")
    assert (record.sampler, record.steps, record.width) == ("", None, 96)


def test_captions_of_characters_are_part_of_the_prompt():
    caption = {
        "base_caption": "2girls",
        "char_captions": [{"char_caption": "red hair", "centers": [{"x": 0.5, "y": 0.5}]}],
    }
    record = read(write_comment("2girls", v4_prompt={"caption": caption}))
    assert record.prompt == "2girls, red hair"


@pytest.mark.parametrize(
    "comment",
    [
        {"prompt": ["a"], "steps": "28", "sampler": 5, "uc": None, "naiad": [], "v4_prompt": 5},
        {"prompt": None, "steps": 10**30, "sampler": {}, "naiad": {"job": {"model": 5}}},
        {"prompt": 5, "steps": True, "naiad": {"job": "x"}},
    ],
)
def test_values_of_another_type_are_left_out(comment):
    record = read(write_picture("png", {"Comment": json.dumps(comment)}))
    assert (record.prompt, record.negative_prompt, record.model, record.sampler) == ("", "", "", "")
    assert record.steps in (None, 1)


def test_what_no_database_can_hold_is_left_out():
    record = read(write_picture("png", {"Comment": '{"prompt": "a\\ud800b\\u0000c"}'}))
    assert record.prompt == "abc"


@pytest.mark.parametrize(
    "data",
    [b"", b"RIFF and so on", b"\x89PNG\r\n\x1a\n", write_picture()[:60], write_picture("webp")[:-20]],
    ids=["empty", "webp", "png", "cut png", "cut webp"],
)
def test_a_damaged_file_is_refused(data):
    with pytest.raises(UnreadableFile):
        read(data)
