"""Init images and second passes: from a request to the passes of its job."""

from base64 import b64encode
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipelines.job import Pass, PreviousPass
from server.config.catalog import single_model_catalog
from server.config.resources import configs
from server.engine.model import detect_model
from server.errors import Rejected
from server.picture.comment import build_comment, describe_job
from server.request import passes
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import read_request

PRESETS = load_presets(configs() / "presets.toml")
SIZE = {"width": 832, "height": 1216}


def base64_of(image):
    file = BytesIO()
    image.save(file, "PNG")
    return b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def served(demo_file):
    """A model without deep shrink and pyramid."""
    found = detect_model(single_model_catalog(demo_file))
    helps = {"deep_shrink_above": None, "pyramid_above": None}
    return replace(found, profile=found.profile.model_copy(update=helps))


@pytest.fixture(scope="module")
def ask(served):
    def ask(network=None, **parameters):
        policy = RequestPolicy(replace(served, upscaler=network), PRESETS)
        request = {"input": "cat", "parameters": {"seed": 40} | SIZE | parameters}
        return resolve(read_request(request), policy, lambda: 99).job

    return ask


def enhance_pass(width, height, strength, noise, seed):
    return Pass(width, height, (seed,), PreviousPass(), strength, noise, noise_seed=seed)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"magnitude": 1}, enhance_pass(1248, 1824, 0.2, 0.0, 99)),
        ({"magnitude": 2}, enhance_pass(1248, 1824, 0.4, 0.0, 99)),
        ({"magnitude": "3", "seed": 0}, enhance_pass(1248, 1824, 0.5, 0.0, 99)),
        ({"magnitude": 4, "scale": 1, "seed": -1}, enhance_pass(832, 1216, 0.6, 0.0, 2**32 - 1)),
        ({"magnitude": 5, "seed": 7}, enhance_pass(1248, 1824, 0.7, 0.1, 7)),
        ({"magnitude": 3, "scale": None, "upscaler": None}, enhance_pass(1248, 1824, 0.5, 0.0, 99)),
        ({"magnitude": 3, "noise": 0.3}, enhance_pass(1248, 1824, 0.5, 0.3, 99)),
        ({"strength": 0.33}, enhance_pass(1248, 1824, 0.33, 0.0, 99)),
        ({"strength": 0.33, "noise": 0.2, "magnitude": 5}, enhance_pass(1248, 1824, 0.33, 0.2, 99)),
    ],
)
def test_enhance_is_a_second_pass_with_its_own_seeds(ask, fields, expected):
    first, second = ask(enhance=fields).passes
    assert second == expected
    assert first == Pass(832, 1216, (40,))


@pytest.mark.parametrize("fields", [None, False])
def test_without_enhance_there_is_one_pass(ask, fields):
    assert len(ask(enhance=fields).passes) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
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
        ({"strength": 0.5, "upscaler": "network"}, "no upscaling network is loaded"),
        ("yes", "parameters.enhance: 'yes' is not an object"),
    ],
)
def test_invalid_enhance_fields_are_refused_by_name(ask, fields, message):
    with pytest.raises(Rejected) as refused:
        ask(enhance=fields)
    assert message in refused.value.message


def test_enhance_needs_generate_and_limits_the_number_of_images(ask):
    image = base64_of(Image.new("RGB", (64, 64), "red"))
    with pytest.raises(Rejected, match="not with img2img"):
        ask(enhance={"magnitude": 1}, image=image)
    assert len(ask(width=512, height=512, n_samples=8).passes[0].seeds) == 8
    with pytest.raises(Rejected, match="8 images of 1024x1024; at most 4"):
        ask(width=512, height=512, n_samples=8, enhance={"magnitude": 1, "scale": 2})


def test_deep_shrink_depends_on_each_passs_size(served, ask):
    profile = served.profile.model_copy(update={"deep_shrink_above": 2_000_000})
    policy = RequestPolicy(replace(served, profile=profile), PRESETS)
    request = {"input": "cat", "parameters": SIZE | {"enhance": {"magnitude": 1}}}
    job: Any = resolve(read_request(request), policy).job
    assert [each.deep_shrink for each in job.passes] == [0, 1]


def test_the_pyramid_depends_on_each_passs_size(served):
    known = {"deep_shrink_above": 150_000, "pyramid_above": 500_000}
    policy = RequestPolicy(replace(served, profile=served.profile.model_copy(update=known)), PRESETS)
    request = {"input": "cat", "parameters": SIZE | {"enhance": {"magnitude": 1}}}
    job: Any = resolve(read_request(request), policy).job
    # copies of 416x608 and 312x456, of which the first is above 150,000 pixels
    assert [(each.pyramid, each.deep_shrink) for each in job.passes] == [(1, 1), (2, 0)]


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
def test_features_are_downscaled_until_the_area_is_known(served, asked, known, times):
    profile = served.profile.model_copy(update={"deep_shrink_above": known})
    parameters = read_request({"parameters": {"deep_shrink": asked}}).parameters
    first = passes.build_first_pass(parameters, (1024, 1024), (1,), "off", profile)
    assert first.deep_shrink == times


def test_enhance_can_use_the_upscaling_network(ask):
    job = ask(network="file", enhance={"magnitude": 1, "upscaler": "network"})
    assert job.passes[1].init == PreviousPass(network=True)


def test_the_second_pass_has_its_own_size_and_seeds_and_no_smea(ask):
    first, second = ask(enhance={"magnitude": 5, "seed": 7}, sm=True, n_samples=2).passes
    assert (second.width, second.height, second.seeds, second.smea) == (1248, 1824, (7, 8), "off")
    assert (second.init, second.strength, second.noise) == (PreviousPass(), 0.7, 0.1)
    assert (second.noise_seed, first.smea, first.seeds) == (7, "smea", (40, 41))


def test_the_comment_describes_the_second_pass_and_the_job_has_both_seeds(ask):
    job = ask(enhance={"magnitude": 5, "seed": 7}, n_samples=2)
    comment: Any = build_comment(job, 1, {}, describe_job(job, (), "exact", "00C0FFEE"))
    assert (comment["width"], comment["height"], comment["seed"], comment["n_samples"]) == (1248, 1824, 8, 1)
    assert (comment["request_type"], comment["strength"], comment["noise"]) == ("Img2ImgRequest", 0.7, 0.1)
    recorded = comment["naiad"]["job"]
    assert (recorded["seeds"], recorded["enhance"]["seed"], recorded["width"]) == ([40, 41], 7, 832)


def test_a_soft_mask_keeps_its_grays(ask):
    grey = np.zeros((128, 128), np.uint8)
    grey[:, 64:] = 100
    grey[:, 96:] = 255
    fields = {"image": base64_of(Image.new("RGB", (64, 64))), "mask": base64_of(Image.fromarray(grey))}
    size = {"width": 128, "height": 128}
    soft = np.frombuffer(ask(**fields, **size, soft_mask=True).passes[0].init.mask, np.uint8).reshape(16, 16)
    hard = np.frombuffer(ask(**fields, **size).passes[0].init.mask, np.uint8).reshape(16, 16)
    assert soft[0].tolist() == [0] * 8 + [100] * 4 + [255] * 4
    assert hard[0].tolist() == [0] * 12 + [255] * 4


SENT = base64_of(Image.new("RGB", (64, 64), "red"))
WHITE = base64_of(Image.new("L", (64, 64), 255))


@pytest.mark.parametrize(
    ("action", "fields", "strength", "noise", "color_correct"),
    [
        ("infill", {}, 1.0, 0.0, False),
        ("infill", {"strength": 0.4, "color_correct": True}, 1.0, 0.0, True),
        ("infill", {"img2img": {"strength": 0.4, "noise": 0.2, "color_correct": True}}, 0.4, 0.0, True),
        ("infill", {"img2img": {"strength": 0.4}, "inpaintImg2ImgStrength": 1}, 1.0, 0.0, False),
        ("infill", {"img2img": {"strength": 0.4}, "strength": 0.9}, 0.4, 0.0, False),
        ("infill", {"img2img": {"color_correct": True}, "color_correct": False}, 1.0, 0.0, False),
        ("infill", {"img2img": None}, 1.0, 0.0, False),
        ("infill", {"img2img": False}, 1.0, 0.0, False),
        ("infill", {"img2img": {"strength": "0.5", "unknown": 1}}, 0.5, 0.0, False),
        ("img2img", {"img2img": {"strength": 0.4, "noise": 0.2, "color_correct": True}}, 0.4, 0.2, True),
        (
            "img2img",
            {"img2img": {"strength": 0.4, "noise": 0.2}, "strength": 0.9, "noise": 0},
            0.9,
            0.0,
            False,
        ),
    ],
)
def test_fields_nested_in_img2img_count_where_none_stands_beside_it(
    ask, action, fields, strength, noise, color_correct
):
    images = {"image": SENT} | ({"mask": WHITE} if action == "infill" else {})
    (only,) = ask(width=64, height=64, **images, **fields).passes
    assert (only.strength, only.noise, only.init.color_correct) == (strength, noise, color_correct)
    assert (only.init.mask is not None) is (action == "infill")


def test_the_nested_seed_of_the_noise_counts(ask):
    size = {"width": 64, "height": 64, "image": SENT}
    assert ask(**size, img2img={"extra_noise_seed": 5}).passes[0].noise_seed == 5
    assert ask(**size, img2img={"extra_noise_seed": 5}, extra_noise_seed=6).passes[0].noise_seed == 6


@pytest.mark.parametrize(
    ("nested", "message"),
    [
        ({"strength": 2}, "parameters.img2img.strength: 2 is not a number from 0 to 1"),
        ({"strength": 0}, "parameters.img2img.strength: 0 is not a number above 0"),
        ({"color_correct": "maybe"}, "parameters.img2img.color_correct: 'maybe' is not true or false"),
        ([], "parameters.img2img: an array is not an object"),
    ],
)
def test_nested_fields_are_refused_by_name(ask, nested, message):
    with pytest.raises(Rejected) as refused:
        ask(width=64, height=64, image=SENT, mask=WHITE, img2img=nested)
    assert refused.value.message.startswith(message)
    assert ask(width=64, height=64, img2img=nested).passes[0].init is None
