import json
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.job import Guidance, Job, Prompts, Threshold
from server.metadata import NAI_HASHES, alpha_text, comment, generator, read, text_fields
from server.stealth import embed

SAMPLES = Path(__file__).parents[2] / "shared" / "samples"
NEWEST = SAMPLES / "v3_img2img_2024-07.png"
ONLY_IMG2IMG = {"strength", "noise", "extra_noise_seed", "legacy"}
JOB = Job(
    model="nai-diffusion-3",
    prompts=Prompts("1girl, caf\u00e9", "lowres"),
    width=832,
    height=1216,
    steps=28,
    sampler="k_euler",
    schedule="native",
    guidance=Guidance(scale=5),
    seeds=(7, 8),
)


def opened(path):
    """The picture at a path; nothing is left open."""
    with Image.open(path) as found:
        found.load()
        return found


needs_samples = pytest.mark.skipif(not NEWEST.exists(), reason="the genuine pictures are not here")


@needs_samples
def test_keys_stand_in_the_order_of_a_genuine_picture_with_its_types():
    theirs = json.loads(opened(NEWEST).info["Comment"])
    expected = [key for key in theirs if key not in {*ONLY_IMG2IMG, "signed_hash"}]
    ours = comment(JOB, 0)
    assert list(ours) == [*expected, "generator"]
    assert {key: type(ours[key]) for key in expected} == {key: type(theirs[key]) for key in expected}


@needs_samples
@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.png")), ids=lambda path: path.stem)
def test_both_layers_of_a_genuine_picture_agree(path):
    text, alpha = read(opened(path))
    assert alpha is not None
    assert alpha_text(text) == json.dumps(alpha)
    assert list(text) == list(text_fields({"prompt": ""}, "00000000", 0.0))


def test_every_picture_of_a_request_tells_its_own_seed():
    assert [comment(JOB, index)["seed"] for index in (0, 1)] == [7, 8]
    assert comment(JOB, 1)["n_samples"] == 2


def test_whole_numbers_that_nai_calls_floats_are_written_as_floats():
    text = json.dumps(comment(JOB, 0))
    for part in ('"scale": 5.0', '"uncond_scale": 1.0', '"cfg_rescale": 0.0', '"skip_cfg_below_sigma": 0.0'):
        assert part in text


def test_an_upper_limit_of_guidance_is_written_only_when_there_is_one():
    assert "skip_cfg_above_sigma" not in comment(JOB, 0)
    limited = comment(replace(JOB, guidance=Guidance(skip_above=19)), 0)
    keys = list(limited)
    assert limited["skip_cfg_above_sigma"] == 19.0
    assert keys[keys.index("skip_cfg_above_sigma") + 1] == "skip_cfg_below_sigma"
    assert inf not in limited.values()


@pytest.mark.parametrize(("smea", "flags"), [("off", (0, 0)), ("smea", (1, 0)), ("dyn", (1, 1))])
def test_smea_is_told_by_two_flags(smea, flags):
    found = comment(replace(JOB, smea=smea), 0)
    assert (found["sm"], found["sm_dyn"]) == flags


def test_dynamic_thresholding_echoes_nai_constants_whatever_was_used():
    found = comment(replace(JOB, guidance=Guidance(threshold=Threshold(mimic_scale=3.0))), 0)
    assert found["dynamic_thresholding"] is True
    assert found["dynamic_thresholding_percentile"] == 0.999
    assert found["dynamic_thresholding_mimic_scale"] == 10.0


def test_dropped_seams_are_told_under_nai_name():
    prompts = replace(JOB.prompts, drop_seams=True)
    assert comment(replace(JOB, prompts=prompts), 0)["legacy_v3_extend"] is True


def test_what_cannot_be_written_is_left_out():
    found = comment(replace(JOB, prompts=Prompts("a\0b\ud83dc", "\udc00")), 0)
    assert (found["prompt"], found["uc"]) == ("abc", "")


def test_a_picture_says_that_it_is_not_novelai_s():
    assert "not NovelAI" in generator()
    assert comment(JOB, 0)["generator"] == generator()


@pytest.mark.parametrize("name", sorted(NAI_HASHES))
@pytest.mark.parametrize("spelling", [str, str.lower, " {} ".format])
def test_a_model_of_novelai_s_is_never_named_as_the_source(name, spelling):
    with pytest.raises(ValueError, match=r"NovelAI|hex digits"):
        text_fields(comment(JOB, 0), spelling(name), 1.0)


def test_the_alpha_holds_the_text_fields_but_the_title():
    fields = text_fields(comment(JOB, 0), "00C0FFEE", 4.25)
    assert fields["Source"] == "Stable Diffusion XL 00C0FFEE"
    hidden = json.loads(alpha_text(fields))
    assert list(hidden) == list(fields)[1:]
    assert json.loads(hidden["Comment"]) == comment(JOB, 0)
    assert alpha_text(fields).isascii()


def test_a_picture_without_layers_reads_as_empty():
    assert read(Image.new("RGB", (8, 8))) == ({}, None)
    assert read(Image.new("RGBA", (8, 8))) == ({}, None)


@pytest.mark.parametrize("text", ["", "no json", "[1]", '"a string"', "[" * 100_000])
def test_alpha_that_is_not_a_set_of_fields_reads_as_none(text):
    rgba = embed(np.zeros((256, 256, 3), np.uint8), text)
    assert rgba is not None
    assert read(Image.fromarray(rgba)) == ({}, None)
