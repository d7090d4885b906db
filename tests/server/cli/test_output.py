"""Files that commands write: checked first, written completely, and never over another file."""

import os
from errno import ENOSPC
from pathlib import Path

import pytest

from server.cli import output
from server.cli.output import OutputChoice, number_paths, reserve_files
from server.config.toml import ConfigError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def choose(given=None, number=1, force=False):
    choice = OutputChoice(None if given is None else Path(given), Path("out.png"), force)
    return [str(path) for path in choice.choose_paths(number)]


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_default_name_is_the_first_that_is_free(folder):
    assert choose() == ["out.png"]
    (folder / "out.png").touch()
    assert choose() == ["out-1.png"]
    (folder / "out-1_1.png").touch()
    assert choose() == ["out-1.png"]
    assert choose(number=2) == ["out-2.png", "out-2_1.png"]
    assert choose(force=True) == ["out.png"]


@pytest.mark.parametrize("taken", ["a.png", "a_2.png"])
def test_a_given_name_is_refused_if_a_file_exists(folder, taken):
    (folder / taken).touch()
    with pytest.raises(ConfigError, match=f"--output '{taken}' exists already; .*--force"):
        choose("a.png", 3)
    assert choose("a.png", 3, force=True) == ["a.png", "a_1.png", "a_2.png"]


def test_a_broken_link_counts_as_a_file(folder):
    (folder / "a.png").symlink_to("nowhere.png")
    with pytest.raises(ConfigError, match="exists already"):
        choose("a.png")


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_and_a_device_are_refused(folder, force):
    (folder / "a.png").mkdir()
    (folder / "full.png").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match=r"'a\.png' is a folder"):
        choose("a.png", force=force)
    with pytest.raises(ConfigError, match="not a regular file" if force else "exists already"):
        choose("full.png", force=force)


def test_a_missing_folder_is_made_and_nothing_but_the_file_is_left(folder):
    path = folder / "b" / "c" / "a.png"
    with reserve_files([path], 10, force=False) as (file,):
        assert path.parent.is_dir()
        assert not path.exists()
        assert file.publish(b"picture") == path
    assert path.read_bytes() == b"picture"
    assert list_names(path.parent) == ["a.png"]
    expected = 0o666 & ~_read_umask()
    assert os.name != "posix" or path.stat().st_mode & 0o777 == expected


def _read_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_nothing_is_left_if_nothing_is_written(folder):
    with pytest.raises(KeyboardInterrupt), reserve_files(number_paths(Path("a.png"), 3), 10, force=False):
        raise KeyboardInterrupt
    assert list_names(folder) == []


def test_a_file_that_appears_meanwhile_is_kept(folder):
    with reserve_files([Path("a.png")], 10, force=False) as (file,):
        (folder / "a.png").write_text("another's")
        assert file.publish(b"picture") == Path("a-1.png")
    assert (folder / "a.png").read_text() == "another's"
    assert (folder / "a-1.png").read_bytes() == b"picture"


def test_force_replaces_the_file_that_a_link_leads_to(folder):
    (folder / "b").mkdir()
    (folder / "b" / "real.png").write_text("old")
    (folder / "a.png").symlink_to("b/real.png")
    with reserve_files([Path("a.png")], 10, force=True) as (file,):
        assert file.publish(b"picture") == Path("a.png")
    assert (folder / "a.png").is_symlink()
    assert (folder / "b" / "real.png").read_bytes() == b"picture"


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(folder):
    (folder / "a").touch()
    for path in (Path("a/b.png"), Path("a/b/c.png")):
        with pytest.raises(ConfigError, match=r"cannot be written: '.*' is not a folder"):  # noqa: SIM117
            with reserve_files([path], 10, force=False):
                pytest.fail("reserved")


def fail_for_room(*_):
    raise OSError(ENOSPC, os.strerror(ENOSPC))


def test_a_full_disk_is_refused_before_the_work(folder, monkeypatch):
    monkeypatch.setattr(output.os, "posix_fallocate", fail_for_room, raising=False)
    message = r"--output 'a\.png' cannot be written: there is no room for the 1 KiB"
    with pytest.raises(ConfigError, match=message), reserve_files([Path("a.png")], 10, force=False):
        pytest.fail("reserved")
    assert list_names(folder) == []


def test_a_disk_that_fills_meanwhile_leaves_no_part_of_a_file(folder, monkeypatch):
    with reserve_files([Path("a.png")], 10, force=True) as (file,):
        monkeypatch.setattr(Path, "replace", fail_for_room)
        with pytest.raises(OSError, match="No space left") as error:
            file.publish(b"picture")
    assert error.value.filename == "a.png"
    assert list_names(folder) == []
