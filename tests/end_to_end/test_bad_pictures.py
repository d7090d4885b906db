"""Pictures that are wrong, hostile or odd, put to a real server: what each is answered, and that it serves on.

The numbers go on from those of test_bad_inputs.py.
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

PLAIN = False  # there is no TLS here, and httpx would read all certificates anew for every request
PIXELS = np.random.default_rng(8).integers(0, 256, (64, 64, 3), np.uint8)
OWN = Image.fromarray(PIXELS)
HALF = Image.fromarray(np.repeat([[0] * 32 + [255] * 32], 64, axis=0).astype(np.uint8))
DRAWS = {"width": 64, "height": 64, "steps": 1, "seed": 7, "strength": 0.5}


def file_of(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def text_of(data):
    return b64encode(data).decode()


PNG = file_of(OWN)
GOOD = text_of(PNG)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(chunks):
    """A PNG with more chunks behind its header."""
    return PNG[:33] + chunks + PNG[33:]


def huge():
    """50 kilobytes that claim to be 100,000 pixels wide and high."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(50_000_000), 9)
    return PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def lying_alpha():
    """A picture whose alpha claims to hide a quarter of a gigabyte."""
    stream = MAGIC + (2**31).to_bytes(4, "big") + bytes(20)
    rgba = np.dstack([np.tile(PIXELS, (2, 2, 1)), np.full((128, 128), 255, np.uint8)])
    bits = np.unpackbits(np.frombuffer(stream, np.uint8))
    rgba[: len(bits) % 128 or 128, 0, 3] = 255
    flat = rgba[:, :, 3].T.reshape(-1).copy()
    flat[: len(bits)] = 254 + bits
    rgba[:, :, 3] = flat.reshape(128, 128).T
    return file_of(Image.fromarray(rgba))


def polyglot():
    """A PNG that is a ZIP as well."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("image_0.png", b"not this one")
    return PNG + archive.getvalue()


def many(kind, count):
    return b"".join(chunk(b"tEXt", kind % number + b"\0x") for number in range(count))


def sent(server, path="/ai/generate-image", **fields):
    body = fields if path == "/ai/upscale" else {"input": "cat", "parameters": DRAWS | fields}
    return httpx.post(server + path, json=body, headers={"Accept": "image/png"}, timeout=60, verify=PLAIN)


def refusal(answer, status=400):
    assert answer.status_code == status, answer.content[:200]
    found = answer.json()
    assert set(found) == {"statusCode", "message"}
    assert len(answer.content) < 400
    for word in ("PIL", "cannot identify", "Traceback", ".py", "BytesIO", "/tmp"):
        assert word not in found["message"]
    return found["message"]


def opened(answer):
    assert answer.status_code == 200, answer.content[:300]
    return Image.open(io.BytesIO(answer.content))


@pytest.fixture(scope="module")
def reference(server):
    return np.asarray(opened(sent(server, image=GOOD)).convert("RGB"))


@pytest.fixture(autouse=True)
def lives_on(server, reference):
    yield
    assert httpx.get(f"{server}/live", verify=PLAIN).json() == {"status": "alive"}


@pytest.mark.parametrize(
    ("image", "said"),
    [
        pytest.param("nö", "parameters.image: not Base64", id="34 no Base64"),
        pytest.param(GOOD[:1], "parameters.image: not Base64", id="34 one letter"),
        pytest.param(5, "parameters.image: not a text", id="34 a number"),
        pytest.param(text_of(PNG[: len(PNG) // 2]), "could not be read to its end", id="35 half a picture"),
        pytest.param(text_of(PNG[:20]), "parameters.image: ", id="35 half a header"),
        pytest.param(text_of(huge()), "more than 33554432 pixels", id="36 100,000 x 100,000"),
        pytest.param(
            text_of(with_chunks(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 9)))),
            "a broken or unusual picture",
            id="37 a text that unpacks to 200 MB",
        ),
        pytest.param(
            text_of(with_chunks(many(b"a%d", 100_000))), "more than 1000 texts", id="37 100,000 texts"
        ),
        pytest.param(text_of(file_of(OWN, "GIF")), "not a PNG, WebP or JPEG", id="38 a GIF"),
        pytest.param(text_of(file_of(OWN, "TIFF")), "not a PNG, WebP or JPEG", id="39 a TIFF"),
        pytest.param(text_of(file_of(OWN, "ICO")), "not a PNG, WebP or JPEG", id="39 an ICO"),
        pytest.param(text_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not a PNG, WebP or JPEG", id="39 an SVG"),
        pytest.param(text_of(b"8BPS\0\1" + bytes(60)), "not a PNG, WebP or JPEG", id="39 a PSD"),
        pytest.param("http://169.254.169.254/latest/meta-data", "addresses are not followed", id="45 http"),
        pytest.param("file:///etc/passwd", "addresses are not followed", id="45 file"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_our_own_words(server, image, said):
    assert said in refusal(sent(server, image=image))


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(GOOD.rstrip("="), id="34 padding left out"),
        pytest.param("\n".join(GOOD[start : start + 76] for start in range(0, len(GOOD), 76)), id="34 lines"),
        pytest.param(f"data:image/png;base64,{GOOD}", id="34 a data URI"),
        pytest.param(text_of(file_of(OWN, "PNG", save_all=True, append_images=[HALF.convert("RGB")])), id="38 APNG"),
        pytest.param(
            text_of(file_of(OWN, "WEBP", save_all=True, append_images=[HALF.convert("RGB")], lossless=True)),
            id="38 WebP",
        ),
        pytest.param(text_of(file_of(OWN.convert("RGBA"))), id="40 RGBA"),
        pytest.param(text_of(polyglot()), id="47 a ZIP behind it"),
    ],
)  # fmt: skip
def test_another_way_to_send_the_same_picture_draws_the_same(server, reference, image):
    assert (np.asarray(opened(sent(server, image=image)).convert("RGB")) == reference).all()


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.new("1", (64, 64), 1), id="40 one bit"),
        pytest.param(OWN.convert("P"), id="40 palette"),
        pytest.param(OWN.convert("L"), id="40 grey"),
        pytest.param(OWN.convert("LA"), id="40 grey and alpha"),
        pytest.param(Image.fromarray(np.full((64, 64), 40_000, np.uint16)), id="40 16 bits"),
        pytest.param(Image.new("RGB", (1, 1), "red"), id="41 1x1"),
        pytest.param(Image.new("RGB", (1, 10_000), "red"), id="41 a strip"),
    ],
)
def test_every_mode_and_size_is_drawn_on_from_and_twice_the_same(server, image):
    one, other = (np.asarray(opened(sent(server, image=text_of(file_of(image))))) for _ in range(2))
    assert one.shape == (64, 64, 4)
    assert (one[..., :3] == other[..., :3]).all()


@pytest.mark.parametrize(
    ("mask", "changed"),
    [
        pytest.param(HALF, 32, id="42 grey"),
        pytest.param(HALF.convert("RGB"), 32, id="42 RGB"),
        pytest.param(HALF.resize((16, 16), Image.Resampling.NEAREST), 32, id="42 of another size"),
        pytest.param(HALF.convert("1"), 32, id="42 one bit"),
        pytest.param(Image.new("L", (1, 1), 255), 64, id="41 one white pixel"),
        pytest.param(Image.new("L", (64, 64), 255), 64, id="42 all white"),
    ],
)
def test_a_mask_draws_anew_where_it_is_white(server, mask, changed):
    answer = sent(server, image=GOOD, mask=text_of(file_of(mask)), overlay="hard")
    own = np.asarray(opened(answer).convert("RGB"))
    assert (own[:, : 64 - changed] == PIXELS[:, : 64 - changed]).all()
    assert (own[:, 64 - changed :] != PIXELS[:, 64 - changed :]).any()


def test_42_the_noise_of_jpeg_is_not_seen_as_a_mask(server):
    png, jpeg = (
        sent(server, image=GOOD, mask=text_of(file_of(HALF, kind)), overlay="hard")
        for kind in ("PNG", "JPEG")
    )
    assert (np.asarray(opened(png).convert("RGB")) == np.asarray(opened(jpeg).convert("RGB"))).all()


def test_42_a_mask_of_nothing_is_refused(server):
    black = text_of(file_of(Image.new("L", (64, 64))))
    assert "parameters.mask: black everywhere" in refusal(sent(server, image=GOOD, mask=black))


@pytest.mark.parametrize(
    "fields", [{"action": "infill"}, {"action": "infill", "mask": GOOD}, {"action": "img2img"}]
)
def test_27_a_task_without_its_pictures_is_refused(server, fields):
    body = {"input": "cat", "action": fields.pop("action"), "parameters": DRAWS | fields}
    answer = httpx.post(f"{server}/ai/generate-image", json=body, timeout=60, verify=PLAIN)
    assert "needs an image" in refusal(answer)


@pytest.mark.parametrize(
    ("field", "value"),
    [("strength", 1.01), ("strength", -0.1), ("noise", 2), ("strength", "much"), ("extra_noise_seed", 0.5)],
)
def test_28_values_out_of_their_range_are_refused_where_they_count(server, field, value):
    assert f"parameters.{field}: " in refusal(sent(server, image=GOOD, **{field: value}))
    assert sent(server, **{field: value}).status_code == 200


def test_43_a_lie_in_the_alpha_is_not_believed(server):
    answer = sent(server, "/ai/upscale", image=text_of(lying_alpha()))
    assert set(json.loads(opened(answer).info["Comment"])["derived_from"]) == {"pixels"}


def test_44_too_much_is_refused_before_it_is_read(server):
    vibes = [GOOD] * 20
    assert "not offered" in refusal(sent(server, reference_image_multiple=vibes))
    assert refusal(sent(server, reference_image_multiple=["A" * 10_000_000] * 20), 413)


def test_46_a_vibe_that_is_none_is_refused(server):
    assert "not offered" in refusal(sent(server, reference_image_multiple=["AAAA"]))


def test_47_a_polyglot_is_enlarged_as_a_png(server):
    assert opened(sent(server, "/ai/upscale", image=text_of(polyglot()))).size == (128, 128)


def test_36_nothing_is_unpacked_for_a_size_that_is_refused():
    """Peak memory of a process that is shown the huge picture, over that of one shown a small one."""
    code = (
        "import resource, sys; from server.errors import Rejected; from server.request.images import read_image\n"
        "try: read_image(sys.stdin.read(), 'image', 64, 64)\n"
        "except Rejected: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    small, large = (
        int(subprocess.run([sys.executable, "-P", "-c", code], input=text, capture_output=True, text=True, check=True).stdout)
        for text in (GOOD, text_of(huge()))
    )  # fmt: skip
    assert large - small < 20_000  # kilobytes; unpacked it would be 30 gigabytes


def test_after_all_this_the_server_draws_as_before(server, reference):
    assert (np.asarray(opened(sent(server, image=GOOD)).convert("RGB")) == reference).all()
    told = PngInfo()
    told.add_text("Comment", "{")
    assert opened(sent(server, "/ai/upscale", image=text_of(file_of(OWN, pnginfo=told)))).size == (128, 128)
