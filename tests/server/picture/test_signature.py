import json
import logging
import os
import stat
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import LIMIT

from server.config.settings import ConfigError
from server.picture import signature
from server.picture.signature import (
    NOVELAI_KEY,
    SigningKey,
    is_public_key,
    open_key,
    read_key,
    sign_comment,
    verify_comment,
)

KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
RGB = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
SIGNED = sign_comment(RGB, {"prompt": "caf\u00e9", "scale": 5.0}, KEY)
TEXT = json.dumps(SIGNED)
ANY_TEXT = st.text(st.characters(exclude_categories=()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)


def verify_independently(rgb, text, key):
    """NAI's verification, reimplemented from its description; raises InvalidSignature."""
    comment = json.loads(text)
    signature = b64decode(comment.pop("signed_hash"))
    message = bytes(rgb.reshape(-1).tolist()) + json.dumps(comment).encode()
    Ed25519PublicKey.from_public_bytes(b64decode(key)).verify(signature, message)


def encode_pem(key, password=None):
    encryption = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def test_a_fixed_key_image_and_comment_give_a_fixed_signature():
    assert KEY.public == "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
    assert list(SIGNED) == ["prompt", "scale", "signed_hash"]
    assert SIGNED["signed_hash"] == (
        "R7ul7q5J5t0/iGWxXcWdeU/7i7GnZAjAeCFiJ9U/RJalwVMSvCA/e9M1RJBnB13uZssX9QO3MXun8ZoqV0+VDQ=="
    )
    verify_independently(RGB, TEXT, KEY.public)


def test_a_signature_verifies_with_its_own_key_only():
    assert verify_comment(RGB, TEXT, KEY.public)
    assert not verify_comment(RGB, TEXT, NOVELAI_KEY)
    assert not verify_comment(RGB, TEXT, SigningKey(Ed25519PrivateKey.generate()).public)


def test_every_bit_of_every_pixel_is_covered():
    for index in range(RGB.size):
        changed = RGB.copy()
        changed.flat[index] ^= 1
        assert not verify_comment(changed, TEXT, KEY.public)


def test_the_comment_and_the_order_of_its_keys_are_covered():
    for changed in (TEXT.replace("5.0", "5.1"), TEXT.replace("5.0", "5"), TEXT.replace("caf", "Caf")):
        assert changed != TEXT
        assert not verify_comment(RGB, changed, KEY.public)
    assert not verify_comment(RGB, json.dumps(dict(reversed(SIGNED.items()))), KEY.public)


def test_whitespace_and_escapes_are_not_covered():
    assert verify_comment(RGB, json.dumps(SIGNED, indent=2, ensure_ascii=False), KEY.public)


def test_an_array_that_is_not_contiguous_has_the_same_signature():
    wide = np.zeros((2, 4, 3), np.uint8)
    wide[:, ::2] = RGB
    assert sign_comment(wide[:, ::2], {"a": 1}, KEY) == sign_comment(RGB, {"a": 1}, KEY)


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_json_lacks_are_not_signed(number):
    with pytest.raises(ValueError, match="JSON"):
        sign_comment(RGB, {"scale": number}, KEY)


@given(st.dictionaries(ANY_TEXT.filter(lambda key: key != "signed_hash"), JSON, max_size=4))
def test_any_json_object_is_signed_and_verified(comment):
    text = json.dumps(sign_comment(RGB, comment, KEY))
    verify_independently(RGB, text, KEY.public)
    assert verify_comment(RGB, text, KEY.public)
    with pytest.raises(InvalidSignature):
        verify_independently(RGB ^ 1, text, KEY.public)


@given(JSON.map(json.dumps) | ANY_TEXT, ANY_TEXT)
def test_arbitrary_text_is_false_not_an_error(text, key):
    assert verify_comment(RGB, text, key) is False
    assert verify_comment(RGB, text, KEY.public) is False


@pytest.mark.parametrize(
    "value",
    [None, 1, [], {}, "", "AAAA", "\u00e9", "A" * 87 + "\n", b64encode(bytes(64)).decode(), "A" * 1_000_001],
    ids=repr,
)
def test_a_malformed_signature_is_false_not_an_error(value):
    assert not verify_comment(RGB, json.dumps(SIGNED | {"signed_hash": value}), KEY.public)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, "NaN", "", "\0", '{"signed_hash"']
)
def test_deep_and_long_texts_are_false_not_an_error(text):
    assert not verify_comment(RGB, text, KEY.public)
    assert not verify_comment(RGB, f'{{"a": {text}, "signed_hash": "{SIGNED["signed_hash"]}"}}', KEY.public)


@pytest.mark.parametrize("key", ["", "AAAA", NOVELAI_KEY + "\n", NOVELAI_KEY[:-1], "\u00e9", "A" * 43 + "*"])
def test_a_malformed_key_verifies_nothing(key):
    assert not is_public_key(key)
    assert not verify_comment(RGB, TEXT, key)


def test_real_public_keys_are_recognized():
    assert is_public_key(KEY.public)
    assert is_public_key(NOVELAI_KEY)


def test_a_key_is_created_once_and_readable_by_its_owner_only(tmp_path):
    path = tmp_path / "new" / "folder" / "signing.pem"
    assert read_key(path) is None
    assert not path.parent.exists()
    created = open_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    reread = read_key(path)
    assert reread is not None
    assert open_key(path).public == reread.public == created.public
    assert open_key(tmp_path / "other.pem").public != created.public


@pytest.fixture
def slow_writers(monkeypatch):
    """Wait for a key that is being written for as long as a busy machine takes."""
    monkeypatch.setattr(signature, "WRITE_SECONDS", LIMIT)


@pytest.fixture
def no_writers(monkeypatch):
    """Wait for no key that is being written."""
    monkeypatch.setattr(signature, "WRITE_SECONDS", 0)


@pytest.mark.usefixtures("slow_writers")
def test_one_of_several_concurrent_starts_creates_the_key_for_all(tmp_path, caplog):
    caplog.set_level(logging.INFO, "naiad")
    for attempt in range(5):
        barrier = Barrier(8)

        def start(path=tmp_path / f"{attempt}.pem", barrier=barrier):
            barrier.wait()
            return open_key(path).public

        with ThreadPoolExecutor(8) as pool:
            keys = [future.result() for future in [pool.submit(start) for _ in range(8)]]
        assert len(set(keys)) == 1
    assert len(list(tmp_path.iterdir())) == 5
    assert caplog.text.count("created the signing key") == 5


def test_repr_hides_the_private_key(tmp_path):
    key = open_key(tmp_path / "signing.pem")
    assert "private" not in repr(key).lower()


@pytest.mark.usefixtures("no_writers")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\xff" * 100_000,
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        encode_pem(generate_private_key(SECP256R1())),
        encode_pem(Ed25519PrivateKey.generate(), b"password"),
    ],
    ids=["empty", "binary", "short", "another type", "encrypted"],
)
def test_a_file_without_a_key_is_rejected_and_kept(tmp_path, content):
    path = tmp_path / "signing.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="Ed25519") as error:
        open_key(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == content


@pytest.mark.usefixtures("no_writers")
def test_a_folder_or_a_broken_link_as_key_file_is_rejected(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, message in ((tmp_path, "not a regular file"), (tmp_path / "link", "broken link")):
        with pytest.raises(ConfigError, match=message) as error:
            open_key(path)
        assert str(path) in str(error.value)
    with pytest.raises(ConfigError, match="signing_key"):
        open_key(tmp_path / "file" / "signing.pem")


def test_an_unreadable_key_is_reported_and_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "signing.pem"
    open_key(path)
    before = path.read_bytes()

    def deny(self, mode):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.open", deny)  # root, as in a container, ignores file permissions
        with pytest.raises(ConfigError, match=r"cannot be read \(Permission denied\)") as error:
            open_key(path)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before


def refuse_links(self, target):
    raise PermissionError(1, "Operation not permitted")


@pytest.mark.usefixtures("slow_writers")
def test_a_key_is_created_on_storage_without_hard_links(tmp_path, monkeypatch):
    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse_links)
    path = tmp_path / "signing.pem"
    with ThreadPoolExecutor(8) as pool:
        keys = {key.public for key in pool.map(open_key, [path] * 8)}
    assert len(keys) == 1
    assert list(tmp_path.iterdir()) == [path]
    assert os.name != "posix" or path.stat().st_mode & 0o777 == 0o600


def test_half_a_key_of_another_process_is_waited_for(tmp_path, monkeypatch):
    open_key(tmp_path / "other.pem")
    content, path = (tmp_path / "other.pem").read_bytes(), tmp_path / "signing.pem"
    path.write_bytes(content[:50])
    monkeypatch.setattr(signature, "sleep", lambda _: path.write_bytes(content))
    assert open_key(path).public == open_key(tmp_path / "other.pem").public


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    for path in (Path("/proc/naiad/signing.pem"), tmp_path / "file" / "signing.pem"):
        with pytest.raises(ConfigError, match="signing_key") as error:
            open_key(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("path", ["~/.config/naiad/signing.pem", "/data/~/signing.pem"])
def test_no_folder_named_tilde_is_created(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no HOME.*set signing_key, or NAIAD_SIGNING_KEY"):
        open_key(Path(path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX only")
@pytest.mark.parametrize(
    ("mode", "is_warned"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)]
)
def test_a_key_readable_by_others_logs_a_warning(tmp_path, caplog, mode, is_warned):
    path = tmp_path / "signing.pem"
    open_key(path)
    path.chmod(mode)
    with caplog.at_level(logging.WARNING, "naiad"):
        open_key(path)
    assert (str(path) in caplog.text) is is_warned


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 40))
def test_images_of_any_size_are_signed(height, width):
    rgb = np.random.default_rng(height * 41 + width).integers(0, 256, (height, width, 3), np.uint8)
    text = json.dumps(sign_comment(rgb, {"prompt": ""}, KEY))
    verify_independently(rgb, text, KEY.public)
    assert verify_comment(rgb, text, KEY.public)


@pytest.mark.usefixtures("no_writers")
@pytest.mark.skipif(os.name != "posix", reason="named pipes")
def test_a_pipe_as_key_file_is_rejected_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "key.pem")
    with pytest.raises(ConfigError, match=r"key\.pem is not a regular file; remove it"):
        open_key(tmp_path / "key.pem")
