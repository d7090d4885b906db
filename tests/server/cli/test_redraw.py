"""Requests made from an image's metadata."""

import json
from base64 import b64decode
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.job import Guidance, Job, Pass, Prompts
from server.cli.redraw import build_redraw_request
from server.config.catalog import single_model_catalog
from server.config.resources import configs
from server.engine.engine import Result
from server.engine.model import detect_model
from server.errors import Rejected
from server.picture.writer import MetadataPolicy, write_job_picture
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import read_request

JOB = Job(
    "nai-diffusion-3", Prompts("1girl, smile", "lowres"), 12, "k_dpmpp_2m", "karras",
    Guidance(6.5, rescale=0.3), (Pass(96, 64, (7,)),), brownian=True,
)  # fmt: skip
PIXELS = np.random.default_rng(1).integers(0, 256, (64, 96, 3), np.uint8)


@pytest.fixture(params=["png", "webp"])
def file(request, signing_key):
    result = Result([PIXELS], (1.0, 0.0), 0.0, 1.0)
    return write_job_picture(
        MetadataPolicy("00C0FFEE", signing_key, "full", "exact"), JOB, result, 0, {}, request.param
    )


def build_bare_png():
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def test_the_metadata_of_an_image_become_the_parameters(file, demo_file):
    body: Any = build_redraw_request(file, 2.0, 0.5, 0.1, {"seed": 3, "input": None, "image_format": "png"})
    policy = RequestPolicy(
        detect_model(single_model_catalog(demo_file)), load_presets(configs() / "presets.toml")
    )
    job: Any = resolve(read_request(body), policy).job
    assert job.prompts == JOB.prompts
    (only_pass,) = job.passes
    assert (only_pass.width, only_pass.height, only_pass.seeds) == (192, 128, (3,))
    assert (job.steps, job.sampler, job.schedule, job.guidance) == (12, "k_dpmpp_2m", "karras", JOB.guidance)
    assert (only_pass.strength, only_pass.noise) == (0.5, 0.1)
    assert b64decode(body["parameters"]["image"]) == file


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
