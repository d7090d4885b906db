"""The index of archived pictures: a SQLite file next to them, which several processes may use at the same time.

Each call opens the file, so that a process notices when another one has replaced it.
"""

import os
import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal, TypeAlias

from server.archive.files import hold_lock
from server.archive.records import PictureRecord

Condition: TypeAlias = tuple[str, tuple[object, ...]]
"""A condition in SQL, and the values of its marks."""
BUSY_SECONDS = 10.0
"""For which a process waits for another one's change."""
NAME = "naiad-index.sqlite"
COLUMNS = tuple(column.name for column in fields(PictureRecord))
SELECT = f"SELECT {', '.join(COLUMNS)} FROM pictures"  # noqa: S608
CREATE_WORDS = (
    "CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(prompt, tokenize = 'unicode61 remove_diacritics 2')"
)
ADD_WORDS = "INSERT INTO words (rowid, prompt) VALUES (?, ?)"
MATCHES = "number IN (SELECT rowid FROM words WHERE words MATCH ?)"
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
    ("CREATE INDEX pictures_by_owner ON pictures (owner, created, id)",),
)
"""The statements that lead from each version of the schema to the next one. Statements that were released stay."""


@dataclass(frozen=True, slots=True)
class PictureQuery:
    """What pictures are looked for; a condition that is None or empty holds for all.

    Attributes:
        words: that are all in the prompt.
        model: id or hash of the model.
        since, until: milliseconds since 1970; `until` is the first that is too late.
        owner: tag of the account.
        before: time and id of the picture after which the list continues, as it is sorted.
    """

    words: Sequence[str] = ()
    model: str = ""
    since: int | None = None
    until: int | None = None
    owner: str | None = None
    before: tuple[int, str] | None = None
    limit: int = 50


class NewerIndex(sqlite3.DatabaseError):
    """The index has a schema that this version of naiad does not know."""


class PictureIndex:
    """The index in an archive's folder. Its methods raise `sqlite3.Error`, and can be called on any thread.

    Attributes:
        is_new: whether the index has been created and not been filled; reset it before filling it.
        has_words: whether words are looked up in a full-text table, which some builds of SQLite lack.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.is_new = False
        self.has_words = has_full_text_search()

    def prepare(self) -> None:
        """Create the index if it is missing, and bring it to the current schema.

        Raises `NewerIndex` if another version of naiad has to read it.
        """
        with self._connect() as connection:
            self._migrate(connection)

    def find(self, query: PictureQuery) -> list[PictureRecord]:
        """Return the pictures that a query asks for, the newest first."""
        conditions = [*_build_conditions(query), *self._match_words(query.words)]
        where = " AND ".join(["TRUE", *(condition for condition, _ in conditions)])
        values = [value for _, marks in conditions for value in marks]
        select = f"{SELECT} WHERE {where} ORDER BY created DESC, id DESC LIMIT ?"
        with self._connect() as connection:
            return [PictureRecord(*row) for row in connection.execute(select, (*values, query.limit))]

    def get(self, id: str, owner: str | None) -> PictureRecord | None:
        """Return a picture, or None if there is none with this id, or it is another owner's."""
        with self._connect() as connection:
            row = connection.execute(f"{SELECT} WHERE id = ?", (id,)).fetchone()
        record = None if row is None else PictureRecord(*row)
        return record if record is not None and owner in (None, record.owner) else None

    def add(self, records: Iterable[PictureRecord]) -> None:
        """Add pictures; one with the id or the file of another one takes its place."""
        names, marks = ", ".join(COLUMNS), ", ".join("?" * len(COLUMNS))
        insert = f"INSERT INTO pictures ({names}) VALUES ({marks})"  # noqa: S608  # no value is in it
        with self._change() as connection:
            for record in records:
                self._delete(connection, "id", record.id)
                self._delete(connection, "file", record.file)
                number = connection.execute(insert, astuple(record)).lastrowid
                if self.has_words:
                    connection.execute(ADD_WORDS, (number, record.prompt))

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

    def _delete(self, connection: sqlite3.Connection, column: Literal["id", "file"], value: str) -> None:
        select = f"SELECT number FROM pictures WHERE {column} = ?"  # noqa: S608
        for (number,) in connection.execute(select, (value,)).fetchall():
            if self.has_words:
                connection.execute("DELETE FROM words WHERE rowid = ?", (number,))
            connection.execute("DELETE FROM pictures WHERE number = ?", (number,))

    def _match_words(self, words: Sequence[str]) -> list[Condition]:
        if self.has_words:
            return [(MATCHES, (" ".join(f'"{word}"' for word in words),))] if words else []
        return [("instr(lower(prompt), lower(?))", (word,)) for word in words]

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
            if self.has_words:
                _fill_words(connection)
        self.is_new = self.is_new or version == 0


def _build_conditions(query: PictureQuery) -> list[Condition]:
    """Return the conditions of a query, except for its words."""
    values = {
        "? IN (model, source)": query.model or None,
        "created >= ?": query.since,
        "created < ?": query.until,
        "owner = ?": query.owner,
    }
    conditions: list[Condition] = [(text, (value,)) for text, value in values.items() if value is not None]
    return conditions if query.before is None else [*conditions, ("(created, id) < (?, ?)", query.before)]


def _fill_words(connection: sqlite3.Connection) -> None:
    """Make the full-text table, or fill it again if a process without such tables has changed the index."""
    connection.execute(CREATE_WORDS)
    (pictures,) = connection.execute("SELECT count(*) FROM pictures").fetchone()
    (texts,) = connection.execute("SELECT count(*) FROM words_docsize").fetchone()
    if texts != pictures:
        connection.execute("DELETE FROM words")
        connection.execute("INSERT INTO words (rowid, prompt) SELECT number, prompt FROM pictures")


def has_full_text_search() -> bool:
    """Return whether this SQLite has the module FTS5."""
    with closing(sqlite3.connect(":memory:")) as connection:
        row = connection.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone()
    return row is not None


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
