"""`tokens.toml`: who may log in.

Clients derive an access key from e-mail address and password and log in with it: a listed key gets its token, any other
gets 401.
"""

from base64 import urlsafe_b64encode
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from pydantic import Field

from server.api.access import generate_token
from server.config.toml import StrictModel, read_toml, validate
from server.errors import Rejected, Unauthorized

Secret = Annotated[str, Field(pattern=r"^[!-~]{8,200}$")]


class Account(StrictModel):
    """An account: the access key that clients derive from e-mail address and password, and the token it gets."""

    name: str
    key: Secret
    token: Secret


class Accounts(StrictModel):
    """The accounts of a server."""

    account: tuple[Account, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of all accounts."""
        return tuple(account.token for account in self.account)


def load_accounts(file: Path) -> Accounts:
    """Read tokens.toml; raise `ConfigError` for an unknown key, or an access key or token in the wrong form."""
    return validate(Accounts, read_toml(file), str(file))


def choose_login_token(key: object, accounts: Accounts, needs_token: bool) -> str:
    """Return the token that a login with this access key gets.

    If the server needs no tokens, it is random and grants nothing; else an unknown key raises `Unauthorized`.
    """
    if not isinstance(key, str):
        raise Rejected("key", "is required: the access key derived from e-mail address and password")
    if not needs_token:
        return generate_token()
    sent = key.encode("utf-8", "replace")
    tokens = [account.token for account in accounts.account if compare_digest(sent, account.key.encode())]
    if not tokens:
        raise Unauthorized
    return tokens[0]


def derive_access_key(email: str, password: str) -> str:
    """Return the 64 characters that a client sends to `/user/login`. Capitals in the e-mail address count."""
    salt = blake2b(f"{password[:6]}{email}novelai_data_access_key".encode(), digest_size=16).digest()
    # 2,000,000 bytes, rounded down to KiB as clients do
    argon = Argon2id(salt=salt, length=64, iterations=2, lanes=1, memory_cost=2_000_000 // 1024)
    return urlsafe_b64encode(argon.derive(password.encode())).decode()[:64]
