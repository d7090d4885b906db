"""Ed25519 signatures as NAI writes them, made with the operator's own key.

What is signed is the RGB bytes followed by the Comment as `json.dumps` writes it; the signature becomes the Comment's
last key. NovelAI's own verifiers read it, given our key instead of theirs.
"""

import json
import logging
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from pipelines.types import Pixels
from server.config.settings import ConfigError

log = logging.getLogger("naiad")
NOVELAI_KEY = "Y2JcQAOhLwzwSDUJPNgL04nS0Tbqm7cSRc4xk0vRMic="
"""NovelAI's public key, as its own verifier holds it."""
SIGNED_HASH = "signed_hash"
LONGEST_KEY = 1 << 16
"""Bytes; far more than a key file has."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key pair; only its public half can be read from it."""

    private: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> str:
        """Base64 of the public key's 32 bytes."""
        return b64encode(self.private.public_key().public_bytes_raw()).decode()

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of a signature."""
        return self.private.sign(message)


def open_key(path: Path) -> SigningKey:
    """The key in a file, which is made when there is none; of several processes starting at once one makes it.

    Raises:
        ConfigError: the file cannot be read or made, or holds no Ed25519 key.
    """
    found = read_key(path)
    if found is None:
        _make(path)
        found = read_key(path)
    if found is None:
        raise ConfigError(
            f"signing_key: {path} is a link to nowhere; remove it, or set signing_key to another file"
        )
    return found


def read_key(path: Path) -> SigningKey | None:
    """The key in a PKCS8 PEM file, or None when there is no file.

    Raises:
        ConfigError: the file cannot be read, or holds no Ed25519 key.
    """
    try:
        with path.open("rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(LONGEST_KEY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"signing_key: {path} cannot be read ({error.strerror}); "
            "let the server read it, or set signing_key to another file"
        ) from None
    if os.name == "posix" and mode & 0o077:
        log.warning("others can read the signing key %s; chmod 600 keeps it yours", path)
    return SigningKey(_parsed(path, content))


def _parsed(path: Path, content: bytes) -> Ed25519PrivateKey:
    try:
        found = load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it wants a password
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise ConfigError(
            f"signing_key: {path} holds no Ed25519 key (PKCS8 PEM, no password); "
            "move it away to have a new one made, or set signing_key to another file"
        )
    return found


def _make(path: Path) -> None:
    """Write a new key beside the path and link it there whole; whoever was first has made the key."""
    content = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".signing-") as folder:
            fresh = Path(folder) / path.name
            fresh.touch(0o600)
            fresh.write_bytes(content)
            path.hardlink_to(fresh)
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigError(
            f"signing_key: {path} cannot be made ({error.strerror}); "
            "let the server write there, or set signing_key to another file"
        ) from None
    log.info("made the signing key %s", path)


def sign_comment(rgb: Pixels, comment: Mapping[str, object], key: SigningKey) -> dict[str, object]:
    """A Comment with the signature over it and its picture as the last key (reference: metadata, 4.1)."""
    signature = key.sign(_message(rgb, json.dumps(comment, allow_nan=False)))
    return {**comment, SIGNED_HASH: b64encode(signature).decode()}


def verify_comment(rgb: Pixels, comment_text: str, key: str) -> bool:
    """Whether a Comment as it stands in a file was signed with this picture, by the key of this Base64.

    Whatever a stranger may have written is answered, never raised.
    """
    try:
        comment = json.loads(comment_text)
        signature = b64decode(comment.pop(SIGNED_HASH), validate=True)
        public = Ed25519PublicKey.from_public_bytes(b64decode(key, validate=True))
        public.verify(signature, _message(rgb, json.dumps(comment)))
    except (InvalidSignature, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return True


def is_public_key(text: str) -> bool:
    """Whether a text is the Base64 of a public key's 32 bytes."""
    try:
        return len(b64decode(text, validate=True)) == 32
    except ValueError:
        return False


def _message(rgb: Pixels, comment_text: str) -> bytes:
    return b"".join((np.ascontiguousarray(rgb).data, comment_text.encode()))
