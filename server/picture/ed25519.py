"""Ed25519 signatures of images, in little more than half the time of RFC 8032's procedure.

Most of the time goes into SHA-512 of megabytes of pixels, which the RFC (section 5.1.6) takes twice: for the challenge,
which verifiers compute too, and before that for the secret nonce. Of the nonce verifiers only see the point R that
belongs to it. All it has to be is secret, uniform and never the same for two messages, or the key could be computed
from their signatures. Here the message is reduced by Poly1305 first, and SHA-512 makes the nonce of the 16 bytes.

Poly1305's key may be used for one message only if its tags are shown. Here they are not, only SHA-512 of a tag and a
secret is used. So all that counts is that two messages hardly ever have the same tag: for an attacker who does not know
the key, two of n bytes do with a probability of n / 2^107 at most (Bernstein 2005, theorem 3.3), 2^-85 for 4 MB.
"""

import hmac
from collections.abc import Sequence
from hashlib import sha512

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.poly1305 import Poly1305

ORDER = 2**252 + 27742317777372353535851937790883648493
"""Order of the group that the points are in (RFC 8032, section 5.1)."""
TAG_PURPOSE, NONCE_PURPOSE = b"tags of image signatures", b"nonces of image signatures"


def sign(key: Ed25519PrivateKey, parts: Sequence[bytes | memoryview]) -> bytes:
    """Return the 64-byte signature of a message, which is given in parts so that it need not be copied.

    The same key and message always have the same signature.
    """
    tag = Poly1305(_derive(key, TAG_PURPOSE))
    for part in parts:
        tag.update(part)
    point, nonce = _make_nonce(key, tag.finalize())
    challenge = sha512(point + key.public_key().public_bytes_raw())
    for part in parts:
        challenge.update(part)
    scalar, _ = _expand(key)
    response = (nonce + int.from_bytes(challenge.digest(), "little") * scalar) % ORDER
    return point + response.to_bytes(32, "little")


def _make_nonce(key: Ed25519PrivateKey, tag: bytes) -> tuple[bytes, int]:
    """Return the nonce of a message with this tag, and before it the point R that belongs to it.

    R is the first half of a signature of the tag, so that the library multiplies the curve's point, in a time that does
    not depend on the nonce. That signature is made with a key of its own: if the image's key ever signed 16 bytes that
    are the tag of an image, the two signatures would have the same nonce.
    """
    nonce_key = Ed25519PrivateKey.from_private_bytes(_derive(key, NONCE_PURPOSE))
    _, prefix = _expand(nonce_key)
    nonce = int.from_bytes(sha512(prefix + tag).digest(), "little") % ORDER
    return nonce_key.sign(tag)[:32], nonce


def _derive(key: Ed25519PrivateKey, purpose: bytes) -> bytes:
    return hmac.digest(key.private_bytes_raw(), purpose, "sha256")


def _expand(key: Ed25519PrivateKey) -> tuple[int, bytes]:
    """Return a key's scalar, and the prefix from which the RFC makes nonces (RFC 8032, section 5.1.5)."""
    expanded = bytearray(sha512(key.private_bytes_raw()).digest())
    expanded[0] &= 0b1111_1000
    expanded[31] = expanded[31] & 0b0111_1111 | 0b0100_0000
    return int.from_bytes(expanded[:32], "little"), bytes(expanded[32:])
