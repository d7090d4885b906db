import math

import pytest

from server.errors import Rejected
from server.profiles import Defaults, Guards, Profile
from server.resolve import any_seed, resolve
from server.wire import GenerateRequest

PROFILE = Profile(
    name="test", family="sdxl", prediction="v", zsnr=True, defaults=Defaults(cfg_rescale=0.2), guards=Guards(mimic_scale=4.0)
)  # fmt: skip


def job(parameters=None, **top):
    request = GenerateRequest.model_validate({"input": "1girl", "parameters": parameters or {}, **top})
    return resolve(request, PROFILE, lambda: 99).job


def test_what_a_request_leaves_out_the_profile_decides():
    found = job()
    assert (found.width, found.height, found.steps) == (832, 1216, 28)
    assert (found.sampler, found.schedule) == ("k_euler", "native")
    assert (found.guidance.scale, found.guidance.rescale, found.guidance.uncond_scale) == (5.0, 0.2, 1.0)
    assert found.seeds == (99,)


def test_what_a_request_says_wins_even_when_it_is_nothing():
    found = job({"cfg_rescale": 0, "scale": 0, "negative_prompt": "", "uc": "ignored"})
    assert (found.guidance.rescale, found.guidance.scale) == (0.0, 0.0)
    assert found.prompts.negative == ""


def test_the_old_names_of_texts_are_understood():
    assert job({"uc": "bad"}).prompts.negative == "bad"
    assert job({"prompt": "cat"}, input="").prompts.positive == "cat"
    assert job({"prompt": "cat"}).prompts.positive == "1girl"


@pytest.mark.parametrize(
    ("seed", "first"),
    [(5, 5), (0, 99), (-1, 4294967295), (9999999999, 9999999999 % 2**32), (2**32, 99), ("7", 7)],
)
def test_any_number_is_a_seed(seed, first):
    assert job({"seed": seed}).seeds == (first,)


def test_samples_have_neighbouring_seeds_around_the_end_of_their_range():
    assert job({"seed": 2**32 - 1, "n_samples": 3}).seeds == (2**32 - 1, 0, 1)


def test_the_server_never_picks_seed_zero():
    assert all(0 < any_seed() < 2**32 for _ in range(1000))


@pytest.mark.parametrize(
    ("asked", "sampler", "smea"),
    [
        ({"sampler": "ddim"}, "ddim_v3", "off"),
        ({"sampler": "nai_smea"}, "k_euler_ancestral", "smea"),
        ({"sampler": "nai_smea_dyn"}, "k_euler_ancestral", "dyn"),
        ({"sm": True}, "k_euler", "smea"),
        ({"sm_dyn": True}, "k_euler", "dyn"),
        ({"sampler": "k_lms", "sm": True}, "k_lms", "off"),
        ({"sampler": "ddim_v3", "sm": "true", "sm_dyn": "true"}, "ddim_v3", "off"),
    ],
)
def test_samplers_aliases_and_smea(asked, sampler, smea):
    found = job(asked)
    assert (found.sampler, found.smea) == (sampler, smea)


@pytest.mark.parametrize(("given", "meant"), [(None, 1.0), (0, 1.0), (1e-5, 1e-5), (0.5, 0.5)])
def test_uncond_scale_zero_means_one(given, meant):
    assert job({"uncond_scale": given}).guidance.uncond_scale == meant


def test_the_guidance_window_is_open_until_it_is_set():
    assert job().guidance.skip_above == math.inf
    found = job({"skip_cfg_above_sigma": 19, "skip_cfg_below_sigma": 0.5}).guidance
    assert (found.skip_above, found.skip_below) == (19.0, 0.5)


def test_dynamic_thresholding_imitates_the_profiles_scale():
    threshold = job({"dynamic_thresholding": "true"}).guidance.threshold
    assert threshold is not None
    assert threshold.mimic_scale == 4.0
    assert job({"dynamic_thresholding": "false"}).guidance.threshold is None


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"sampler": "k_eular"}, "parameters.sampler: 'k_eular' is not a sampler (did you mean 'k_euler'?)"),
        ({"noise_schedule": "karas"}, "parameters.noise_schedule: 'karas' is not a noise schedule"),
        ({"width": 3072, "height": 3072}, "3072x3072 is more than 3145728 pixels"),
        ({"image": "AAAA"}, "draws from text"),
    ],
)
def test_what_cannot_be_done_names_field_value_and_what_is_allowed(parameters, said):
    with pytest.raises(Rejected) as refused:
        job(parameters)
    assert said in refused.value.message


def test_text_beyond_the_limit_is_told():
    request = GenerateRequest(input="cat " * 300)
    assert resolve(request, PROFILE).warnings == ("input: 300 tokens, cut after 225",)
