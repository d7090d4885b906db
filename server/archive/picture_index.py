"""The index of archived pictures: a SQLite file next to them, which several processes may use at the same time.

Each call opens the file, so that a process notices when another one has replaced it.
"""

import os
import sqlite3
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, fields
from pathlib import Path

from server.archive.files import hold_lock
from server.archive.records import PictureRecord

BUSY_SECONDS = 10.0
"""For which a process waits for another one's change."""
NAME = "naiad-index.sqlite"
COLUMNS = tuple(column.name for column in fields(PictureRecord))
MIGRATIONS: Sequence[Sequence[str]] = (
    (
        """CREATE TABLE pictures (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            file TEXT NOT NULL UNIQUE,
            created INTEGER NOT NULL,
            request_id TEXT NOT NULL,
            owner TEXT NOT NULL,
            seed INTEGER NOT NULL,
            width INTEGER NOT NULL,
            height INTEGER NOT NULL,
            prompt TEXT NOT NULL,
            negative_prompt TEXT NOT NULL,
            model TEXT NOT NULL,
            source TEXT NOT NULL,
            sampler TEXT NOT NULL,
            steps INTEGER
        )""",
        "CREATE INDEX pictures_by_time ON pictures (created, id)",
    ),
)
"""The statements that lead from each version of the schema to the next one. Statements that were released stay."""


class NewerIndex(sqlite3.DatabaseError):
    """The index has a schema that this version of naiad does not know."""


class PictureIndex:
    """The index in an archive's folder. Its methods raise `sqlite3.Error`, and can be called on any thread.

    Attributes:
        is_new: whether the index has been created and not been filled; reset it before filling it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.is_new = False

    def prepare(self) -> None:
        """Create the index if it is missing, and bring it to the current schema.

        Raises `NewerIndex` if another version of naiad has to read it.
        """
        with self._connect():
            pass

    def add(self, records: Iterable[PictureRecord]) -> None:
        """Add pictures; one with the id or the file of another one takes its place."""
        names, marks = ", ".join(COLUMNS), ", ".join("?" * len(COLUMNS))
        insert = f"INSERT INTO pictures ({names}) VALUES ({marks})"  # noqa: S608  # no value is in it
        with self._change() as connection:
            for record in records:
                for column in ("id", "file"):
                    self._delete(connection, column, getattr(record, column))
                connection.execute(insert, astuple(record))

    def remove(self, files: Iterable[str]) -> None:
        """Remove pictures by their files."""
        with self._change() as connection:
            for file in files:
                self._delete(connection, "file", file)

    def list_files(self, folder: str) -> set[str]:
        """Return the files in one of the archive's folders."""
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT file FROM pictures WHERE file >= ? AND file < ?", (f"{folder}/", f"{folder}0")
            )
            return {file for (file,) in rows}

    def list_folders(self) -> set[str]:
        """Return the folders that have pictures."""
        with self._connect() as connection:
            rows = connection.execute("SELECT DISTINCT substr(file, 1, instr(file, '/') - 1) FROM pictures")
            return {folder for (folder,) in rows}

    def check(self) -> None:
        """Read all of the index; raise `sqlite3.DatabaseError` if it is damaged."""
        with self._connect() as connection:
            (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if result != "ok":
            raise _build_damage(result)

    def replace_damaged(self) -> None:
        """Put a damaged index aside and make an empty one, unless another process has done so."""
        with hold_lock(self.path.with_suffix(".lock")):
            try:
                self.check()
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                self._put_aside()
        self.prepare()

    def _put_aside(self) -> None:
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.path.replace(self.path.with_suffix(".damaged"))

    def _delete(self, connection: sqlite3.Connection, column: str, value: Collection[str]) -> None:
        connection.execute(f"DELETE FROM pictures WHERE {column} = ?", (value,))  # noqa: S608  # "id" or "file"

    @contextmanager
    def _change(self) -> Generator[sqlite3.Connection]:
        """Yield a connection inside a transaction, which an exception rolls back."""
        with self._connect() as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection

    @contextmanager
    def _connect(self) -> Generator[sqlite3.Connection]:
        """Yield a connection to the index in the current schema."""
        _create_file(self.path)
        with closing(sqlite3.connect(self.path, BUSY_SECONDS, isolation_level=None)) as connection:
            if _read_version(connection) != len(MIGRATIONS):
                connection.execute("PRAGMA journal_mode = WAL")
                self._migrate(connection)
            connection.execute("PRAGMA synchronous = NORMAL")
            yield connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            version = _read_version(connection)  # another process may have been faster
            if version > len(MIGRATIONS):
                raise NewerIndex(
                    f"{self.path.name} has schema {version} of a newer naiad; this one knows {len(MIGRATIONS)}"
                )
            for statements in MIGRATIONS[version:]:
                for statement in statements:
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        self.is_new = self.is_new or version == 0


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether an error means that the file's content is damaged."""
    code = getattr(error, "sqlite_errorcode", 0)  # errors of the module itself have none
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _build_damage(reason: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(reason)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _read_version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return version


def _create_file(path: Path) -> None:
    """Create an empty file that only its owner can read, unless there is one; SQLite would let others read it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise sqlite3.OperationalError(error.strerror) from None
