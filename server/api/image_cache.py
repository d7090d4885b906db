"""Images that clients sent before, so that they need not send them again."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b, sha256
from secrets import token_bytes
from threading import Lock
from time import monotonic

LIFETIME = 3600.0
"""Seconds after its last use for which an image is kept; NAI's page makes new keys whenever it is loaded."""
MOST_ENTRIES = 1000


@dataclass(slots=True)
class CachedFile:
    """A file, and the number of keys that lead to it."""

    content: bytes
    keys: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """What a client's key leads to, and when it was last used."""

    digest: bytes
    size: int
    used: float


class ImageCache:
    """Files by client and key, at most `limit` bytes of them; a single client has at most half.

    A key is the client's own and says nothing about the content, so each client finds only what it sent itself. Equal
    files are stored once. The least recently used entry is dropped first. Safe to use from several threads.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = monotonic) -> None:
        self.limit, self.size, self._clock = limit, 0, clock
        self._secret, self._lock = token_bytes(32), Lock()
        self._files: dict[bytes, CachedFile] = {}
        self._entries: OrderedDict[tuple[bytes, str], Entry] = OrderedDict()  # least recently used first

    def identify(self, authorization: str) -> bytes:
        """Return a name for the sender of an Authorization header that does not reveal the token."""
        return blake2b(authorization.encode("utf-8", "replace"), key=self._secret, digest_size=16).digest()

    def get(self, client: bytes, key: str) -> bytes | None:
        """Return the file that a client sent with a key, or None."""
        with self._lock:
            self._expire()
            entry = self._entries.get((client, key))
            if entry is None:
                return None
            self._entries[client, key] = Entry(entry.digest, entry.size, self._clock())
            self._entries.move_to_end((client, key))
            return self._files[entry.digest].content

    def put(self, client: bytes, key: str, file: bytes) -> None:
        """Keep a file, unless it is larger than what one client may keep."""
        digest, share = sha256(file).digest(), self.limit // 2
        with self._lock:
            self._expire()
            if (client, key) in self._entries:
                self._drop((client, key))
            if len(file) > share:
                return
            self._make_room(client, len(file), share)
            while self._entries and digest not in self._files and self.size + len(file) > self.limit:
                self._drop(next(iter(self._entries)))
            if digest not in self._files:
                self._files[digest] = CachedFile(file)
                self.size += len(file)
            self._files[digest].keys += 1
            self._entries[client, key] = Entry(digest, len(file), self._clock())

    def _make_room(self, client: bytes, size: int, share: int) -> None:
        """Drop entries until there is one fewer than the most, and the client's have room for `size` bytes."""
        while len(self._entries) >= MOST_ENTRIES:
            self._drop(next(iter(self._entries)))
        own = {name: entry.size for name, entry in self._entries.items() if name[0] == client}
        held = sum(own.values())
        for name, freed in own.items():
            if held + size <= share:
                return
            self._drop(name)
            held -= freed

    def _expire(self) -> None:
        oldest = self._clock() - LIFETIME
        while self._entries and next(iter(self._entries.values())).used < oldest:
            self._drop(next(iter(self._entries)))

    def _drop(self, name: tuple[bytes, str]) -> None:
        digest = self._entries.pop(name).digest
        file = self._files[digest]
        file.keys -= 1
        if not file.keys:
            del self._files[digest]
            self.size -= len(file.content)
