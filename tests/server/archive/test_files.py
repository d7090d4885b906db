"""Files are written completely or not at all, and leftovers of killed processes are removed."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from waiting import PROCESS_LIMIT, wait_until

from server.archive import files
from server.archive.files import PARTS, FileWriter

DATA = bytes(range(256)) * 4096


def list_files(root):
    """The written files, and those that are still being written."""
    found = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    parts = [path for path in found if path.parent.name == PARTS]
    return [path for path in found if path not in parts], parts


def run_python(code, *arguments):
    """Start a Python process that imports this checkout."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_file_is_written_for_its_owner_only(tmp_path):
    root = tmp_path / "new" / "archive"
    writer = FileWriter(root)
    writer.write("2026-11-29/a.png", DATA)
    assert (root / "2026-11-29" / "a.png").read_bytes() == DATA
    for path in (root, root / PARTS, root / "2026-11-29"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((root / "2026-11-29" / "a.png").stat().st_mode) == 0o600
    writer.close()
    assert list((root / PARTS).iterdir()) == []


def test_a_folder_that_exists_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o755)
    FileWriter(tmp_path).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_what_fails_leaves_nothing_behind(tmp_path, monkeypatch, step):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = FileWriter(tmp_path)
    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(files, "_create", lambda path: open(path, "xb", opener=fail))  # noqa: SIM115
        elif step == "fsync":
            patch.setattr(files.os, "fsync", fail)
        else:
            patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            writer.write("2026-11-29/a.png", DATA)
    assert list_files(tmp_path) == ([], [])
    writer.write("2026-11-29/a.png", DATA)
    writer.close()


WRITE_LARGE = """
import resource, signal, sys
from pathlib import Path
from server.archive.files import FileWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = FileWriter(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    writer.write("2026-11-29/large.png", bytes(1_000_000))
except OSError as error:
    print(error.strerror)
writer.write("2026-11-29/small.png", bytes(1000))
writer.close()
"""


def test_a_file_that_the_disk_has_no_room_for_is_not_there_in_part(tmp_path):
    process = run_python(WRITE_LARGE, tmp_path)
    output, _ = process.communicate(timeout=PROCESS_LIMIT)
    assert (process.returncode, output) == (0, "File too large\n")
    assert list_files(tmp_path) == ([tmp_path / "2026-11-29" / "small.png"], [])


WRITE_FOREVER = """
import sys
from itertools import count
from pathlib import Path
from server.archive.files import FileWriter
writer = FileWriter(Path(sys.argv[1]))
for number in count():
    writer.write(f"2026-11-29/{number}.png", bytes([number % 256]) * 3_000_000)
    print(number, flush=True)
"""


def test_a_killed_process_leaves_no_broken_file(tmp_path):
    """It is killed while it writes; each attempt gets further, until one is killed in the middle of a file."""
    for _ in range(20):
        process = run_python(WRITE_FOREVER, tmp_path)
        assert process.stdout is not None
        process.stdout.readline()
        wait_until(lambda: list_files(tmp_path)[1])
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if list_files(tmp_path)[1]:
            break
    complete, parts = list_files(tmp_path)
    assert complete
    assert parts
    for path in complete:
        data = path.read_bytes()
        assert data == bytes([int(path.stem) % 256]) * 3_000_000
    FileWriter(tmp_path).close()
    assert list_files(tmp_path) == (complete, [])
    assert list((tmp_path / PARTS).iterdir()) == []


def test_the_files_of_another_process_that_runs_are_left_alone(tmp_path):
    first = FileWriter(tmp_path)
    part = tmp_path / PARTS / f"{first._name}-7.part"
    part.write_bytes(b"half")
    second = FileWriter(tmp_path)
    assert part.exists()
    first.write("2026-11-29/a.png", b"a")
    second.write("2026-11-29/b.png", b"b")
    second.close()
    first.close()
    FileWriter(tmp_path).close()
    assert not part.exists()
    assert len(list_files(tmp_path)[0]) == 2


def test_a_folder_that_is_gone_is_not_made_again(tmp_path):
    root = tmp_path / "disk"
    writer = FileWriter(root)
    root.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        writer.write("2026-11-29/a.png", DATA)
    assert not root.exists()
    root.mkdir()  # mounted again, and empty
    writer.write("2026-11-29/a.png", DATA)
    assert (root / "2026-11-29" / "a.png").exists()
    writer.close()


WRITE_AS_ANOTHER = """
import os, sys
from pathlib import Path
from server.archive.files import FileWriter
writer = FileWriter(Path(sys.argv[1]))
if os.getuid() == 0:
    os.setuid(65534)
else:
    Path(sys.argv[1]).chmod(0o500)
try:
    writer.write("2026-11-29/a.png", bytes(1000))
except PermissionError as error:
    print(error.strerror)
"""


def test_a_read_only_folder_is_an_error_of_the_system(tmp_path):
    process = run_python(WRITE_AS_ANOTHER, tmp_path)
    output, _ = process.communicate(timeout=PROCESS_LIMIT)
    tmp_path.chmod(0o700)
    assert (process.returncode, output) == (0, "Permission denied\n")
    assert list_files(tmp_path) == ([], [])
