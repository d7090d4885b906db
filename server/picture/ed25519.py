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
from dataclasses import dataclass, field
from hashlib import sha512

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.poly1305 import Poly1305

ORDER = 2**252 + 27742317777372353535851937790883648493
"""Order of the group that the points are in (RFC 8032, section 5.1)."""
TAG_PURPOSE, NONCE_PURPOSE = b"tags of image signatures", b"nonces of image signatures"


@dataclass(frozen=True, slots=True)
class Signer:
    """What is derived from a key to sign with it.

    Attributes:
        public: the public key's 32 bytes.
        scalar: the number that the public key is the multiple of the curve's point by.
        tag_key: Poly1305's.
        nonce_key, nonce_prefix: a key of its own, and the prefix from which the RFC makes this key's nonces.
    """

    public: bytes
    scalar: int = field(repr=False)
    tag_key: bytes = field(repr=False)
    nonce_key: Ed25519PrivateKey = field(repr=False)
    nonce_prefix: bytes = field(repr=False)

    def sign(self, parts: Sequence[bytes | memoryview]) -> bytes:
        """Return the 64-byte signature of a message, which is given in parts so that it need not be copied.

        The same key and message always have the same signature.
        """
        tag = Poly1305(self.tag_key)
        for part in parts:
            tag.update(part)
        point, nonce = self._make_nonce(tag.finalize())
        challenge = sha512(point + self.public)
        for part in parts:
            challenge.update(part)
        response = (nonce + int.from_bytes(challenge.digest(), "little") * self.scalar) % ORDER
        return point + response.to_bytes(32, "little")

    def _make_nonce(self, tag: bytes) -> tuple[bytes, int]:
        """Return the nonce of a message with this tag, and before it the point R that belongs to it.

        R is the first half of a signature of the tag, so that the library multiplies the curve's point, in a time that
        does not depend on the nonce. That signature is made with a key of its own: if the image's key ever signed 16
        bytes that are the tag of an image, the two signatures would have the same nonce.
        """
        nonce = int.from_bytes(sha512(self.nonce_prefix + tag).digest(), "little") % ORDER
        return self.nonce_key.sign(tag)[:32], nonce


def make_signer(key: Ed25519PrivateKey) -> Signer:
    """Return what signs with a key."""
    seed = key.private_bytes_raw()
    nonce_seed = hmac.digest(seed, NONCE_PURPOSE, "sha256")
    scalar, _ = _expand(seed)
    _, nonce_prefix = _expand(nonce_seed)
    return Signer(
        public=key.public_key().public_bytes_raw(),
        scalar=scalar,
        tag_key=hmac.digest(seed, TAG_PURPOSE, "sha256"),
        nonce_key=Ed25519PrivateKey.from_private_bytes(nonce_seed),
        nonce_prefix=nonce_prefix,
    )


def _expand(seed: bytes) -> tuple[int, bytes]:
    """Return the scalar of a key with this seed, and the prefix of its nonces (RFC 8032, section 5.1.5)."""
    expanded = bytearray(sha512(seed).digest())
    expanded[0] &= 0b1111_1000
    expanded[31] = expanded[31] & 0b0111_1111 | 0b0100_0000
    return int.from_bytes(expanded[:32], "little"), bytes(expanded[32:])
