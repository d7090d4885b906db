"""Edits of the accounts file that leave the rest of it, comments included, as it is.

A change is written to a new file, which then takes the name of the old one, so that a server never reads half of it.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from server.api.accounts import Account, Accounts, load_accounts
from server.config.toml import ConfigError, find_line, validate

HEAD = """\
# People who may use this server. `naiad token add NAME` adds a table, `naiad token revoke NAME` removes it.
# Only hashes of tokens are kept. A running server reads changes within seconds.
"""
Listed = tuple[Account, ...]


def append_account(path: Path, fields: Mapping[str, object]) -> None:
    """Add a table to the end of the file, which is created if it does not exist. None is left out of the table.

    Raises:
        ConfigError: the file is invalid, or has an account of that name.
    """
    values = {key: value for key, value in fields.items() if value is not None}
    added = validate(Account, values, "account")

    def append(text: str, accounts: Listed) -> tuple[str, Listed]:
        if any(account.name == added.name for account in accounts):
            raise ConfigError(
                f"{path}: {added.name!r} is listed already; revoke it first, or choose another name"
            )
        entries = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
        return "\n".join(((text or HEAD).rstrip("\n"), "", "[[account]]", *entries, "")), (*accounts, added)

    _rewrite(path, append)


def remove_account(path: Path, name: str) -> None:
    """Remove all tables of a name, with the comments right above them.

    Raises:
        ConfigError: the file is invalid, or has no account of that name.
    """

    def remove(text: str, accounts: Listed) -> tuple[str, Listed]:
        found = [index for index, account in enumerate(accounts) if account.name == name]
        if not found:
            names = ", ".join(dict.fromkeys(account.name for account in accounts)) or "nothing"
            raise ConfigError(f"{path}: {name!r} is not listed; it lists {names}")
        for index in reversed(found):
            text = _cut_table(text, index)
        return text, tuple(account for account in accounts if account.name != name)

    _rewrite(path, remove)


def _cut_table(text: str, index: int) -> str:
    lines = re.findall(r"[^\n]*\n|[^\n]+", text)
    begin, end = _find_start(text, lines, index), _find_start(text, lines, index + 1)
    stop = begin + 1
    for number in range(begin, end):
        if lines[number].strip() and not _is_comment(lines[number]):
            stop = number + 1  # behind the last statement
    while stop < end and _is_comment(lines[stop]):  # right below the table
        stop += 1
    while stop < end and not lines[stop].strip():
        stop += 1
    return "".join((*lines[:begin], *lines[stop:]))


def _find_start(text: str, lines: Sequence[str], index: int) -> int:
    """Return the index of a table's first line, or of the comments right above it; behind the last table, the end."""
    text = text.replace("\r\n", "\n")
    if index >= len(tomllib.loads(text)["account"]):
        return len(lines)
    start = (find_line(text, ("account", index)) or 1) - 1
    while start > 0 and _is_comment(lines[start - 1]):
        start -= 1
    return start


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith("#")


def _rewrite(path: Path, edit: Callable[[str, Listed], tuple[str, Listed]]) -> None:
    """Replace the file; `edit` takes its text and accounts, and returns the new text and the accounts meant by it.

    The new file has a fixed name, so that it keeps a second command from losing what this one writes.
    """
    path = path.resolve()  # a link stays a link
    if path.exists() and not path.is_file():  # a device such as /dev/null would be replaced for all programs
        raise ConfigError(f"{path}: not a regular file; name a file that may be replaced")
    new = path.with_name(f"{path.name}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{new} exists: another `naiad token` is running, or was killed; then delete it"
        ) from None
    except OSError as error:
        reason = f"{path}: its folder cannot be written ({error.strerror}); choose another with --tokens"
        raise ConfigError(reason) from None
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            accounts = load_accounts(path).account if path.exists() else ()
            text, expected = edit(path.read_bytes().decode("utf-8-sig") if path.exists() else "", accounts)
            if _parse(text) != expected:
                raise ConfigError(f"{path}: cannot be edited here unless each account is a table [[account]]")
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        _keep_access(path, new)
        new.replace(path)
    except BaseException as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        if isinstance(error, OSError):  # the disk is full, or the owner cannot be kept
            raise ConfigError(f"{path}: cannot be replaced ({error.strerror}); it is unchanged") from None
        raise


def _parse(text: str) -> Listed | None:
    try:
        return validate(Accounts, tomllib.loads(text), "account").account
    except ValueError:
        return None


def _keep_access(path: Path, new: Path) -> None:
    """Give the new file the owner and group of the old one, and its mode without access for others."""
    if not path.exists():
        return
    stat = path.stat()
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # or the server's user could no longer read it
        os.chown(new, stat.st_uid, stat.st_gid)
    new.chmod(stat.st_mode & 0o660)
