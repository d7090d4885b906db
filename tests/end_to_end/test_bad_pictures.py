"""Invalid, hostile and unusual images sent to a server: its responses, and that it keeps running.

The numbers continue those of test_bad_inputs.py.
"""

import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from base64 import b64encode

import httpx
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from server.picture.stealth import MAGIC

NO_TLS = False  # for `verify`: httpx would otherwise read all certificates for every request
PIXELS = np.random.default_rng(8).integers(0, 256, (64, 64, 3), np.uint8)
IMAGE = Image.fromarray(PIXELS)
HALF_MASK = Image.fromarray(np.repeat([[0] * 32 + [255] * 32], 64, axis=0).astype(np.uint8))
PARAMETERS = {"width": 64, "height": 64, "steps": 1, "seed": 7, "strength": 0.5}


def encode_file(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def encode_base64(data):
    return b64encode(data).decode()


def to_base64(image, kind="PNG", **options):
    return encode_base64(encode_file(image, kind, **options))


PNG = encode_file(IMAGE)
VALID = encode_base64(PNG)


def make_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def insert_chunks(chunks):
    """The PNG with these chunks after its header."""
    return PNG[:33] + chunks + PNG[33:]


def make_bomb():
    """A PNG of 50 kilobytes whose header says 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(50_000_000), 9)
    return PNG[:8] + make_chunk(b"IHDR", header) + make_chunk(b"IDAT", body) + make_chunk(b"IEND", b"")


def make_false_stealth():
    """An image whose alpha announces a quarter of a gigabyte of hidden text."""
    stream = MAGIC + (2**31).to_bytes(4, "big") + bytes(20)
    rgba = np.dstack([np.tile(PIXELS, (2, 2, 1)), np.full((128, 128), 255, np.uint8)])
    bits = np.unpackbits(np.frombuffer(stream, np.uint8))
    rgba[: len(bits) % 128 or 128, 0, 3] = 255
    flat = rgba[:, :, 3].T.reshape(-1).copy()
    flat[: len(bits)] = 254 + bits
    rgba[:, :, 3] = flat.reshape(128, 128).T
    return encode_file(Image.fromarray(rgba))


def make_polyglot():
    """A file that is both a PNG and a ZIP."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("image_0.png", b"not this one")
    return PNG + archive.getvalue()


def make_text_chunks(keyword, count):
    return b"".join(make_chunk(b"tEXt", keyword % number + b"\0x") for number in range(count))


def send(server, path="/ai/generate-image", **fields):
    body = fields if path == "/ai/upscale" else {"input": "cat", "parameters": PARAMETERS | fields}
    return httpx.post(server + path, json=body, headers={"Accept": "image/png"}, timeout=60, verify=NO_TLS)


def error_message(response, status=400):
    assert response.status_code == status, response.content[:200]
    error = response.json()
    assert set(error) == {"statusCode", "message"}
    assert len(response.content) < 400
    for word in ("PIL", "cannot identify", "Traceback", ".py", "BytesIO", "/tmp"):
        assert word not in error["message"]
    return error["message"]


def open_response(response):
    assert response.status_code == 200, response.content[:300]
    return Image.open(io.BytesIO(response.content))


@pytest.fixture(scope="module")
def reference(server):
    return np.asarray(open_response(send(server, image=VALID)).convert("RGB"))


@pytest.fixture(autouse=True)
def stays_alive(server, reference):
    yield
    assert httpx.get(f"{server}/live", timeout=60, verify=NO_TLS).json() == {"status": "alive"}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        pytest.param("nö", "parameters.image: not Base64", id="34 not Base64"),
        pytest.param(VALID[:1], "parameters.image: not Base64", id="34 one letter"),
        pytest.param(5, "parameters.image: not a string", id="34 a number"),
        pytest.param(encode_base64(PNG[: len(PNG) // 2]), "could not be read to its end", id="35 half an image"),
        pytest.param(encode_base64(PNG[:20]), "parameters.image: ", id="35 half a header"),
        pytest.param(encode_base64(make_bomb()), "more than 33554432 pixels", id="36 100,000 x 100,000"),
        pytest.param(
            encode_base64(insert_chunks(make_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9)))),
            "unpack to more than 67108864 bytes",
            id="37 a text that unpacks to 200 MB",
        ),
        pytest.param(
            encode_base64(insert_chunks(make_text_chunks(b"a%d", 100_000))), "more than 1000 text chunks", id="37 100,000 texts"
        ),
        pytest.param(to_base64(IMAGE, "GIF"), "not a PNG, WebP or JPEG", id="38 a GIF"),
        pytest.param(to_base64(IMAGE, "TIFF"), "not a PNG, WebP or JPEG", id="39 a TIFF"),
        pytest.param(to_base64(IMAGE, "ICO"), "not a PNG, WebP or JPEG", id="39 an ICO"),
        pytest.param(encode_base64(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not a PNG, WebP or JPEG", id="39 an SVG"),
        pytest.param(encode_base64(b"8BPS\0\1" + bytes(60)), "not a PNG, WebP or JPEG", id="39 a PSD"),
        pytest.param("http://169.254.169.254/latest/meta-data", "URLs are not fetched", id="45 http"),
        pytest.param("file:///etc/passwd", "URLs are not fetched", id="45 file"),
    ],
)  # fmt: skip
def test_an_invalid_image_gets_our_own_error_message(server, image, message):
    assert message in error_message(send(server, image=image))


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(VALID.rstrip("="), id="34 no padding"),
        pytest.param("\n".join(VALID[start : start + 76] for start in range(0, len(VALID), 76)), id="34 lines"),
        pytest.param(f"data:image/png;base64,{VALID}", id="34 a data URI"),
        pytest.param(to_base64(IMAGE, "PNG", save_all=True, append_images=[HALF_MASK.convert("RGB")]), id="38 APNG"),
        pytest.param(
            to_base64(IMAGE, "WEBP", save_all=True, append_images=[HALF_MASK.convert("RGB")], lossless=True),
            id="38 WebP",
        ),
        pytest.param(to_base64(IMAGE.convert("RGBA")), id="40 RGBA"),
        pytest.param(encode_base64(make_polyglot()), id="47 a ZIP after it"),
    ],
)  # fmt: skip
def test_the_same_image_sent_differently_gives_the_same_result(server, reference, image):
    assert (np.asarray(open_response(send(server, image=image)).convert("RGB")) == reference).all()


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.new("1", (64, 64), 1), id="40 one bit"),
        pytest.param(IMAGE.convert("P"), id="40 palette"),
        pytest.param(IMAGE.convert("L"), id="40 gray"),
        pytest.param(IMAGE.convert("LA"), id="40 gray and alpha"),
        pytest.param(Image.fromarray(np.full((64, 64), 40_000, np.uint16)), id="40 16 bits"),
        pytest.param(Image.new("RGB", (1, 1), "red"), id="41 1x1"),
        pytest.param(Image.new("RGB", (1, 10_000), "red"), id="41 a strip"),
    ],
)
def test_every_mode_and_size_works_and_repeats(server, image):
    one, other = (np.asarray(open_response(send(server, image=to_base64(image)))) for _ in range(2))
    assert one.shape == (64, 64, 4)
    assert (one[..., :3] == other[..., :3]).all()


@pytest.mark.parametrize(
    ("mask", "changed"),
    [
        pytest.param(HALF_MASK, 32, id="42 gray"),
        pytest.param(HALF_MASK.convert("RGB"), 32, id="42 RGB"),
        pytest.param(HALF_MASK.resize((16, 16), Image.Resampling.NEAREST), 32, id="42 of another size"),
        pytest.param(HALF_MASK.convert("1"), 32, id="42 one bit"),
        pytest.param(Image.new("L", (1, 1), 255), 64, id="41 one white pixel"),
        pytest.param(Image.new("L", (64, 64), 255), 64, id="42 all white"),
    ],
)
def test_a_mask_changes_only_its_white_part(server, mask, changed):
    response = send(server, image=VALID, mask=to_base64(mask), overlay="hard")
    result = np.asarray(open_response(response).convert("RGB"))
    assert (result[:, : 64 - changed] == PIXELS[:, : 64 - changed]).all()
    assert (result[:, 64 - changed :] != PIXELS[:, 64 - changed :]).any()


def test_42_jpeg_noise_does_not_change_the_mask(server):
    png, jpeg = (
        send(server, image=VALID, mask=to_base64(HALF_MASK, kind), overlay="hard") for kind in ("PNG", "JPEG")
    )
    assert (
        np.asarray(open_response(png).convert("RGB")) == np.asarray(open_response(jpeg).convert("RGB"))
    ).all()


def test_42_a_black_mask_is_refused(server):
    black = to_base64(Image.new("L", (64, 64)))
    assert "parameters.mask: black everywhere" in error_message(send(server, image=VALID, mask=black))


@pytest.mark.parametrize(
    "fields", [{"action": "infill"}, {"action": "infill", "mask": VALID}, {"action": "img2img"}]
)
def test_27_an_action_without_its_images_is_refused(server, fields):
    body = {"input": "cat", "action": fields.pop("action"), "parameters": PARAMETERS | fields}
    response = httpx.post(f"{server}/ai/generate-image", json=body, timeout=60, verify=NO_TLS)
    assert "needs an image" in error_message(response)


@pytest.mark.parametrize(
    ("field", "value"),
    [("strength", 1.01), ("strength", -0.1), ("noise", 2), ("strength", "much"), ("extra_noise_seed", 0.5)],
)
def test_28_values_out_of_range_are_refused_only_with_an_image(server, field, value):
    assert f"parameters.{field}: " in error_message(send(server, image=VALID, **{field: value}))
    assert send(server, **{field: value}).status_code == 200


def test_43_a_false_length_in_the_alpha_is_ignored(server):
    response = send(server, "/ai/upscale", image=encode_base64(make_false_stealth()))
    assert set(json.loads(open_response(response).info["Comment"])["derived_from"]) == {"pixels"}


def test_44_too_much_data_is_refused_before_it_is_read(server):
    vibes = [VALID] * 20
    assert "no image adapter" in error_message(send(server, reference_image_multiple=vibes))
    assert error_message(send(server, reference_image_multiple=["A" * 10_000_000] * 20), 413)


def test_46_an_invalid_vibe_is_refused(server):
    assert "no image adapter" in error_message(send(server, reference_image_multiple=["AAAA"]))


def test_47_a_polyglot_is_upscaled_as_a_png(server):
    assert open_response(send(server, "/ai/upscale", image=encode_base64(make_polyglot()))).size == (128, 128)


def test_36_an_image_that_is_too_large_is_not_decompressed():
    """Compare the peak memory of a process that reads the bomb with that of one that reads a small image."""
    code = (
        "import re, sys; from pathlib import Path\n"
        "from server.errors import Rejected; from server.request.images import read_image\n"
        "try: read_image(sys.stdin.read(), 'image', 64, 64)\n"
        "except Rejected: pass\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1])"
    )  # ru_maxrss would be this process's, if that is larger
    small, large = (
        int(subprocess.run([sys.executable, "-P", "-c", code], input=text, capture_output=True, text=True, check=True).stdout)
        for text in (VALID, encode_base64(make_bomb()))
    )  # fmt: skip
    assert large - small < 20_000  # kilobytes; decompressed it would be 30 gigabytes


def test_the_server_still_generates_the_same_image(server, reference):
    assert (np.asarray(open_response(send(server, image=VALID)).convert("RGB")) == reference).all()
    metadata = PngInfo()
    metadata.add_text("Comment", "{")
    image = to_base64(IMAGE, pnginfo=metadata)
    assert open_response(send(server, "/ai/upscale", image=image)).size == (128, 128)
