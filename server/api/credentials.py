"""Tokens and access keys: made, derived and hashed.

Clients derive an access key from e-mail address and password and log in with it, so it is as good as the password and
is kept nowhere. The token that a login returns is derived from it, and the accounts file has that token's hash. A plain
SHA-256 suffices, because nothing that is hashed can be guessed: a token is 64 random characters, or derived from the
384 bits of an access key.
"""

import hmac
from base64 import urlsafe_b64encode
from hashlib import blake2b, sha256
from secrets import choice
from string import ascii_letters, digits

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

ALPHABET = ascii_letters + digits
LOGIN_TOKEN = b"naiad login token"


def generate_token() -> str:
    """Return a random token in NAI's own form, `pst-` and 64 letters or digits, which some clients check."""
    return "pst-" + "".join(choice(ALPHABET) for _ in range(64))


def hash_token(token: str) -> str:
    """Return `sha256:` and the hash of a token, as the accounts file has it."""
    return f"sha256:{sha256(token.encode('utf-8', 'replace')).hexdigest()}"


def read_bearer(authorization: str) -> str | None:
    """Return the token in an Authorization header, or None if the header has another scheme."""
    scheme, _, credentials = authorization.partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def derive_access_key(email: str, password: str) -> str:
    """Return the 64 characters that a client sends to `/user/login`. Capitals in the e-mail address count."""
    salt = blake2b(f"{password[:6]}{email}novelai_data_access_key".encode(), digest_size=16).digest()
    # 2,000,000 bytes, rounded down to KiB as clients do
    argon = Argon2id(salt=salt, length=64, iterations=2, lanes=1, memory_cost=2_000_000 // 1024)
    return urlsafe_b64encode(argon.derive(password.encode())).decode()[:64]


def derive_login_token(access_key: str) -> str:
    """Return the token that a login with an access key returns, in the form of `generate_token`.

    The access key cannot be computed from it.
    """
    digest = hmac.digest(access_key.encode("utf-8", "replace"), LOGIN_TOKEN, "sha512")
    return "pst-" + "".join(ALPHABET[byte % len(ALPHABET)] for byte in digest)  # 5.95 bits a character
