"""Ed25519 signatures in NAI's format, made with the operator's own key.

The message is the RGB bytes followed by the Comment as `json.dumps` writes it; the signature becomes the Comment's last
key. NovelAI's own verifiers accept it if they are given the operator's key instead of NovelAI's.
"""

import hmac
import json
import logging
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep, time

import numpy as np
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pipelines.types import Pixels
from server.config.settings import ConfigError

log = logging.getLogger("naiad")
NOVELAI_KEY = "Y2JcQAOhLwzwSDUJPNgL04nS0Tbqm7cSRc4xk0vRMic="
"""NovelAI's public key, as in its own verifier."""
SIGNED_HASH = "signed_hash"
SMALLEST_KEY = 100
"""Bytes; an Ed25519 key in PKCS8 PEM has 119."""
WRITE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key pair; the private half is left out of its `repr`."""

    private: Ed25519PrivateKey = field(repr=False)

    @property
    def public(self) -> str:
        """The public key's 32 bytes in Base64."""
        return b64encode(self.private.public_key().public_bytes_raw()).decode()

    def derive_secret(self, purpose: bytes) -> bytes:
        """Return 32 bytes that only the owner of the key can derive, others for each purpose."""
        return hmac.digest(self.private.private_bytes_raw(), purpose, "sha256")


def open_key(path: Path) -> SigningKey:
    """Return the key in a file, creating the file if it does not exist.

    If several processes start at the same time, one of them creates the key and all use it.

    Raises:
        ConfigError: the file cannot be read or created, or holds no Ed25519 key.
    """
    with suppress(OSError):  # a path that cannot be looked at is reported by `read_key`
        if not path.exists():
            _create_key(path)
    _wait_while_written(path)  # by this process or another one
    key = read_key(path)
    if key is None:
        raise ConfigError(
            f"signing_key: {path} is a broken link; remove it, or set signing_key to another file"
        )
    return key


def check_key_path(path: Path) -> None:
    """Raise `ConfigError` if a path has a `~` that stands for no folder, so that no key is created there."""
    if "~" in path.parts:
        raise ConfigError(
            f"signing_key: {path}: ~ stands for no folder here (no HOME, or ~ in a setting); "
            "set signing_key, or NAIAD_SIGNING_KEY, to an absolute path"
        )


def read_key(path: Path) -> SigningKey | None:
    """Return the key in a PKCS8 PEM file, or None if the file does not exist.

    Raises:
        ConfigError: the file cannot be read, or holds no Ed25519 key.
    """
    try:
        if path.exists() and not path.is_file():  # opening a named pipe would wait for its other end
            raise ConfigError(
                f"signing_key: {path} is not a regular file; remove it, or set signing_key to another file"
            )
        with path.open("rb") as file:
            mode, content = os.fstat(file.fileno()).st_mode, file.read(1 << 16)  # a real one is far smaller
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(
            f"signing_key: {path} cannot be read ({error.strerror}); "
            "give the server read permission, or set signing_key to another file"
        ) from None
    if os.name == "posix" and mode & 0o077:
        log.warning("other users can read the signing key %s; run chmod 600 on it", path)
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: the key has a password
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"signing_key: {path} holds no Ed25519 key (PKCS8 PEM, no password); "
            "move it away and a new key will be created, or set signing_key to another file"
        )
    return SigningKey(key)


def _create_key(path: Path) -> None:
    """Write a new key to a temporary folder and link it to the path.

    Linking is atomic: no process reads half a file, and if another process was first, its key stays.
    """
    check_key_path(path)
    content = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".signing-") as folder:
            file = Path(folder) / path.name
            _write_new_file(file, content)
            _link(file, path, content)
    except FileExistsError:
        return
    except OSError as error:
        raise ConfigError(
            f"signing_key: {path} cannot be created ({error.strerror}); give the server write permission there, "
            "or set signing_key, or NAIAD_SIGNING_KEY, to a file in a folder that it may write to"
        ) from None
    log.info("created the signing key %s", path)


def _link(file: Path, path: Path, content: bytes) -> None:
    """Make the file known by another path, which must not exist; on storage without hard links, write it there."""
    try:
        path.hardlink_to(file)
    except FileExistsError:
        raise
    except OSError:
        _write_new_file(path, content)


def _write_new_file(file: Path, content: bytes) -> None:
    """Write a file that only its owner may read; raise `FileExistsError` if it exists."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _wait_while_written(path: Path) -> None:
    """Wait while another process writes the key, which takes a moment on storage without hard links."""
    deadline = monotonic() + WRITE_SECONDS
    with suppress(OSError):
        while path.stat().st_size < SMALLEST_KEY and time() - path.stat().st_mtime < WRITE_SECONDS:
            if monotonic() > deadline:
                return
            sleep(0.02)


def sign_comment(rgb: Pixels, comment: Mapping[str, object], key: SigningKey) -> dict[str, object]:
    """Return the Comment with the signature of image and Comment as its last key (reference: metadata, 4.1)."""
    signature = key.private.sign(_build_message(rgb, json.dumps(comment, allow_nan=False)))
    return {**comment, SIGNED_HASH: b64encode(signature).decode()}


def verify_comment(rgb: Pixels, comment_text: str, key: str) -> bool:
    """Return whether a Comment, as written in a file, was signed with these pixels by a public key in Base64.

    The text is untrusted input: anything malformed is False, never an exception.
    """
    try:
        comment = json.loads(comment_text)
        signature = b64decode(comment.pop(SIGNED_HASH), validate=True)
        public = Ed25519PublicKey.from_public_bytes(b64decode(key, validate=True))
        public.verify(signature, _build_message(rgb, json.dumps(comment)))
    except (InvalidSignature, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False
    return True


def is_public_key(text: str) -> bool:
    """Return whether a text is 32 bytes in Base64, as a public key is."""
    try:
        return len(b64decode(text, validate=True)) == 32
    except ValueError:
        return False


def _build_message(rgb: Pixels, comment_text: str) -> bytes:
    return b"".join((np.ascontiguousarray(rgb).data, comment_text.encode()))
