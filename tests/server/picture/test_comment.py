import json
from dataclasses import replace
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jobs import change, make_job
from paths import ROOT, SAMPLES

from pipelines.job import Character, Guidance, Prompts, Threshold, UncondZero
from server.picture.comment import (
    NAI_HASHES,
    build_alpha_text,
    build_comment,
    build_text_fields,
    describe_job,
    generator_text,
    naiad_version,
    software_name,
)
from server.picture.inspection import inspect

NEWEST = SAMPLES / "v3_img2img_2024-07.png"
ONLY_IMG2IMG = {"strength", "noise", "extra_noise_seed", "legacy"}
JOB = make_job(
    832,
    1216,
    Prompts("1girl, caf\u00e9", "lowres"),
    steps=28,
    guidance=Guidance(scale=5),
    seeds=(7, 8),
    model="nai-diffusion-3",
)


ANY_TEXT = st.text(st.characters(exclude_categories=()))
FLAGS = {"prefer_brownian": True, "legacy": False, "deliberate_euler_ancestral_bug": False}


needs_samples = pytest.mark.skipif(not NEWEST.exists(), reason="no genuine NAI images next to this checkout")


@needs_samples
def test_keys_have_the_order_and_types_of_a_genuine_image():
    genuine = json.loads(inspect(NEWEST.read_bytes()).text["Comment"])
    expected = [key for key in genuine if key not in {*ONLY_IMG2IMG, "signed_hash"}]
    ours = build_comment(JOB, 0)
    assert list(ours) == [*expected, "generator"]
    assert {key: type(ours[key]) for key in expected} == {key: type(genuine[key]) for key in expected}


@needs_samples
@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.png")), ids=lambda path: path.stem)
def test_both_layers_of_a_genuine_image_agree(path):
    inspection = inspect(path.read_bytes())
    assert build_alpha_text(inspection.text) == json.dumps(inspection.alpha)
    ours = list(build_text_fields({"prompt": ""}, "00000000", 0.0, "a key"))
    assert ours == [*inspection.text, "Generator", "Signature key"]


@needs_samples
@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.png")), ids=lambda path: path.stem)
def test_a_genuine_comment_is_serialized_identically(path):
    text = inspect(path.read_bytes()).text["Comment"]
    assert build_text_fields(json.loads(text), "00000000", 0.0)["Comment"] == text


def test_every_image_of_a_request_records_its_own_seed():
    assert [build_comment(JOB, index)["seed"] for index in (0, 1)] == [7, 8]
    assert build_comment(JOB, 1)["n_samples"] == 2


def test_integers_that_nai_writes_as_floats_are_floats():
    text = json.dumps(build_comment(JOB, 0))
    for part in ('"scale": 5.0', '"uncond_scale": 1.0', '"cfg_rescale": 0.0', '"skip_cfg_below_sigma": 0.0'):
        assert part in text


def test_the_upper_guidance_limit_is_written_only_if_set():
    assert "skip_cfg_above_sigma" not in build_comment(JOB, 0)
    limited = build_comment(change(JOB, guidance=Guidance(skip_above=19)), 0)
    keys = list(limited)
    assert limited["skip_cfg_above_sigma"] == 19.0
    assert keys[keys.index("skip_cfg_above_sigma") + 1] == "skip_cfg_below_sigma"
    assert inf not in limited.values()


def test_uncond_zero_is_recorded_only_if_used():
    job = change(JOB, guidance=Guidance(uncond_zero=UncondZero(1, 0)))
    comment = build_comment(job, 0)
    assert comment | build_comment(JOB, 0) == comment
    assert (comment["uncond_zero"], comment["uncond_zero_sharpness"]) == (1.0, 0.0)
    assert "uncond_zero" not in build_comment(JOB, 0)
    described: Any = describe_job(job, (), "exact", "00C0FFEE")["job"]
    assert described["guidance"]["uncond_zero"] == {"scale": 1, "sharpness": 0}


@pytest.mark.parametrize(("smea", "flags"), [("off", (0, 0)), ("smea", (1, 0)), ("dyn", (1, 1))])
def test_smea_is_recorded_in_two_flags(smea, flags):
    comment = build_comment(change(JOB, smea=smea), 0)
    assert (comment["sm"], comment["sm_dyn"]) == flags


def test_dynamic_thresholding_always_records_nai_s_constants():
    comment = build_comment(change(JOB, guidance=Guidance(threshold=Threshold(mimic_scale=3.0))), 0)
    assert comment["dynamic_thresholding"] is True
    assert comment["dynamic_thresholding_percentile"] == 0.999
    assert comment["dynamic_thresholding_mimic_scale"] == 10.0


def test_dropped_seam_tokens_are_recorded_under_nai_s_name():
    prompts = replace(JOB.prompts, drop_seam_tokens=True)
    assert build_comment(change(JOB, prompts=prompts), 0)["legacy_v3_extend"] is True


def test_unwritable_characters_are_removed():
    comment = build_comment(change(JOB, prompts=Prompts("a\0b\ud83dc", "\udc00")), 0)
    assert (comment["prompt"], comment["uc"]) == ("abc", "")


def test_the_generator_says_that_the_image_is_not_novelai_s():
    assert "not NovelAI" in generator_text()
    assert build_comment(JOB, 0)["generator"] == generator_text()


@pytest.mark.parametrize("name", sorted(NAI_HASHES))
@pytest.mark.parametrize("spelling", [str, str.lower, " {} ".format])
def test_the_hash_of_a_novelai_model_is_rejected_as_source(name, spelling):
    with pytest.raises(ValueError, match=r"NovelAI|hex digits"):
        build_text_fields(build_comment(JOB, 0), spelling(name), 1.0)


def test_the_alpha_holds_all_text_fields_except_the_title():
    fields = build_text_fields(build_comment(JOB, 0), "00C0FFEE", 4.25)
    assert fields["Source"] == "Stable Diffusion XL 00C0FFEE"
    alpha = json.loads(build_alpha_text(fields))
    assert list(alpha) == list(fields)[1:]
    assert json.loads(alpha["Comment"]) == build_comment(JOB, 0)
    assert build_alpha_text(fields).isascii()


@given(ANY_TEXT, ANY_TEXT, st.floats(0, 100), st.integers(0, 2**32 - 1))
def test_a_comment_survives_serialization(positive, negative, scale, seed):
    job = change(JOB, prompts=Prompts(positive, negative), guidance=Guidance(scale), seeds=(seed,))
    comment = build_comment(job, 0, FLAGS, describe_job(job, (inf, 1.0, 0.0), "exact", "00C0FFEE"))
    fields = build_text_fields(comment, "00C0FFEE", 4.25)
    assert json.loads(fields["Comment"]) == comment
    assert json.dumps(json.loads(fields["Comment"])) == fields["Comment"]
    assert fields["Comment"].isascii()
    assert "\0" not in fields["Description"]
    fields["Description"].encode()  # raises on a lone surrogate


def test_recorded_flags_stand_before_uc_in_nai_s_order():
    keys = list(build_comment(JOB, 0, FLAGS))
    start = keys.index("lora_clip_weights") + 1
    assert keys[start : start + 4] == ["legacy", "deliberate_euler_ancestral_bug", "prefer_brownian", "uc"]
    assert build_comment(JOB, 0, FLAGS)["prefer_brownian"] is True


def test_the_comment_has_the_written_prompts_and_naiad_the_encoded_ones():
    written = Prompts("artist:a", "bad", characters=(Character("artist:b", "c", 0.1, 0.5),))
    encoded = Prompts("by a", "worse", characters=(Character("by b", "d", 0.1, 0.5),), written=written)
    job = change(JOB, prompts=encoded)
    comment: Any = build_comment(job, 0)
    assert (comment["prompt"], comment["uc"]) == ("artist:a", "bad")
    caption, negative = (comment[key]["caption"] for key in ("v4_prompt", "v4_negative_prompt"))
    assert (caption["base_caption"], negative["base_caption"]) == ("artist:a", "bad")
    assert caption["char_captions"][0]["char_caption"] == "artist:b"
    naiad: Any = describe_job(job, (inf, 1.5, 0.0), "exact", "00C0FFEE")
    assert naiad["encoded"] == {
        "prompt": "by a",
        "negative_prompt": "worse",
        "characters": [{"prompt": "by b", "negative_prompt": "d"}],
    }
    assert naiad["job"]["prompts"]["positive"] == "by a"


def test_the_naiad_object_holds_the_entire_job_as_json():
    description = describe_job(JOB, (inf, 1.5, 0.0), "exact", "00C0FFEE")
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    assert description == {
        "version": naiad_version(),
        "model": "00C0FFEE",
        "batching": "exact",
        "job": {
            "model": "nai-diffusion-3",
            "prompts": {
                "positive": "1girl, caf\u00e9", "negative": "lowres", "syntax": "nai", "drop_seams": False,
            },
            "width": 832,
            "height": 1216,
            "steps": 28,
            "sampler": "k_euler",
            "schedule": "native",
            "guidance": {
                "scale": 5, "rescale": 0.0, "uncond_scale": 1.0, "threshold": None, "skip_above": "inf",
                "skip_below": 0.0,
            },
            "seeds": [7, 8],
            "sigma_start": 56.0,
            "brownian": False,
            "smea": "off",
            "deep_shrink": 0,
            "pyramid": 0,
            "source": None,
            "enhance": None,
        },
        "files": {},
        "ladder": ["inf", 1.5, 0.0],
        "inputs": {},
    }  # fmt: skip


def test_every_key_is_documented():
    comment = build_comment(
        change(JOB, guidance=Guidance(skip_above=19, uncond_zero=UncondZero())),
        0,
        FLAGS,
        describe_job(JOB, (), "exact", "00C0FFEE"),
    )
    naiad = comment["naiad"]
    assert isinstance(naiad, dict)
    page = (ROOT / "docs" / "metadata.md").read_text("utf-8")
    fields = build_text_fields(comment, "00C0FFEE", 1.0, "a key")
    assert [key for key in (*comment, *naiad, *fields, "signed_hash") if f"`{key}`" not in page] == []


def test_naiad_s_own_keys_come_last():
    comment = build_comment(JOB, 0, {}, describe_job(JOB, (), "exact", "00C0FFEE"))
    assert list(comment)[-3:] == ["request_type", "naiad", "generator"]


def test_software_is_novelai_only_in_a_signed_image():
    signed, unsigned = (
        build_text_fields(build_comment(JOB, 0), "00C0FFEE", 1.0, key) for key in ("a key", None)
    )
    assert (signed["Software"], signed["Signature key"]) == ("NovelAI", "a key")
    assert unsigned["Software"] == software_name()
    assert "Signature key" not in unsigned
    assert signed["Generator"] == unsigned["Generator"] == generator_text()


@pytest.mark.parametrize("number", [inf, -inf, float("nan")])
def test_numbers_that_json_lacks_are_rejected(number):
    with pytest.raises(ValueError, match="JSON"):
        build_text_fields(build_comment(JOB, 0) | {"scale": number}, "00C0FFEE", 1.0)
