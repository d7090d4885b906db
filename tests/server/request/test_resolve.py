"""From requests to jobs: defaults, refusals and warnings."""

import math
from base64 import b64encode
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image

from pipelines.job import Character, Guidance, InitImage, Prompts, RgbImage, Threshold, UncondZero
from pipelines.sampling.samplers import ALIASES, SAMPLERS
from pipelines.sampling.schedules import SCHEDULES
from server.config.catalog import single_model_catalog
from server.config.profiles import Defaults, Guards, Profile
from server.config.resources import configs
from server.engine.model import detect_model
from server.errors import Rejected
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, random_seed, resolve
from server.request.schema import read_request

PRESETS = load_presets(configs() / "presets.toml")
PROFILE = Profile(
    name="test", family="sdxl", prediction="v", zsnr=True, sigma_start=41.0,
    defaults=Defaults(sampler="k_dpmpp_2m", noise_schedule="karras", steps=23, scale=6.5, cfg_rescale=0.2, width=640, height=512),
    guards=Guards(mimic_scale=4.0, warn_scale_above=7.0),
)  # fmt: skip
BIG = {"width": 1536, "height": 1536}


@pytest.fixture(scope="module")
def served(demo_file):
    """A catalog's first model, also listed as `mine`; its `nai-diffusion-furry-3` is another checkpoint."""
    found = detect_model(single_model_catalog(demo_file))
    listed = {"ids": ("nai-diffusion-3", "mine"), "other_ids": ("nai-diffusion-furry-3",)}
    return replace(found, id="nai-diffusion-3", profile=PROFILE, **listed)


@pytest.fixture(scope="module")
def ask(served):
    def ask(parameters=None, profile=PROFILE, **top):
        names = ("mode", "unknown_models", "characters")
        choices = {name: top.pop(name) for name in names if name in top}
        policy = RequestPolicy(replace(served, profile=profile), PRESETS, **choices)
        request = read_request({"input": "cat", "parameters": parameters or {}, **top})
        return resolve(request, policy, lambda: 99)

    return ask


@pytest.fixture
def refusal(ask):
    def refusal(*given, **more):
        with pytest.raises(Rejected) as refused:
            ask(*given, **more)
        return refused.value.message

    return refusal


def test_missing_fields_default_to_the_profile(ask):
    found = ask()
    job, guidance = found.job, found.job.guidance
    assert (job.model, job.passes[0].width, job.passes[0].height, job.steps) == (
        "nai-diffusion-3",
        640,
        512,
        23,
    )
    assert (job.sampler, job.schedule, job.sigma_start) == ("k_dpmpp_2m", "karras", 41.0)
    assert guidance == Guidance(6.5, 0.2, 1.0, threshold=None, skip_above=math.inf, skip_below=0.0)
    assert job.prompts == Prompts("cat", "", "nai", drop_seam_tokens=False)
    assert (job.passes[0].seeds, job.passes[0].smea, job.brownian) == ((99,), "off", False)
    assert (found.image_format, found.warnings) == ("png", ())
    assert found.recorded == {"deliberate_euler_ancestral_bug": True, "prefer_brownian": False}


def test_null_and_empty_names_count_as_missing(ask):
    names = "width steps seed scale uc sm skip_cfg_above_sigma image_format n_samples legacy qualityToggle"
    assert ask(dict.fromkeys(names.split()), model=None, action=None) == ask()
    assert ask({"sampler": "", "noise_schedule": ""}, model="") == ask()


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        ({"width": 96, "height": 1024}, lambda job: (job.passes[0].width, job.passes[0].height) == (96, 1024)),
        ({"width": 128}, lambda job: (job.passes[0].width, job.passes[0].height) == (128, 512)),
        ({"steps": 1}, lambda job: job.steps == 1),
        ({"scale": 0}, lambda job: job.guidance.scale == 0.0),
        ({"scale": 25}, lambda job: job.guidance.scale == 25.0),
        ({"cfg_rescale": 0}, lambda job: job.guidance.rescale == 0.0),
        ({"cfg_rescale": 0.7}, lambda job: job.guidance.rescale == 0.7),
        ({"uncond_scale": 0}, lambda job: job.guidance.uncond_scale == 1.0),
        ({"uncond_scale": 1e-5}, lambda job: job.guidance.uncond_scale == 1e-5),
        ({"uncond_scale": 1.5}, lambda job: job.guidance.uncond_scale == 1.5),
        ({"dynamic_thresholding": "true"}, lambda job: job.guidance.threshold == Threshold(0.999, 4.0)),
        ({"dynamic_thresholding": "false"}, lambda job: job.guidance.threshold is None),
        ({"skip_cfg_above_sigma": 19}, lambda job: job.guidance.skip_above == 19.0),
        ({"skip_cfg_above_sigma": 0}, lambda job: job.guidance.skip_above == 0.0),
        ({"skip_cfg_below_sigma": 0.5}, lambda job: job.guidance.skip_below == 0.5),
        ({"legacy_v3_extend": True}, lambda job: job.prompts.drop_seam_tokens),
        ({"noise_schedule": "native"}, lambda job: job.schedule == "native"),
        ({"prefer_brownian": True}, lambda job: job.brownian),
    ],
)  # fmt: skip
def test_sent_values_win_over_defaults_even_if_falsy(ask, parameters, found):
    assert found(ask(parameters).job)


def test_uncond_zero_replaces_the_negative_guidance_with_a_warning(ask):
    ignored = {"scale": 9, "uc": "bad", "uncond_scale": 0.5, "dynamic_thresholding": True}
    found = ask(ignored | {"uncond_zero": 0.8, "uncond_zero_sharpness": 0, "skip_cfg_below_sigma": 2})
    assert found.job.guidance == Guidance(9.0, 0.2, skip_below=2.0, uncond_zero=UncondZero(0.8, 0.0))
    names = "scale, negative_prompt, uncond_scale, dynamic_thresholding"
    assert found.warnings == (f"uncond_zero: replaces {names}; no effect here",)


def test_uncond_zero_may_be_the_profile_s_default(ask):
    profile = PROFILE.model_copy(update={"defaults": Defaults(uncond_zero=0.7)})
    assert ask({}, profile).job.guidance.uncond_zero == UncondZero(0.7, 1.0)
    assert ask({"uncond_zero": 0}, profile).job.guidance.uncond_zero is None
    assert ask({}, profile).warnings == ()


def test_sharpness_without_uncond_zero_gets_a_warning(ask):
    found = ask({"uncond_zero_sharpness": 1})
    assert found.job == ask().job
    assert found.warnings == ("uncond_zero_sharpness: has no effect without uncond_zero",)


def test_echoed_flags_change_no_job(ask):
    found = ask({"legacy": True, "deliberate_euler_ancestral_bug": False, "image_format": "webp"})
    recorded = {"legacy": True, "deliberate_euler_ancestral_bug": False, "prefer_brownian": False}
    assert found.recorded == recorded
    assert ask({"legacy": False}).recorded["legacy"] is False
    assert found.image_format == "webp"
    assert found.job == ask().job


def test_fields_of_other_tasks_change_nothing(ask):
    junk = {"strength": 0.7, "noise": "x", "extra_noise_seed": 1, "mask": "AAAA", "image": "", "v4_prompt": 5}
    none = {"reference_image": None, "reference_image_multiple": [], "params_version": 3, "stream": "sse"}
    found = ask(junk | none)
    assert found.warnings == ("mask: has no effect with generate, only with infill",)
    assert replace(found, warnings=()) == ask()


def test_smea_is_applied_for_the_ids_of_later_models_too(ask):
    for model in ("nai-diffusion-4-5-full", "nai-diffusion-5-full"):
        assert ask({"sm": True}, model=model).job.passes[0].smea == "smea"
        assert ask({"sm_dyn": True}, model=model).job.passes[0].smea == "dyn"


# init images


def base64_of(colour, size=(64, 96)):
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return b64encode(file.getvalue()).decode()


PICTURE, WHITE = base64_of("black"), base64_of("white")
SIZE = {"width": 64, "height": 96, "seed": 5}


@pytest.mark.parametrize("action", ["img2img", "generate", None])
def test_an_image_selects_img2img_with_nais_defaults(ask, action):
    first = ask(SIZE | {"image": WHITE, "mask": "junk" if action else None}, action=action).job.passes[0]
    assert (first.strength, first.noise, first.noise_seed) == (0.7, 0.0, 5)
    assert first.init == InitImage(RgbImage(64, 96, b"\xff" * (64 * 96 * 3)))


def test_img2img_reads_strength_noise_and_its_seed(ask):
    fields = {"strength": "0.3", "noise": 0.1, "extra_noise_seed": -1}
    first = ask(SIZE | {"image": WHITE} | fields).job.passes[0]
    assert (first.strength, first.noise, first.noise_seed) == (0.3, 0.1, 2**32 - 1)


def test_extra_noise_defaults_to_the_picked_seed(ask):
    job = ask(SIZE | {"image": WHITE, "seed": 0}).job
    assert job.passes[0].noise_seed == job.passes[0].seeds[0]


@pytest.mark.parametrize("action", ["infill", None])
def test_infill_ignores_the_strength_that_every_client_sends(ask, action):
    job = ask(SIZE | {"image": PICTURE, "mask": WHITE, "strength": 0.7, "noise": 0.2}, action=action).job
    assert (job.passes[0].strength, job.passes[0].noise, job.passes[0].init.overlay) == (1.0, 0.0, "soft")
    assert job.passes[0].init.mask == b"\xff" * (8 * 12)


def test_infill_has_its_own_strength_and_overlays(ask):
    infill = SIZE | {"image": PICTURE, "mask": WHITE}
    assert ask(infill | {"inpaintImg2ImgStrength": 0.4}).job.passes[0].strength == 0.4
    assert ask(infill | {"add_original_image": False}).job.passes[0].init.overlay == "none"
    assert ask(infill | {"add_original_image": False, "overlay": "hard"}).job.passes[0].init.overlay == "hard"


def test_init_images_exclude_smea_and_infill_excludes_ddim(ask):
    job = ask(SIZE | {"image": WHITE, "sm": True, "sm_dyn": True, "sampler": "ddim"}).job
    assert (job.sampler, job.passes[0].smea) == ("ddim_v3", "off")
    found = ask(SIZE | {"image": PICTURE, "mask": WHITE, "sampler": "ddim"}, action="infill")
    assert found.job.sampler == "k_euler_ancestral"
    assert "sampler: 'ddim' cannot infill; k_euler_ancestral was used" in found.warnings


# texts


OWL, RAT = ({"caption": {"base_caption": text}} for text in ("owl", "rat"))


@pytest.mark.parametrize(
    ("top", "sent", "positive", "negative"),
    [
        ({}, {"prompt": "dog"}, "cat", ""),
        ({"input": " "}, {"prompt": "dog"}, "dog", ""),
        ({"input": None}, {}, "", ""),
        ({}, {"uc": "bad"}, "cat", "bad"),
        ({}, {"uc": "bad", "negative_prompt": "worse"}, "cat", "worse"),
        ({}, {"uc": "bad", "negative_prompt": " "}, "cat", "bad"),
        ({}, {"qualityToggle": True, "ucPreset": 3}, "cat, best quality, amazing quality, very aesthetic, absurdres", "lowres"),
        # what a V4 client means; other models are sent it for the record, and with nothing else it is all there is
        ({"model": "nai-diffusion-4-full"}, {"v4_prompt": OWL, "v4_negative_prompt": RAT, "negative_prompt": "bad"}, "owl", "rat"),
        ({"model": "nai-diffusion-4-full"}, {"v4_prompt": OWL, "negative_prompt": "bad"}, "owl", "bad"),
        ({"model": "nai-diffusion-4-full"}, {"v4_negative_prompt": RAT, "negative_prompt": "bad"}, "cat", "rat"),
        ({"model": "nai-diffusion-4-full"}, {"uc": "bad"}, "cat", "bad"),
        ({"model": "nai-diffusion-4-curated"}, {"v4_prompt": OWL}, "owl", ""),
        ({"model": "nai-diffusion-5-full"}, {"v4_prompt": OWL}, "owl", ""),
        ({"model": "nai-diffusion-3"}, {"v4_prompt": OWL, "v4_negative_prompt": RAT}, "cat", ""),
        ({"model": "nai-diffusion-3", "input": ""}, {"v4_prompt": OWL, "v4_negative_prompt": RAT}, "owl", "rat"),
    ],
)  # fmt: skip
def test_prompts_are_read_from_any_of_their_fields(ask, top, sent, positive, negative):
    prompts = ask(sent, **top).job.prompts
    assert (prompts.positive, prompts.negative) == (positive, negative)


def place(*texts):
    """Return a structured prompt with a character for each text, the first one at the left."""
    characters = [
        {"char_caption": text, "centers": [{"x": 0.3 + 0.4 * index, "y": 0.5}]}
        for index, text in enumerate(texts)
    ]
    return {"caption": {"base_caption": "2girls", "char_captions": characters}, "use_coords": True}


def test_characters_by_place_are_apart_from_the_prompt_with_its_presets(ask):
    sent = {"v4_prompt": place("red hair", "blue hair"), "qualityToggle": True}
    prompts = ask(sent, model="nai-diffusion-4-full").job.prompts
    assert prompts.positive.startswith("2girls, ")
    assert "hair" not in prompts.positive
    assert prompts.characters == (Character("red hair", "", 0.3, 0.5), Character("blue hair", "", 0.7, 0.5))


def test_characters_are_one_text_if_the_operator_wants_that(ask):
    sent = {"v4_prompt": place("red hair", "blue hair")}
    prompts = ask(sent, model="nai-diffusion-4-full", characters="flatten").job.prompts
    assert prompts == Prompts("2girls, red hair, blue hair", "", "nai4", drop_seam_tokens=False)


def test_a_character_counts_for_the_preset_and_the_length(ask):
    sent = {"v4_prompt": place("nsfw, red hair"), "ucPreset": 0}
    assert not ask(sent, model="nai-diffusion-4-full").job.prompts.negative.startswith("nsfw")
    found = ask({"v4_prompt": place("cat " * 230)}, model="nai-diffusion-4-full")
    assert found.warnings[-1] == "v4_prompt: 233 tokens, cut after 225"


def test_invalid_captions_are_refused_only_for_models_that_read_them(ask, refusal):
    wrong = {"v4_prompt": {"caption": {"base_caption": 5}}, "v4_negative_prompt": []}
    assert ask(wrong).job.prompts.positive == "cat"
    message = "parameters.v4_prompt.caption.base_caption: 5 is not a text"
    assert refusal(wrong, model="nai-diffusion-4-full") == message
    assert refusal(wrong, input="") == message
    message = "parameters.v4_negative_prompt: an array is not an object"
    assert refusal({"v4_negative_prompt": []}, model="nai-diffusion-4-full") == message


def test_the_profile_selects_the_prompt_syntax(ask):
    a1111 = PROFILE.model_copy(update={"syntax": "a1111"})
    prompts = ask({"qualityToggle": True}, profile=a1111, model="safe-diffusion", input="cat|dog").job.prompts
    assert prompts == Prompts("masterpiece, best quality, cat|dog", "", "a1111")


@pytest.mark.parametrize(
    ("model", "syntax"),
    [
        *(("nai-diffusion-3", "nai"), ("nai-diffusion-furry-3", "nai"), ("nai-diffusion-2", "nai"), ("mine", "nai")),
        *(("nai-diffusion-4-full", "nai4"), ("nai-diffusion-4-curated", "nai4"), ("nai-diffusion-4-5-full-inpainting", "nai4")),
        *(("nai-diffusion-5-full", "nai4"), ("nai-diffusion-5-full-medium", "nai4"), (None, "nai"), ("custom", "nai")),
    ],
)  # fmt: skip
def test_the_requested_model_selects_the_prompt_syntax(ask, model, syntax):
    listed = model != "nai-diffusion-furry-3"
    top = {"model": model if listed else "nai-diffusion-furry-3-v2", "input": "2::cat::"}
    assert ask(**top).job.prompts == Prompts("2::cat::", "", syntax)
    a1111 = PROFILE.model_copy(update={"syntax": "a1111"})
    assert ask(profile=a1111, **top).job.prompts.syntax == "a1111"


def test_what_a_prompt_in_the_syntax_of_v4_loses_is_said(ask):
    def warn(text, **parameters):
        found = ask(parameters, model="nai-diffusion-4-full", input=text)
        assert found.job.prompts.positive == text
        return found.warnings[1:]  # the first says which model answers

    lettering = "input: the lettering after 'text:' was left out; this model writes no text"
    assert warn("sign, teXt: hello") == (lettering,)
    assert warn("sign|girl, Text: hello") == (lettering,)
    assert warn("2::sign::, -1::hat::, a|b|c|d|e|f|g|h", negative_prompt="text: a") == ()
    assert warn("year 2022::a") == ("input: weight 2022 is above 100, which was used",)
    assert warn("-300::a") == ("negative_prompt: weight 300 is above 100, which was used",)
    long = "cat " * 200
    assert warn(f"-1::{long}", negative_prompt=long) == ("negative_prompt: 401 tokens, cut after 225",)


def test_the_policy_selects_the_preset_mode(ask):
    assert ask({"qualityToggle": True, "ucPreset": 0}, mode="client").job == ask().job
    assert ask(mode="always").job.prompts.negative.startswith("nsfw, lowres, {bad}")


def test_presets_are_those_of_the_requested_model(ask):
    flags = {"qualityToggle": True, "ucPreset": 1}
    assert ask(flags, model="nai-diffusion-2").job.prompts.positive.startswith("very aesthetic, best")
    assert ask(flags, model="nai-diffusion-4-curated").job.prompts.positive.startswith("cat, rating:general")
    assert ask(flags, model="safe-diffusion").job.prompts.negative.startswith("lowres, text")


# sizes and numbers of pictures


@pytest.mark.parametrize(
    ("width", "height", "most"),
    [
        (64, 64, 8),
        (512, 704, 8),  # 360,448
        (608, 608, 6),
        (640, 640, 6),  # 409,600
        (640, 672, 4),
        (832, 1216, 4),
        (1024, 3072, 4),  # 3,145,728
        (49152, 64, 4),
    ],
)
def test_the_number_of_images_is_limited_by_area(ask, refusal, width, height, most):
    size = {"width": width, "height": height}
    assert len(ask(size | {"n_samples": most}).job.passes[0].seeds) == most
    if most < 8:
        message = f"parameters.n_samples: {most + 1} images of {width}x{height}; at most {most}"
        assert refusal(size | {"n_samples": most + 1}) == message


@pytest.mark.parametrize(("width", "height"), [(224, 14048), (1024, 3104), (49152, 96), (3072, 3072)])
def test_areas_above_the_limit_are_refused(refusal, width, height):
    message = f"parameters.width: {width}x{height} is {width * height} pixels; at most 3145728"
    assert refusal({"width": width, "height": height}) == message


@pytest.mark.parametrize(
    ("seed", "first"),
    [
        *((5, 5), (0, 99), (None, 99), (-1, 4294967295), (-(2**32), 99), (2**32, 99), (2**32 - 1, 2**32 - 1)),
        *((9999999999, 1410065407), (2**63 - 1, 4294967295), ("7", 7), (-0.0, 99), (1e10, 1410065408)),
    ],
)
def test_any_integer_is_a_seed(ask, seed, first):
    assert ask({"seed": seed}).job.passes[0].seeds == (first,)


def test_seeds_count_up_and_wrap_around(ask):
    assert ask({"seed": 2**32 - 1, "n_samples": 3}).job.passes[0].seeds == (2**32 - 1, 0, 1)
    assert ask({"n_samples": 2}).job.passes[0].seeds == (99, 100)


def test_the_server_never_picks_seed_zero():
    assert all(0 < random_seed() < 2**32 for _ in range(1000))


# samplers and schedules


@pytest.mark.parametrize("name", [*SAMPLERS, *ALIASES])
def test_every_sampler_of_nai_is_accepted(ask, name):
    found = ask({"sampler": name})
    assert found.job.sampler == ALIASES.get(name, (name,))[0]
    assert found.warnings == ()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_accepted(ask, name):
    assert ask({"noise_schedule": name}).job.schedule == name


NATIVE = ("ddim_v3", "ddim", "plms", "k_lms", "k_dpm_fast", "nai_smea", "nai_smea_dyn")


@pytest.mark.parametrize("sampler", NATIVE)
def test_unusable_schedules_are_replaced_with_a_warning(ask, sampler):
    for name in set(SCHEDULES) - {"native"}:
        found = ask({"sampler": sampler, "noise_schedule": name})
        assert found.job.schedule == "native"
        assert found.warnings == (f"noise_schedule: {name!r} cannot be used with {sampler}; native was used",)
    for harmless in ({"noise_schedule": "native"}, {}):
        found = ask({"sampler": sampler, **harmless})
        assert (found.job.schedule, found.warnings) == ("native", ())


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name not in NATIVE])
def test_other_samplers_accept_every_schedule(ask, sampler):
    assert ask({"sampler": sampler, "noise_schedule": "polyexponential"}).job.schedule == "polyexponential"


@pytest.mark.parametrize(
    ("asked", "sampler", "smea"),
    [
        ({"sm": True}, "k_dpmpp_2m", "smea"),
        ({"sm_dyn": True}, "k_dpmpp_2m", "dyn"),
        ({"sm": False, "sm_dyn": True}, "k_dpmpp_2m", "dyn"),
        ({"sampler": "nai_smea"}, "k_euler_ancestral", "smea"),
        ({"sampler": "nai_smea", "sm": False}, "k_euler_ancestral", "smea"),
        ({"sampler": "nai_smea_dyn", "sm": False, "sm_dyn": False}, "k_euler_ancestral", "dyn"),
        ({"sampler": "nai_smea_dyn", "sm": True}, "k_euler_ancestral", "dyn"),
        ({"sampler": "ddim", "sm": True, "sm_dyn": True}, "ddim_v3", "off"),
        ({"sampler": "ddim_v3", "sm": "true", "sm_dyn": "true"}, "ddim_v3", "off"),
        ({"sampler": "plms", "sm": True}, "plms", "off"),
        ({"sampler": "k_lms", "sm": True}, "k_lms", "off"),
        ({"sampler": "k_dpm_fast", "sm": True}, "k_dpm_fast", "smea"),
        # by area: from 2,166,785 pixels, which 1472x1472 misses by one
        ({"autoSmea": True, "width": 1472, "height": 1472}, "k_dpmpp_2m", "off"),
        ({"autoSmea": True, "width": 1472, "height": 1504}, "k_dpmpp_2m", "smea"),
        ({"auto_smea": True, **BIG}, "k_dpmpp_2m", "smea"),
        ({"autoSmea": True, "sm": False, **BIG}, "k_dpmpp_2m", "smea"),
        ({"autoSmea": True, "sm_dyn": True, **BIG}, "k_dpmpp_2m", "dyn"),
        ({"autoSmea": True, "sampler": "ddim_v3", **BIG}, "ddim_v3", "off"),
        ({"autoSmea": False, **BIG}, "k_dpmpp_2m", "off"),
        ({"autoSmea": "yes", **BIG}, "k_dpmpp_2m", "off"),
        (BIG, "k_dpmpp_2m", "off"),
    ],
)
def test_samplers_aliases_and_smea(ask, asked, sampler, smea):
    job = ask(asked).job
    assert (job.sampler, job.passes[0].smea) == (sampler, smea)


@pytest.mark.parametrize(
    ("asked", "bug", "brownian"),
    [
        ({"sampler": "k_euler_ancestral", "noise_schedule": "native"}, True, False),
        ({"sampler": "k_euler_ancestral", "noise_schedule": "karras"}, False, True),
        ({"sampler": "k_euler_ancestral"}, False, True),  # the profile's karras
        ({"sampler": "nai_smea", "noise_schedule": "karras"}, True, False),
        ({"sampler": "k_euler", "noise_schedule": "karras"}, True, False),
        ({"sampler": "k_euler_ancestral", "deliberate_euler_ancestral_bug": True, "prefer_brownian": False}, True, False),
        ({"sampler": "k_euler", "deliberate_euler_ancestral_bug": False, "prefer_brownian": True}, False, True),
    ],
)  # fmt: skip
def test_ancestral_flags(ask, asked, bug, brownian):
    found = ask(asked)
    assert found.recorded == {"deliberate_euler_ancestral_bug": bug, "prefer_brownian": brownian}
    assert found.job.brownian is brownian


# models


@pytest.mark.parametrize("setting", ["map", "refuse"])
@pytest.mark.parametrize("model", ["nai-diffusion-3", "nai-diffusion-3-inpainting", "mine", None, ""])
def test_the_loaded_model_answers_to_all_its_ids(ask, model, setting):
    found = ask(model=model, unknown_models=setting)
    assert (found.job.model, found.warnings) == ("nai-diffusion-3", ())


@pytest.mark.parametrize("model", ["nai-diffusion-2", "nai-diffusion-5-full", "stable-diffusion", "x" * 200])
def test_an_unknown_model_is_answered_by_the_loaded_one_or_refused(ask, refusal, model):
    found = ask(model=model)
    assert found.job.model == "nai-diffusion-3"
    assert found.warnings == (f"model: {model!r} is answered by 'nai-diffusion-3'",)
    assert refusal(model=model, unknown_models="refuse").startswith(f"model: {model!r} is not served")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nai-difusion-3", "model: 'nai-difusion-3' is not served; did you mean 'nai-diffusion-3'?; served: nai-diffusion-3, mine"),
        ("dalle-mini", "model: 'dalle-mini' is not served; served: nai-diffusion-3, mine"),
    ],
)  # fmt: skip
def test_a_refusal_lists_the_served_models(refusal, model, message):
    assert refusal(model=model, unknown_models="refuse") == message


@pytest.mark.parametrize("setting", ["map", "refuse"])
@pytest.mark.parametrize("kind", ["", "-inpainting"])
@pytest.mark.parametrize("model", ["nai-diffusion-furry-3", "nai-diffusion-3-furry"])
def test_a_listed_model_that_is_not_loaded_is_refused(refusal, model, kind, setting):
    name = PRESETS.canonical(model + kind)
    message = f"model: {name!r} is in the catalog but not loaded; loaded is 'nai-diffusion-3'"
    assert refusal(model=model + kind, unknown_models=setting) == message


def test_an_inpainting_model_that_is_listed_answers_to_its_own_id(served):
    id_ = "nai-diffusion-3-inpainting"
    own = replace(served, id=id_, ids=(id_,))
    request = read_request({"input": "cat", "model": id_, "parameters": {}})
    for policy in (
        RequestPolicy(served, PRESETS, others=(own,)),
        RequestPolicy(own, PRESETS, others=(served,)),
    ):
        assert resolve(request, policy).job.model == id_
    broken = RequestPolicy(served, PRESETS, problems={id_: "no such file"})
    with pytest.raises(Rejected, match="cannot be served: no such file"):
        resolve(request, broken)


# refusals and warnings


@pytest.mark.parametrize(
    ("top", "parameters", "message"),
    [
        ({}, {"sampler": "k_eular"}, "parameters.sampler: 'k_eular' is not a sampler (did you mean 'k_euler'?); known: k_euler, k_euler_ancestral, "),
        ({}, {"sampler": "K_EULER"}, "parameters.sampler: 'K_EULER' is not a sampler"),
        ({}, {"noise_schedule": "karas"}, "parameters.noise_schedule: 'karas' is not a noise schedule (did you mean 'karras'?); known: native, "),
        ({}, {"noise_schedule": "karas", "sampler": "ddim_v3"}, "parameters.noise_schedule: 'karas' is not a noise schedule"),
        # init images
        ({}, {"image": "AAAA"}, "parameters.image: not a PNG, WebP or JPEG image"),
        ({"action": "img2img"}, {"image": "AAAA", "strength": 7}, "parameters.strength: 7 is not a number from 0 to 1"),
        ({}, {"image": "AAAA", "noise": "much"}, "parameters.noise: 'much' is not a number from 0 to 1"),
        ({}, {"image": "http://169.254.169.254/x"}, "parameters.image: not Base64; send an image in Base64"),
        ({}, {"image": {"url": "file:///etc/passwd"}}, "parameters.image: not a string"),
        ({"action": "infill"}, {"image": PICTURE, "mask": "AAAA"}, "parameters.mask: not a PNG, WebP or JPEG image"),
        ({"action": "infill"}, {"image": PICTURE, "mask": PICTURE}, "parameters.mask: black everywhere"),
        ({"action": "infill"}, {"image": PICTURE, "mask": WHITE, "inpaintImg2ImgStrength": 0}, "parameters.inpaintImg2ImgStrength: 0 is not a number above 0"),
        ({"action": "img2img"}, {"strength": 0.7}, "parameters.image: img2img needs an image"),
        ({"action": "img2img"}, {"image": ""}, "parameters.image: img2img needs an image"),
        ({"action": "infill"}, {"image": "AAAA"}, "parameters.mask: infill needs an image and a mask"),
        ({"action": "infill"}, {"mask": "AAAA"}, "parameters.mask: infill needs an image and a mask"),
        ({}, {"reference_image": "AAAA"}, "parameters.reference_image: remove the reference images; the model has no image adapter (`vibe` in the catalog)"),
        ({}, {"reference_image_multiple": ["AAAA"]}, "parameters.reference_image_multiple.0: remove the reference images; the model has no image adapter"),
    ],
)  # fmt: skip
def test_refusals_name_the_field_the_value_and_what_is_allowed(refusal, top, parameters, message):
    assert refusal(parameters, **top).startswith(message)


@pytest.mark.parametrize(
    ("top", "parameters", "message"),
    [
        ({"input": "cat " * 225}, {}, ()),
        ({"input": "cat " * 226}, {}, ("input: 226 tokens, cut after 225",)),
        ({"input": "cat " * 225 + "|" + "cat " * 224}, {}, ()),
        ({"input": "cat|" + "cat " * 300}, {}, ("input: 300 tokens, cut after 225",)),
        ({"input": "1" * 225}, {}, ()),
        ({"input": "1" * 226}, {}, ("input: 226 tokens, cut after 225",)),
        ({"input": "\u6f22" * 100}, {}, ("input: 300 tokens, cut after 225",)),
        ({}, {"negative_prompt": "cat " * 230}, ("negative_prompt: 230 tokens, cut after 225",)),
        ({}, {"uc": "cat " * 230, "scale": 7.5}, ("negative_prompt: 230 tokens, cut after 225", "scale: 7.5 is above what this model is suited to (7)")),
        ({}, {"scale": 7}, ()),
        ({"model": "x"}, {"sampler": "ddim_v3", "noise_schedule": "karras"},
         ("model: 'x' is answered by 'nai-diffusion-3'", "noise_schedule: 'karras' cannot be used with ddim_v3; native was used")),
    ],
)  # fmt: skip
def test_warnings(ask, top, parameters, message):
    assert ask(parameters, **top).warnings == message


def test_without_a_guard_any_scale_is_accepted_silently(ask):
    assert ask({"scale": 50}, profile=PROFILE.model_copy(update={"guards": Guards()})).warnings == ()


def test_a_model_of_few_steps_warns_of_more_and_says_what_suits_it(ask):
    defaults = Defaults(sampler="k_lcm", noise_schedule="simple", steps=4, scale=1.0)
    guards = Guards(warn_scale_above=2.0, warn_steps_above=8)
    few = PROFILE.model_copy(update={"defaults": defaults, "guards": guards})
    assert ask({}, few).warnings == ask({"steps": 8, "scale": 2}, few).warnings == ()
    found = ask({"steps": 28, "scale": 5, "sampler": "k_euler"}, few)
    assert (found.job.steps, found.job.guidance.scale, found.job.sampler) == (28, 5.0, "k_euler")
    assert found.warnings == (
        "scale: 5 is above what this model is suited to (2)",
        "steps: 28 is above what this model is suited to (8); its own are 4 steps of k_lcm with simple at scale 1",
    )


def test_a_side_too_long_for_webp_is_refused(ask, refusal):
    size = {"width": 64, "height": 49152}
    assert ask({**size, "image_format": "png"}).job.passes[0].height == 49152
    assert "webp cannot hold 64x49152; sides are at most 16383" in refusal({**size, "image_format": "webp"})


@pytest.mark.parametrize("top", [{"input": "a|" * 32}, {"parameters": {"uc": "a|" * 32}}])
def test_the_number_of_mixed_segments_is_limited(ask, refusal, top):
    message = refusal(**top) if "input" in top else refusal(top["parameters"])
    assert "mixes 33 texts; at most 32" in message
    assert ask(input="|".join("a" * 32)).job.prompts.positive.count("|") == 31


def test_a_mix_without_weight_is_refused_by_the_name_of_its_field(refusal):
    assert refusal(input="cat:0|dog:0").startswith("input: every part of the '|' mix has weight 0")
    assert refusal({"uc": "cat:0|"}).startswith("negative_prompt: every part of the '|' mix has weight 0")
