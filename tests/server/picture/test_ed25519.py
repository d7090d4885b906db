"""Signatures as verifiers see them, and nonces that no two messages share."""

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from server.picture.ed25519 import make_signer

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = make_signer(KEY)
POINT = slice(32)
"""The half of a signature that shows the nonce."""


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300), st.binary(max_size=300))
def test_signatures_verify_with_the_public_key_and_for_their_message_only(seed, message, other):
    key = Ed25519PrivateKey.from_private_bytes(seed)
    signature = make_signer(key).sign((message,))
    key.public_key().verify(signature, message)
    if other != message:
        with pytest.raises(InvalidSignature):
            key.public_key().verify(signature, other)


@given(st.binary(max_size=300), st.integers(0, 300))
def test_parts_are_signed_as_one_message_and_always_alike(message, cut):
    assert SIGNER.sign((message[:cut], memoryview(message)[cut:])) == SIGNER.sign((message,))


def test_no_two_messages_share_a_nonce():
    pixels = bytes(range(256)) * 4
    messages = {pixels[:length] for length in range(0, 1024, 7)} | {bytes(length) for length in range(100)}
    for index in range(0, 8 * len(pixels), 31):
        changed = bytearray(pixels)
        changed[index // 8] ^= 1 << index % 8
        messages.add(bytes(changed))
    assert len({SIGNER.sign((message,))[POINT] for message in messages}) == len(messages)


def test_nonces_are_neither_those_of_other_keys_nor_of_plain_signatures():
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    points = {SIGNER.sign((b"a",))[POINT], make_signer(other).sign((b"a",))[POINT], KEY.sign(b"a")[POINT]}
    assert len(points) == 3
