"""Folders of files that requests name: what is listed, and how often each file is read."""

import os
import shutil

import pytest
from lora_files import random_lora, write_lora

from pipelines.errors import WeightsError
from server.engine.named_files import build_cards, list_names, open_named


@pytest.fixture
def folder(tmp_path):
    for name in ("b", "A", "with space, comma"):
        write_lora(tmp_path / f"{name}.safetensors", random_lora({"layer": (4, 4)}))
    return tmp_path


@pytest.fixture
def calls():
    return []


@pytest.fixture
def describe(calls):
    """Makes an entry, and refuses the file `b`."""

    def describe(folder, name):
        calls.append(name)
        if name == "b":
            raise WeightsError(folder / name, "damaged")
        return {"name": name, "size": (folder / f"{name}.safetensors").stat().st_size}

    return describe


def test_files_with_a_name_that_can_be_sent_are_listed(folder):
    (folder / "sub.safetensors").mkdir()
    (folder / "gone.safetensors").symlink_to(folder / "nothing")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    (folder / "link.safetensors").symlink_to(folder / "A.safetensors")
    (folder / "old.pt").touch()
    (folder / ".safetensors").touch()
    shutil.copy(folder / "A.safetensors", os.fsdecode(os.fsencode(folder) + b"/\xff.safetensors"))
    assert list_names(folder) == ["A", "b", "link", "with space, comma"]


def test_a_folder_that_cannot_be_read_is_a_problem(folder, describe):
    with pytest.raises(WeightsError, match="nothing: the folder cannot be read: No such file or directory"):
        list_names(folder / "nothing")
    problem = "the folder cannot be read: No such file or directory"
    assert build_cards(folder / "nothing", describe) == [{"problem": problem}]
    assert build_cards(None, describe) == []


def test_an_entry_is_made_once_for_each_state_of_a_file(folder, describe, calls):
    first = build_cards(folder, describe)
    assert [card["name"] for card in first] == ["A", "b", "with space, comma"]
    assert first[1] == {"name": "b", "problem": "damaged"}
    assert build_cards(folder, describe) == first
    assert calls == ["A", "b", "with space, comma"]
    write_lora(folder / "A.safetensors", random_lora({"layer": (8, 8)}))
    assert build_cards(folder, describe) != first
    assert calls[3:] == ["A"]


def test_a_file_that_vanishes_or_is_replaced_is_noticed(folder):
    def read_size(path):
        return path.stat().st_size

    before = open_named(folder, "A", read_size)
    assert open_named(folder, "A", read_size) == before
    state = (folder / "A.safetensors").stat()
    other = write_lora(folder / "other", random_lora({"layer": (4, 4)}, seed=1))
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(folder / "A.safetensors")  # of the same size and time
    assert open_named(folder, "A", read_size)[1] != before[1]
    (folder / "A.safetensors").unlink()
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        open_named(folder, "A", read_size)
