"""`tokens.toml`: the people who may use a server, their tokens and their limits."""

import logging
from collections.abc import Callable
from functools import cached_property
from hmac import compare_digest
from pathlib import Path
from time import monotonic
from typing import Annotated, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from server.api.credentials import derive_login_token, hash_token
from server.config.toml import ConfigError, StrictModel, read_toml, validate

log = logging.getLogger("naiad")
CHECK_SECONDS = 2.0
"""Seconds between checks of the file: a revoked token stops working after at most this time."""
PRIORITIES = 100
"""Highest priority; its negative is the lowest."""


def _wrap(value: object) -> object:
    """Return a text, or a list, as a tuple; anything else as it is."""
    return tuple(cast("list[object]", value)) if isinstance(value, list) else _wrap_text(value)


def _wrap_text(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _check_hash(text: str) -> str:
    digits = text.removeprefix("sha256:")
    if digits == text or len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise ValueError("should be sha256: and 64 hexadecimal digits, as `naiad token add` writes it")
    return text


Secret = Annotated[str, Field(pattern=r"^[!-~]{8,200}$")]
Hash = Annotated[str, AfterValidator(_check_hash)]
Priority = Annotated[int, Field(ge=-PRIORITIES, le=PRIORITIES)]


class Account(StrictModel):
    """An account; tables with the same name share what they have used.

    Attributes:
        token_hash: hashes of the account's tokens.
        token: a token in clear, the older form.
        key: an access key in clear, whose login returns `token`.
        limit: most images in a day (UTC).
        concurrency: most requests at a time.
        priority: of two waiting requests the one with the higher priority runs first.
    """

    name: str
    token_hash: Annotated[tuple[Hash, ...], BeforeValidator(_wrap)] = ()
    token: Secret | None = None
    key: Secret | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    concurrency: Annotated[int, Field(ge=1)] | None = None
    priority: Priority = 0

    @model_validator(mode="after")
    def _require_token(self) -> Self:
        if self.token is None and not self.token_hash:
            raise ValueError("needs a token_hash; `naiad token add` makes one")
        if self.token is None and self.key is not None:
            raise ValueError("key needs a token, which the login returns")
        return self

    @cached_property
    def hashes(self) -> tuple[str, ...]:
        """The hashes of all its tokens."""
        return (*self.token_hash, *(() if self.token is None else (hash_token(self.token),)))


class Accounts(StrictModel):
    """The accounts of a server."""

    account: tuple[Account, ...] = ()

    def find(self, token: str) -> Account | None:
        """Return the account of a token, or None. All hashes are compared, each in constant time."""
        sent = hash_token(token)
        matches = [each for each in self.account for known in each.hashes if compare_digest(sent, known)]
        return matches[0] if matches else None

    def find_login_token(self, access_key: str) -> str | None:
        """Return the token that a login with an access key gets, or None if no account has the key."""
        derived, sent = derive_login_token(access_key), access_key.encode("utf-8", "replace")
        in_clear = [each for each in self.account if each.key and compare_digest(sent, each.key.encode())]
        if self.find(derived) is not None:
            return derived
        return in_clear[0].token if in_clear else None


def load_accounts(file: Path) -> Accounts:
    """Read tokens.toml; raise `ConfigError` for an unknown key, or a value in the wrong form."""
    return validate(Accounts, read_toml(file), str(file))


class AccountsFile:
    """The accounts in a file. It is read again when it has changed; an invalid file changes nothing.

    Raises `ConfigError` if the file is invalid at the start.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = monotonic) -> None:
        self._path, self._clock = path, clock
        self._state, self._checked = _read_state(path), clock()
        self._accounts = load_accounts(path)

    def read(self) -> Accounts:
        """Return the accounts, after checking the file for changes at most every `CHECK_SECONDS`."""
        if self._clock() - self._checked >= CHECK_SECONDS:
            self._checked = self._clock()
            state, before = _read_state(self._path), self._state
            self._state = state
            if state != before:
                self._reload()
        return self._accounts

    def _reload(self) -> None:
        try:
            self._accounts = load_accounts(self._path)
        except ConfigError as error:
            log.error("the accounts stay as they were: %s", error)
        else:
            log.info("%s has changed: %d accounts", self._path, len(self._accounts.account))


def _read_state(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written or replaced, or None if the file is not accessible."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
