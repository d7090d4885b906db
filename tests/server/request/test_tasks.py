"""Pictures to start from and second passes, from what is sent to what stands in the job."""

from base64 import b64encode
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.job import Enhance, RgbImage, second_pass
from server.config.catalog import single_model_catalog
from server.config.resources import configs
from server.engine.model import detect_model
from server.errors import Rejected
from server.picture.comment import build_comment, describe_job
from server.request import tasks
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import GenerateRequest, Parameters

PRESETS = load_presets(configs() / "presets.toml")
SIZE = {"width": 832, "height": 1216}


def base64_of(image):
    file = BytesIO()
    image.save(file, "PNG")
    return b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def served(demo_file):
    """A model that draws large pictures without help."""
    found = detect_model(single_model_catalog(demo_file))
    helps = {"deep_shrink_above": None, "pyramid_above": None}
    return replace(found, profile=found.profile.model_copy(update=helps))


@pytest.fixture(scope="module")
def ask(served):
    def ask(network=None, **parameters):
        policy = RequestPolicy(replace(served, upscaler=network), PRESETS)
        request = {"input": "cat", "parameters": {"seed": 40} | SIZE | parameters}
        return resolve(GenerateRequest.model_validate(request), policy, lambda: 99).job

    return ask


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"magnitude": 1}, Enhance(1248, 1824, 0.2, 0.0, 99, 99)),
        ({"magnitude": 2}, Enhance(1248, 1824, 0.4, 0.0, 99, 99)),
        ({"magnitude": "3", "seed": 0}, Enhance(1248, 1824, 0.5, 0.0, 99, 99)),
        ({"magnitude": 4, "scale": 1, "seed": -1}, Enhance(832, 1216, 0.6, 0.0, 2**32 - 1, 2**32 - 1)),
        ({"magnitude": 5, "seed": 7}, Enhance(1248, 1824, 0.7, 0.1, 7, 7)),
        ({"magnitude": 3, "scale": None, "upscaler": None}, Enhance(1248, 1824, 0.5, 0.0, 99, 99)),
        ({"magnitude": 3, "noise": 0.3}, Enhance(1248, 1824, 0.5, 0.3, 99, 99)),
        ({"strength": 0.33}, Enhance(1248, 1824, 0.33, 0.0, 99, 99)),
        ({"strength": 0.33, "noise": 0.2, "magnitude": 5}, Enhance(1248, 1824, 0.33, 0.2, 99, 99)),
    ],
)
def test_enhance_is_a_second_pass_with_seeds_of_its_own(ask, sent, expected):
    job = ask(enhance=sent)
    assert job.enhance == expected
    assert (job.width, job.height, job.seeds) == (832, 1216, (40,))


@pytest.mark.parametrize("sent", [None, False])
def test_no_enhance_is_none(ask, sent):
    assert ask(enhance=sent).enhance is None


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"scale": 1.5}, "parameters.enhance: needs a magnitude"),
        ({}, "parameters.enhance: needs a magnitude"),
        ([], "parameters.enhance: an array is not an object"),
        ({"magnitude": 6}, "parameters.enhance.magnitude: 6 is not a whole number from 1 to 5"),
        ({"magnitude": 1, "scale": 1.3}, "1.3 makes 832x1216 1081x1580; both sides must be multiples of 32"),
        ({"magnitude": 1, "scale": 2}, "1664x2432, 4046848 pixels; at most 3145728"),
        ({"magnitude": 1, "scale": 9}, "parameters.enhance.scale: 9 is not a number above 0, at most 4"),
        ({"strength": 1.5}, "parameters.enhance.strength: 1.5 is not a number from 0 to 1"),
        (
            {"strength": 0.5, "upscaler": "esrgan"},
            "parameters.enhance.upscaler: 'esrgan' is not lanczos or network",
        ),
        ({"strength": 0.5, "upscaler": "network"}, "no network for it is loaded"),
        ("yes", "parameters.enhance: 'yes' is not an object"),
    ],
)
def test_what_cannot_be_enhanced_is_refused_by_name(ask, sent, said):
    with pytest.raises(Rejected) as refused:
        ask(enhance=sent)
    assert said in refused.value.message


def test_enhance_goes_with_generate_alone_and_counts_for_the_number_of_pictures(ask):
    image = base64_of(Image.new("RGB", (64, 64), "red"))
    with pytest.raises(Rejected, match="not with img2img"):
        ask(enhance={"magnitude": 1}, image=image)
    assert len(ask(width=512, height=512, n_samples=8).seeds) == 8
    with pytest.raises(Rejected, match="8 pictures of 1024x1024; at most 4"):
        ask(width=512, height=512, n_samples=8, enhance={"magnitude": 1, "scale": 2})


def test_each_pass_is_shrunk_by_its_own_size(served, ask):
    profile = served.profile.model_copy(update={"deep_shrink_above": 2_000_000})
    policy = RequestPolicy(replace(served, profile=profile), PRESETS)
    request = {"input": "cat", "parameters": SIZE | {"enhance": {"magnitude": 1}}}
    job: Any = resolve(GenerateRequest.model_validate(request), policy).job
    assert (job.deep_shrink, job.enhance.deep_shrink) == (0, 1)
    assert second_pass(job, job.enhance, 0, RgbImage(1, 1, b"")).deep_shrink == 1


def test_each_pass_begins_with_copies_of_its_own_size(served):
    known = {"deep_shrink_above": 150_000, "pyramid_above": 500_000}
    policy = RequestPolicy(replace(served, profile=served.profile.model_copy(update=known)), PRESETS)
    request = {"input": "cat", "parameters": SIZE | {"enhance": {"magnitude": 1}}}
    job: Any = resolve(GenerateRequest.model_validate(request), policy).job
    # copies of 416x608 and 312x456, the first of which is to be halved again
    assert (job.pyramid, job.deep_shrink) == (1, 1)
    assert (job.enhance.pyramid, job.enhance.deep_shrink) == (2, 0)
    second = second_pass(job, job.enhance, 0, RgbImage(1, 1, b""))
    assert (second.pyramid, second.deep_shrink) == (2, 0)


@pytest.mark.parametrize(
    ("asked", "known", "times"),
    [
        *(
            (None, None, 0),
            (None, 1_048_576, 0),
            (None, 1_048_575, 1),
            (None, 262_144, 1),
            (None, 262_143, 2),
        ),
        *((True, None, 1), (True, 160_000, 2), (False, 160_000, 0)),
    ],
)
def test_a_picture_is_halved_until_the_model_knows_its_size(served, asked, known, times):
    profile = served.profile.model_copy(update={"deep_shrink_above": known})
    assert tasks.halved(Parameters.model_validate({"deep_shrink": asked}), profile, (1024, 1024)) == times


def test_the_network_is_used_where_there_is_one(ask):
    assert ask(network="file", enhance={"magnitude": 1, "upscaler": "network"}).enhance.network


def test_the_second_pass_draws_the_same_prompts_at_the_new_size(ask):
    job = ask(enhance={"magnitude": 5, "seed": 7}, sm=True, n_samples=2)
    picture = RgbImage(1248, 1824, b"")
    second: Any = second_pass(job, job.enhance, 1, picture)
    assert (second.width, second.height, second.seeds, second.smea) == (1248, 1824, (8,), "off")
    assert (second.source.picture, second.source.strength, second.source.noise) == (picture, 0.7, 0.1)
    assert (second.source.noise_seed, second.enhance) == (8, None)
    assert (second.prompts, second.steps, second.sampler) == (job.prompts, job.steps, job.sampler)


def test_the_comment_is_the_second_pass_s_and_both_seeds_are_in_the_job(ask):
    job = ask(enhance={"magnitude": 5, "seed": 7}, n_samples=2)
    told: Any = build_comment(job, 1, {}, describe_job(job, (), "exact", "00C0FFEE"))
    assert (told["width"], told["height"], told["seed"], told["n_samples"]) == (1248, 1824, 8, 1)
    assert (told["request_type"], told["strength"], told["noise"]) == ("Img2ImgRequest", 0.7, 0.1)
    recorded = told["naiad"]["job"]
    assert (recorded["seeds"], recorded["enhance"]["seed"], recorded["width"]) == ([40, 41], 7, 832)


def test_a_soft_mask_keeps_its_greys(ask):
    grey = np.zeros((128, 128), np.uint8)
    grey[:, 64:] = 100
    grey[:, 96:] = 255
    sent = {"image": base64_of(Image.new("RGB", (64, 64))), "mask": base64_of(Image.fromarray(grey))}
    size = {"width": 128, "height": 128}
    soft = np.frombuffer(ask(**sent, **size, soft_mask=True).source.mask, np.uint8).reshape(16, 16)
    hard = np.frombuffer(ask(**sent, **size).source.mask, np.uint8).reshape(16, 16)
    assert soft[0].tolist() == [0] * 8 + [100] * 4 + [255] * 4
    assert hard[0].tolist() == [0] * 12 + [255] * 4
