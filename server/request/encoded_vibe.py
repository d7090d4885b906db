"""The bytes that `/ai/encode-vibe` returns, and that clients send instead of a reference image.

They hold the image's tokens, the adapter that these are for, and a code that only this server can compute:

    magic | length of the header, 2 bytes | header, JSON | tokens, float32 | HMAC-SHA256 of all before
"""

import hmac
import json
from hashlib import sha256

from pipelines.job import EncodedVibe
from server.engine.model import ServedModel, ServedVibe
from server.errors import Rejected

MAGIC = b"naiad vibe 1\n"
CODE_BYTES = sha256().digest_size
VALUE_BYTES = 4


def is_encoded_vibe(data: bytes) -> bool:
    """Return whether a file begins like an encoded vibe."""
    return data.startswith(MAGIC)


def pack_vibe(vibe: EncodedVibe, model: ServedModel, secret: bytes) -> bytes:
    """Return a vibe that was encoded by a model's image adapter as bytes."""
    header = json.dumps({
        "adapter": _get_adapter(model).hash,
        "model": model.id,
        "information_extracted": vibe.information_extracted,
    }).encode()  # fmt: skip
    content = MAGIC + len(header).to_bytes(2, "big") + header + vibe.values
    return content + hmac.digest(secret, content, "sha256")


def unpack_vibe(data: bytes, field: str, model: ServedModel, secret: bytes) -> EncodedVibe:
    """Return the encoded vibe in bytes; `field` is the name of the field in error messages.

    Raises:
        Rejected: the bytes are not this server's, or are for another image adapter.
    """
    served = _get_adapter(model)
    content, code = data[:-CODE_BYTES], data[-CODE_BYTES:]
    if not hmac.compare_digest(hmac.digest(secret, content, "sha256"), code):
        reason = "encoded by another server, or damaged; encode the image again at /ai/encode-vibe"
        raise Rejected(field, reason)
    start = len(MAGIC) + 2
    end = start + int.from_bytes(content[len(MAGIC) : start], "big")
    header = json.loads(content[start:end])
    values = content[end:]
    if header["adapter"] != served.hash or len(values) != VALUE_BYTES * served.count * served.width:
        reason = f"encoded for the model {header['model']!r} with another image adapter"
        raise Rejected(field, f"{reason}; encode the image again for {model.id!r} at /ai/encode-vibe")
    return EncodedVibe(served.count, served.width, values, header["information_extracted"])


def _get_adapter(model: ServedModel) -> ServedVibe:
    if model.vibe is None:
        raise ValueError(f"{model.id} has no image adapter")
    return model.vibe
