"""Files are read into the system's cache while something else is done."""

from threading import active_count

import pytest
from waiting import wait_until

from pipelines.weights import prefetch as module
from pipelines.weights.prefetch import prefetch, read_available_memory


class Reads:
    """Counts the bytes that are read, from files that are opened in the module."""

    def __init__(self, monkeypatch):
        self.bytes = 0
        open_file = module.Path.open
        reads = self

        def open_counting(path, *args, **options):
            stream = open_file(path, *args, **options)
            return Counted(stream, reads) if options.get("buffering") == 0 else stream

        monkeypatch.setattr(module.Path, "open", open_counting)


class Counted:
    def __init__(self, stream, reads):
        self._stream, self._reads = stream, reads

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stream.close()

    def seek(self, position):
        self._stream.seek(position)

    def readinto(self, buffer):
        count = self._stream.readinto(buffer)
        self._reads.bytes += count
        return count


@pytest.fixture
def reads(monkeypatch):
    """Counts what is read of files that are not in the cache."""
    monkeypatch.setattr(module, "is_cached", lambda *_: False)
    return Reads(monkeypatch)


def test_files_are_read_to_their_end_one_after_another(demo_file, reads):
    files = [demo_file, demo_file.with_name("naiad-demo-inpainting.safetensors")]
    with prefetch(files):
        wait_until(lambda: reads.bytes == sum(file.stat().st_size for file in files))


def test_reading_ends_with_the_block(demo_file, reads, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1)
    threads = active_count()
    with prefetch([demo_file]):
        wait_until(lambda: reads.bytes > 0)
    assert active_count() == threads
    assert reads.bytes < demo_file.stat().st_size


def test_no_more_than_a_share_of_the_available_memory_is_filled(demo_file, reads, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1000)
    monkeypatch.setattr(module, "read_available_memory", lambda: 9000)
    threads = active_count()
    with prefetch([demo_file]):
        wait_until(lambda: active_count() == threads)
    assert reads.bytes == 5000


def test_what_is_in_the_cache_is_not_read_again(demo_file, reads, monkeypatch):
    size, asked = demo_file.stat().st_size, []
    monkeypatch.setattr(module, "BLOCK", 1 << 20)
    monkeypatch.setattr(module, "is_cached", lambda _, offset: asked.append(offset) or offset < size // 2)
    threads = active_count()
    with prefetch([demo_file]):
        wait_until(lambda: active_count() == threads)
    assert asked == [*range((1 << 20) - 1, size - 1, 1 << 20), size - 1]
    assert 0 < reads.bytes < size


def raise_error(error):
    raise error


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda: 1, True),
        (lambda: 0, False),
        (lambda: raise_error(BlockingIOError()), False),
        (lambda: raise_error(OSError(95, "not supported")), False),
        (lambda: raise_error(AttributeError("preadv")), False),
    ],
)
def test_a_byte_that_can_be_read_at_once_is_in_the_cache(demo_file, monkeypatch, read, expected):
    monkeypatch.setattr(module.os, "preadv", lambda *_: read(), raising=False)
    monkeypatch.setattr(module.os, "RWF_NOWAIT", 8, raising=False)
    with demo_file.open("rb", buffering=0) as file:
        assert module.is_cached(file, 0) is expected


def test_a_file_that_cannot_be_read_is_left_to_whoever_needs_it(tmp_path, reads):
    threads = active_count()
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    with prefetch([tmp_path / "a.safetensors", tmp_path / "b.safetensors"]):
        wait_until(lambda: active_count() == threads)
    assert reads.bytes == 0


def test_the_available_memory_is_that_of_the_system(tmp_path, monkeypatch):
    path = tmp_path / "meminfo"
    monkeypatch.setattr(module, "MEMORY", path)
    assert read_available_memory() is None
    path.write_text("MemTotal:       2000 kB\nMemAvailable:   1000 kB\n")
    assert read_available_memory() == 1_024_000
    path.write_text("MemTotal:       2000 kB\n")
    assert read_available_memory() is None
