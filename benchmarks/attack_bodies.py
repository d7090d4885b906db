"""Hostile requests as bytes, for `attacks`."""

import json
import struct
import zlib
from base64 import b64encode
from io import BytesIO

import numpy as np
from PIL import Image

SIDE = 5792
"""Side of the largest image that is read: 33,547,264 pixels."""


def build_request(
    path: str, body: bytes, length: int | None = None, media_type: str = "application/json"
) -> bytes:
    """Return a POST whose client asks to close the connection; `length` is that of a body that follows."""
    size = len(body) if length is None else length
    lines = (
        f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close",
        f"Content-Type: {media_type}", f"Content-Length: {size}",
    )  # fmt: skip
    return "\r\n".join((*lines, "", "")).encode() + body


def build_picture_request(side: int = 64, steps: int = 2) -> bytes:
    """Return a valid request for a picture."""
    body = {"input": "cat", "parameters": {"width": side, "height": side, "steps": steps, "seed": 1}}
    return build_request("/ai/generate-image", json.dumps(body).encode())


def build_json_request(piece: bytes, size: int, path: str = "/ai/generate-image") -> tuple[bytes, bytes]:
    """Return head and body of a request that is mostly one repeated piece: in the image, if it is of letters."""
    content = piece * (size // len(piece))
    is_text = piece.strip(b" ").isalpha()
    image = b'"image":"%s"' % content if is_text else b'"width":64'
    junk = b"" if is_text else b',"junk":[%s1]' % content
    body = b'{"input":"cat","action":"img2img","parameters":{%s,"steps":1%s}}' % (image, junk)
    return build_request(path, b"", len(body)), body


def build_form(piece: bytes, size: int) -> bytes:
    """Return a multipart form whose one part is a repeated piece."""
    opening = b'--line\r\nContent-Disposition: form-data; name="request"\r\n\r\n'
    content = opening + piece * (size // len(piece)) + b"\r\n--line--\r\n"
    return build_request("/ai/generate-image", content, media_type="multipart/form-data; boundary=line")


def build_image_request(
    file: bytes | None, padding: int = 0, junk: bytes = b"0", upscale: float | None = None
) -> bytes:
    """Return an img2img request, by default with a small image; the body also has padding and additional JSON."""
    if file is None:
        shape = (64, 64, 3) if upscale is None else (1024, 1024, 3)
        file = encode(Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, np.uint8)), "PNG")
    image = b64encode(file)
    if upscale is not None:
        return build_request("/ai/upscale", b'{"image":"%s","scale":%f}' % (image, upscale))
    parameters = b'{"width":64,"height":64,"steps":1,"image":"%s"}' % image
    rest = b'"padding":"%s","junk":%s' % (b"A" * padding, junk)
    body = b'{"input":"cat","action":"img2img","parameters":%s,%s}' % (parameters, rest)
    return build_request("/ai/generate-image", body)


def encode(image: Image.Image, image_format: str, **options: object) -> bytes:
    """Return an image file."""
    file = BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def build_scans(count: int) -> bytes:
    """Return a progressive JPEG of the largest size with this many further scans, of 72 bytes or so each."""
    file = encode(Image.new("L", (SIDE, SIDE)), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    return file[:last] + file[last:-2] * count + b"\xff\xd9"


def build_deep_png() -> bytes:
    """Return an RGBA PNG of the largest size with 16 bits a channel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    packer, row = zlib.compressobj(1), b"\0" + bytes(8 * SIDE)
    data = b"".join(packer.compress(row) for _ in range(SIDE)) + packer.flush()
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def build_chunks(count: int) -> bytes:
    """Return a request whose body arrives in this many chunks of one byte."""
    head = build_request("/ai/generate-image", b"").replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked"
    )
    return head + b"1\r\n \r\n" * count + b"2\r\n{}\r\n0\r\n\r\n"
