"""Cases of image files; each function judges one row of shared/cases/api/README.md."""

import json
import struct
import zlib
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case_table import (
    GENERATE,
    UPSCALE,
    Bench,
    Cases,
    decode_pixels,
    describe,
    encode_png,
    input_json,
    input_path,
    mean_difference,
    read_fields,
    read_pixels,
    require,
)

CASES = Cases()
PROMPT, NEGATIVE = "1girl, red hair", "lowres"
P3_COLOR = (218, 67, 47)


def input_base64(bench: Bench, name: str) -> str:
    return b64encode(input_path(bench, name).read_bytes()).decode()


def enhance(bench: Bench, name: str) -> tuple[dict[str, Any], str]:
    """Run `naiad enhance` on an input; return the Comment of what it drew, and its stderr."""
    output = bench.checkout.folder / f"enhanced-{Path(name).stem}.png"
    done = bench.checkout.run_naiad("enhance", input_path(bench, name), "--demo", "-o", output)
    require(done.status == 0, f"enhance: {done.refusal}")
    return json.loads(read_fields(output.read_bytes())["Comment"]), done.error


def require_prompt(
    comment: dict[str, Any], prompt: str, negative: str | None, by: str, steps: int | None = 4
) -> None:
    wanted = {"prompt": prompt, "uc": negative, "steps": steps}
    for key, value in wanted.items():
        require(value is None or comment.get(key) == value, f"{by}: {key} is {comment.get(key)!r}")


def upscale(bench: Bench, name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Upscale an input; return the fields of the result and its Comment."""
    response = bench.post(UPSCALE, {"image": input_base64(bench, name)})
    require(response.status_code == 200, f"upscale: {describe(response)}")
    fields = read_fields(response.content)
    return fields, json.loads(fields["Comment"])


def inspect(bench: Bench, name: str) -> dict[str, Any]:
    done = bench.checkout.run_naiad("inspect", input_path(bench, name), "--json")
    require(done.status == 0, f"inspect: {done.refusal}")
    return json.loads(done.output)


def require_nai_fields(bench: Bench, name: str) -> None:
    """Require that inspect shows all of NAI's fields in the text layer."""
    fields = inspect(bench, name)["layers"].get("text", {})
    require(fields.get("Description") == PROMPT, f"inspect: text layer is {fields}"[:120])
    require({"Software", "Source", "Generation time"} <= set(fields), f"inspect: only {list(fields)}")
    require(fields["Comment"]["seed"] == 7, f"inspect: Comment is {fields['Comment']}"[:120])


@CASES.add("nai2022.png", "prompt from Description: enhance and upscale")
def judge_2022(bench: Bench) -> str:
    prompt = "{masterpiece}, 1girl, red hair"
    comment, _ = enhance(bench, "nai2022.png")
    require_prompt(comment, prompt, "lowres, blurry", "enhance")
    fields, comment = upscale(bench, "nai2022.png")
    require_prompt(comment, prompt, "lowres, blurry", "upscale")
    require(fields["Description"] == prompt, f"upscale: Description is {fields['Description']!r}")
    return "both know the prompt"


def judge_alpha(bench: Bench, name: str) -> str:
    comment, _ = enhance(bench, name)
    require_prompt(comment, PROMPT, NEGATIVE, "enhance")
    fields, comment = upscale(bench, name)
    require_prompt(comment, PROMPT, NEGATIVE, "upscale")
    require(fields["Description"] == PROMPT, f"upscale: Description is {fields['Description']!r}")
    origin = comment["derived_from"]
    require(origin.get("Description") == PROMPT, f"upscale: kept only {list(origin)}")
    require('"seed": 7' in origin.get("Comment", ""), "upscale: the source's Comment is not kept")
    return "alpha's prompt and fields"


@CASES.add("alpha_software.png", "the alpha's prompt and Comment: enhance and upscale")
def judge_alpha_software(bench: Bench) -> str:
    return judge_alpha(bench, "alpha_software.png")


@CASES.add("alpha_xmp.png", "the alpha's prompt and Comment: enhance and upscale")
def judge_alpha_xmp(bench: Bench) -> str:
    return judge_alpha(bench, "alpha_xmp.png")


@CASES.add("exif_dates.png", "inspect shows dates and NAI's fields; enhance and upscale know the prompt")
def judge_exif_dates(bench: Bench) -> str:
    shown = json.dumps(inspect(bench, "exif_dates.png")["layers"])
    for part in ("date:create", "2026-01-02", PROMPT, "Generation time", '"seed": 7'):
        require(part in shown, f"inspect does not show {part!r}")
    require_prompt(enhance(bench, "exif_dates.png")[0], PROMPT, NEGATIVE, "enhance")
    require_prompt(upscale(bench, "exif_dates.png")[1], PROMPT, NEGATIVE, "upscale")
    return "all shown and known"


def judge_text(bench: Bench, name: str, prompt: str, negative: str) -> str:
    text = inspect(bench, name)["layers"].get("text", {})
    require(text.get("Description") == prompt, f"inspect: Description is {text.get('Description')!r}")
    require_prompt(text["Comment"], prompt, negative, "inspect")
    require_prompt(enhance(bench, name)[0], prompt, negative, "enhance")
    fields, comment = upscale(bench, name)
    require_prompt(comment, prompt, negative, "upscale")
    require(fields["Description"] == prompt, f"upscale: Description is {fields['Description']!r}")
    return f"{prompt}; {negative}"


@CASES.add("utf8_text.png", "1girl, 猫耳, 笑顔; 低画質: inspect, enhance, upscale")
def judge_utf8(bench: Bench) -> str:
    return judge_text(bench, "utf8_text.png", "1girl, 猫耳, 笑顔", "低画質")


@CASES.add("latin1_text.png", "control: café, naïve, Ångström stay")
def judge_latin1(bench: Bench) -> str:
    return judge_text(bench, "latin1_text.png", "1girl, café, naïve, Ångström", "flou")


def judge_user_comment(bench: Bench, name: str) -> str:
    require_nai_fields(bench, name)
    require_prompt(enhance(bench, name)[0], PROMPT, NEGATIVE, "enhance")
    return "all fields; enhance draws the prompt"


@CASES.add("comment_utf16le.webp", "inspect shows all fields; enhance draws the prompt")
def judge_utf16le(bench: Bench) -> str:
    return judge_user_comment(bench, "comment_utf16le.webp")


@CASES.add("comment_utf16be.jpg", "inspect shows all fields; enhance draws the prompt")
def judge_utf16be(bench: Bench) -> str:
    return judge_user_comment(bench, "comment_utf16be.jpg")


@CASES.add("comment_undefined.webp", "inspect shows all fields; enhance draws the prompt")
def judge_undefined(bench: Bench) -> str:
    return judge_user_comment(bench, "comment_undefined.webp")


@CASES.add("v4_two_girls.png", "enhance draws both characters' captions, or says what it leaves out")
def judge_v4(bench: Bench) -> str:
    comment, error = enhance(bench, "v4_two_girls.png")
    if comment["prompt"] == "2girls, street" and ("char" in error or "v4" in error):
        return "says what it leaves out"
    require_prompt(comment, "2girls, street, girl, red hair, girl, blue hair, hat", "lowres, hat", "enhance")
    return "flattened"


@CASES.add("profile_p3.png", "pixels (218, 67, 47) +- 2: upscale, img2img, infill")
def judge_p3(bench: Bench) -> str:
    source = input_base64(bench, "profile_p3.png")
    pixels = read_pixels(bench.post(UPSCALE, {"image": source}))
    distance = np.abs(pixels - P3_COLOR).max()
    require(distance <= 2, f"upscale: {tuple(pixels[0, 0].tolist())}")
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    small = {"width": 64, "height": 64, "steps": 1, "seed": 7}
    infill = small | {"image": source, "mask": encode_png(mask), "overlay": "hard"}
    response = bench.post(GENERATE, {"input": "cat", "action": "infill", "parameters": infill})
    kept = read_pixels(response)[48:]
    require(np.abs(kept - P3_COLOR).max() <= 2, f"infill: kept {tuple(kept[0, 0].tolist())}")
    flat = encode_png(np.full((64, 64, 3), P3_COLOR))
    drawn = [
        read_pixels(bench.post(GENERATE, {"input": "cat", "action": "img2img", "parameters": {
            **small, "image": image, "strength": 0.01, "noise": 0}}))
        for image in (source, flat)
    ]  # fmt: skip
    difference = mean_difference(*drawn)
    require(difference <= 2, f"img2img: {difference:.1f} levels from the same color in sRGB")
    return f"upscale off by {distance}; img2img {difference:.1f}"


@CASES.add("profile_srgb.png", "control: an sRGB profile changes no pixel")
def judge_srgb(bench: Bench) -> str:
    stripped = encode_png(decode_pixels(input_path(bench, "profile_srgb.png").read_bytes()))
    with_profile = bench.post(UPSCALE, {"image": input_base64(bench, "profile_srgb.png")})
    difference = np.abs(
        read_pixels(with_profile) - read_pixels(bench.post(UPSCALE, {"image": stripped}))
    ).max()
    require(difference == 0, f"off by {difference}")
    return "the same pixels"


@CASES.add("profile_large.png", "read, metadata known; a bomb of 200 MB refused")
def judge_large_profile(bench: Bench) -> str:
    require_prompt(upscale(bench, "profile_large.png")[1], PROMPT, NEGATIVE, "upscale")
    require_nai_fields(bench, "profile_large.png")
    profile = b"x\0\0" + zlib.compress(bytes(200_000_000), 9)
    bomb = insert_chunk(input_path(bench, "profile_srgb.png").read_bytes(), b"iCCP", profile)
    response = bench.post(UPSCALE, {"image": b64encode(bomb).decode()})
    require(response.status_code == 400, f"the bomb: {describe(response)}")
    return "read; the bomb 400"


def insert_chunk(png: bytes, kind: bytes, data: bytes) -> bytes:
    """Return a PNG with a chunk in the place of all those of its kind, after the header."""
    chunks, start = [], 8
    while start < len(png):
        end = start + 12 + struct.unpack_from(">I", png, start)[0]
        chunks.append(png[start:end])
        start = end
    made = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:8] + chunks[0] + made + b"".join(chunk for chunk in chunks[1:] if chunk[4:8] != kind)


@CASES.add("text_large.png", "read; the prompt is known")
def judge_large_text(bench: Bench) -> str:
    require_prompt(upscale(bench, "text_large.png")[1], PROMPT, NEGATIVE, "upscale")
    require_nai_fields(bench, "text_large.png")
    return "read"


@CASES.add("checksum_text.png", "read, without that text; if refused, not as not a PNG")
def judge_checksum(bench: Bench) -> str:
    response = bench.post(UPSCALE, {"image": input_base64(bench, "checksum_text.png")})
    require(response.status_code == 200 or "not a PNG" not in response.text, describe(response))
    return describe(response)


def judge_rows(bench: Bench, name: str) -> str:
    """Require that an infill changed rows 0 to 47 of all columns and nothing else."""
    body = input_json(bench, name)
    drawn = read_pixels(bench.post(GENERATE, body))
    source = decode_pixels(b64decode(body["parameters"]["image"]))
    require(drawn.shape == source.shape, f"{drawn.shape}, the source {source.shape}")
    changed = (drawn != source).any(-1)
    rows, columns = changed.any(1), changed[:48].any(0)
    require(not rows[48:].any(), f"rows up to {int(np.flatnonzero(rows).max())} are drawn")
    require(
        rows[:48].all() and columns.all(), f"{int(columns.sum())} columns, {int(rows.sum())} rows are drawn"
    )
    return "rows 0-47 of all columns"


@CASES.add("mask_turned.json", "repainted: rows 0-47 of all columns")
def judge_mask(bench: Bench) -> str:
    return judge_rows(bench, "mask_turned.json")


@CASES.add("image_turned.json", "control: rows 0-47 of all columns")
def judge_image(bench: Bench) -> str:
    return judge_rows(bench, "image_turned.json")
