"""Requests made from an image's metadata."""

import gzip
import json
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import make_exif, make_segment
from PIL import Image

from pipelines.job import Character, Control, Guidance, Job, Lora, Pass, Prompts, RgbImage, UncondZero, Vibe
from server.cli.redraw import NAI4_MODEL, build_redraw_request, warn_of_omissions
from server.config.resources import configs
from server.engine.ticket import Result
from server.errors import Rejected
from server.picture.png import encode_png
from server.picture.writer import MetadataPolicy, write_job_picture
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, ResolvedRequest, resolve
from server.request.schema import read_request

JOB = Job(
    "nai-diffusion-3", Prompts("1girl, smile", "lowres"), 12, "k_dpmpp_2m", "karras",
    Guidance(6.5, rescale=0.3), (Pass(96, 64, (7,)),), brownian=True,
)  # fmt: skip
PIXELS = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)


@pytest.fixture(params=["png", "webp"])
def file(request, signing_key):
    result = Result([PIXELS], (1.0, 0.0), 0.0, 1.0)
    policy = MetadataPolicy("00C0FFEE", signing_key, "full", "exact")
    return write_job_picture(policy, ResolvedRequest(JOB, request.param, {}, ()), result, 0)


def test_uncond_zero_is_kept_and_stays_off_where_it_was(signing_key):
    for guidance in (Guidance(uncond_zero=UncondZero(0.9, 0.5)), Guidance()):
        result = Result([PIXELS], (1.0, 0.0), 0.0, 1.0)
        policy = MetadataPolicy("00C0FFEE", signing_key, "full", "exact")
        resolved = ResolvedRequest(replace(JOB, guidance=guidance), "png", {}, ())
        data = write_job_picture(policy, resolved, result, 0)
        sent: Any = build_redraw_request(data, 1.0, 0.5, 0.1, {})["parameters"]
        zero = guidance.uncond_zero or UncondZero(0)
        assert (sent["uncond_zero"], sent.get("uncond_zero_sharpness", 1.0)) == (zero.scale, zero.sharpness)


def build_bare_png():
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def test_the_metadata_of_an_image_become_the_parameters(file, model):
    body: Any = build_redraw_request(file, 2.0, 0.5, 0.1, {"seed": 3, "input": None, "image_format": "png"})
    policy = RequestPolicy(model, load_presets(configs() / "presets.toml"))
    job: Any = resolve(read_request(body), policy).job
    assert job.prompts == JOB.prompts
    (only_pass,) = job.passes
    assert (only_pass.width, only_pass.height, only_pass.seeds) == (192, 128, (3,))
    assert (job.steps, job.sampler, job.schedule, job.guidance) == (12, "k_dpmpp_2m", "karras", JOB.guidance)
    assert (only_pass.strength, only_pass.noise) == (0.5, 0.1)
    assert b64decode(body["parameters"]["image"]) == file


V4 = {
    "prompt": "2girls, street",
    "uc": "lowres",
    "steps": 4,
    "v4_prompt": {
        "caption": {"base_caption": "2girls, street", "char_captions": [{"char_caption": "red hair"}]}
    },
    "v4_negative_prompt": {"caption": {"base_caption": "lowres", "char_captions": [{"char_caption": "hat"}]}},
}
NAI = {
    "Description": "1girl",
    "Software": "NovelAI",
    "Comment": '{"prompt": "1girl", "uc": "bad", "steps": 4}',
}
INFOTEXT = "1girl\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"


def hide(text, magic=b"stealth_pngcomp"):
    """Pixels with a text in their alpha."""
    payload = gzip.compress(text.encode()) if magic == b"stealth_pngcomp" else text.encode()
    stream = magic + (8 * len(payload)).to_bytes(4) + payload
    rgba = np.full((96, 64, 4), 255, np.uint8)
    bits = np.unpackbits(np.frombuffer(stream, np.uint8))
    alpha = np.full(96 * 64, 255, np.uint8)
    alpha[: len(bits)] = 254 + bits
    rgba[..., 3] = alpha.reshape(64, 96).T
    return rgba


def write_jpeg(segment):
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG")
    return file.getvalue()[:2] + segment + file.getvalue()[2:]


def write_exif(user_comment):
    return make_segment(0xE1, b"Exif\0\0" + make_exif(">", user_comment))


SOURCES = {
    "NAI of 2022": encode_png(PIXELS, {"Description": "1girl", "Comment": '{"uc": "bad", "steps": 4}'}),
    "text of a site, the alpha is NAI's": encode_png(hide(json.dumps(NAI)), {"Software": "www.example.test"}),
    "a strange comment, the alpha is NAI's": encode_png(
        hide(json.dumps(NAI)), {"Comment": "Created with GIMP"}
    ),
    "a strange title, a bare alpha": encode_png(
        hide(json.dumps(NAI)), {"Title": "x", "Description": "y", "Comment": "{}"}
    ),
    "A1111 in the alpha": encode_png(hide(INFOTEXT), {}),
    "A1111 in the alpha, not packed": encode_png(hide(INFOTEXT, b"stealth_pnginfo"), {"date:create": "2026"}),
    "A1111 as text": encode_png(PIXELS, {"parameters": INFOTEXT}),
    "A1111 in a JPEG": write_jpeg(write_exif(b"UNICODE\0" + INFOTEXT.encode("utf-16-be"))),
    "a bare Comment in a JPEG": write_jpeg(write_exif(NAI["Comment"].encode())),
    "a JPEG's comment": write_jpeg(make_segment(0xFE, NAI["Comment"].encode())),
    "a JPEG's strange comment beside EXIF": write_jpeg(
        make_segment(0xFE, b"GIMP") + write_exif(json.dumps(NAI).encode())
    ),
}


@pytest.mark.parametrize("data", SOURCES.values(), ids=SOURCES.keys())
def test_prompts_are_found_in_whichever_layer_holds_them(data):
    body: Any = build_redraw_request(data, 1.0, 0.5, 0.0, {})
    assert (body["input"], body["parameters"]["negative_prompt"]) == ("1girl", "bad")


def test_v4_captions_are_flattened_as_in_requests():
    body: Any = build_redraw_request(encode_png(PIXELS, {"Comment": json.dumps(V4)}), 1.0, 0.5, 0.0, {})
    assert (body["input"], body["parameters"]["negative_prompt"]) == (
        "2girls, street, red hair",
        "lowres, hat",
    )
    assert body["model"] == NAI4_MODEL
    broken = json.dumps(V4 | {"v4_prompt": {"caption": 5}})
    body = build_redraw_request(encode_png(PIXELS, {"Comment": broken}), 1.0, 0.5, 0.0, {})
    assert body["input"] == "2girls, street"
    assert "model" not in body


def test_a_prompt_in_the_syntax_of_v4_is_read_in_it_again(signing_key):
    prompts, result = Prompts("2::1girl::, smile", "bad", "nai4"), Result([PIXELS], (1.0, 0.0), 0.0, 1.0)
    metadata = MetadataPolicy("00C0FFEE", signing_key, "full", "exact")
    resolved = ResolvedRequest(replace(JOB, prompts=prompts), "png", {}, ())
    data = write_job_picture(metadata, resolved, result, 0)
    assert build_redraw_request(data, 1.0, 0.5, 0.0, {})["model"] == NAI4_MODEL


def test_a_picture_that_was_drawn_with_lossy_settings_is_read_like_others(signing_key):
    resolved = ResolvedRequest(JOB, "png", {}, ())

    def read(**lossy):
        metadata = MetadataPolicy("00C0FFEE", signing_key, "full", "exact", lossy=lossy)
        data = write_job_picture(metadata, resolved, Result([PIXELS], (1.0, 0.0), 0.0, 1.0), 0)
        body: Any = build_redraw_request(data, 1.0, 0.5, 0.0, {})
        assert warn_of_omissions(data) == ()
        del body["parameters"]["image"]
        return body

    assert read(weights="int8", step_cache=3) == read()


def test_the_dialect_of_a_picture_is_used_again(signing_key):
    prompts = Prompts("by a", "lowres", written=Prompts("artist:a", "lowres"))
    metadata = MetadataPolicy("00C0FFEE", signing_key, "full", "exact")

    def write(prompts):
        resolved = ResolvedRequest(replace(JOB, prompts=prompts), "png", {}, ())
        return write_job_picture(metadata, resolved, Result([PIXELS], (1.0, 0.0), 0.0, 1.0), 0)

    data = write(prompts)
    body: Any = build_redraw_request(data, 1.0, 0.5, 0.0, {})
    assert (body["input"], body["parameters"]["dialect"]) == ("artist:a", True)
    body = build_redraw_request(write(Prompts("artist:a", "lowres")), 1.0, 0.5, 0.0, {})
    assert (body["input"], body["parameters"]["dialect"]) == ("artist:a", False)
    body = build_redraw_request(data, 1.0, 0.5, 0.0, {"input": "cat"})
    assert "dialect" not in body["parameters"]


def test_reference_images_that_no_file_has_are_warned_about(file, signing_key):
    assert warn_of_omissions(file) == ()
    vibes, result = (Vibe(RgbImage(1, 1, b"abc")),) * 2, Result([PIXELS], (1.0, 0.0), 0.0, 1.0)
    metadata = MetadataPolicy("00C0FFEE", signing_key, "full", "exact")
    resolved = ResolvedRequest(replace(JOB, vibes=vibes), "png", {}, ())
    data = write_job_picture(metadata, resolved, result, 0)
    (warning,) = warn_of_omissions(data)
    assert warning.startswith("reference images: the picture was drawn with 2, ")
    control = Control("hed", Path("hed.st"), "00C0FFEE", RgbImage(1, 1, b"abc"))
    resolved = ResolvedRequest(replace(JOB, controls=(control,)), "png", {}, ())
    (warning,) = warn_of_omissions(write_job_picture(metadata, resolved, result, 0))
    assert warning.startswith("control map: the picture was drawn with the ControlNet 'hed', ")
    loras = tuple(Lora(name, Path("x.st"), "00C0FFEE", 0.8, 0.0) for name in ("style", "shape"))
    resolved = ResolvedRequest(replace(JOB, loras=loras), "png", {}, ())
    (warning,) = warn_of_omissions(write_job_picture(metadata, resolved, result, 0))
    assert warning.startswith("LoRAs: the picture was drawn with 'shape', 'style'; left out")


def test_overrides_replace_the_metadata(file):
    body: Any = build_redraw_request(file, 1.0, 0.5, 0.0, {"input": "cat", "steps": 5})
    assert body["input"] == "cat"
    assert body["parameters"]["steps"] == 5


def test_a_rotated_image_is_measured_upright():
    image, file = Image.fromarray(PIXELS), BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(file, "JPEG", exif=exif)
    body: Any = build_redraw_request(file.getvalue(), 2.0, 0.5, 0.0, {"input": "cat"})
    assert (body["parameters"]["width"], body["parameters"]["height"]) == (128, 192)


def test_an_image_without_metadata_needs_a_prompt():
    with pytest.raises(Rejected, match="has no prompt"):
        build_redraw_request(build_bare_png(), 1.5, 0.5, 0.0, {})
    body: Any = build_redraw_request(build_bare_png(), 1.5, 0.5, 0.0, {"input": "cat"})
    assert (body["input"], body["parameters"]["width"]) == ("cat", 144)
    json.dumps(body)


def test_characters_keep_their_places(signing_key, model):
    people = (Character("red hair", "hat", 0.3, 0.5), Character("blue hair", "", 0.7, 0.5))
    job = replace(JOB, prompts=Prompts("2girls", "lowres", "nai4", characters=people))
    written = write_job_picture(
        MetadataPolicy("00C0FFEE", signing_key, "full", "exact"),
        ResolvedRequest(job, "png", {}, ()),
        Result([PIXELS], (1.0, 0.0), 0.0, 1.0),
        0,
    )
    body: Any = build_redraw_request(written, 1.0, 0.5, 0.0, {})
    policy = RequestPolicy(model, load_presets(configs() / "presets.toml"))
    assert resolve(read_request(body), policy).job.prompts == job.prompts
    body = build_redraw_request(written, 1.0, 0.5, 0.0, {"input": "1girl"})
    assert resolve(read_request(body), policy).job.prompts.characters == ()
