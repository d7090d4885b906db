import re

import pytest
from paths import ROOT

from pipelines.sampling.prediction import scaled_linear
from pipelines.sampling.samplers import SAMPLERS
from pipelines.sampling.schedules import SCHEDULES, make_sigmas
from pipelines.weights.detect import Detection
from server.config.profiles import find_profile, load_profiles, match_profile
from server.config.toml import ConfigError

PROFILES = load_profiles(ROOT / "configs" / "profiles")
KINDS = {
    "eps": Detection("sdxl", "single", 4, "eps", False, ()),
    "v": Detection("sdxl", "single", 4, "v", True, ()),
    "v finite": Detection("sdxl", "single", 4, "v", False, ()),
    "edm": Detection("sdxl", "single", 4, "edm_v", False, ()),
    "sd15": Detection("sd15", "single", 4, "eps", False, ()),
    "sd15 v": Detection("sd15", "single", 4, "v", True, ()),
    "sd15 v finite": Detection("sd15", "single", 4, "v", False, ()),
}


# the files' names as published
@pytest.mark.parametrize(
    ("file", "kind", "profile"),
    [
        ("NoobAI-XL-Vpred-v1.0.safetensors", "v", "noobai-vpred"),
        ("noobaiXLNAIXL_vPred10Version.safetensors", "v", "noobai-vpred"),
        ("NoobAI-XL-v1.1.safetensors", "eps", "noobai-eps"),
        ("Illustrious-XL-v0.1.safetensors", "eps", "illustrious-0"),
        ("Illustrious-XL-v1.0.safetensors", "eps", "illustrious-1"),
        ("Illustrious-XL-v1.1.safetensors", "eps", "illustrious-1"),
        ("Illustrious-XL-v2.1.safetensors", "eps", "illustrious-2"),
        ("waiIllustrious_v21.safetensors", "eps", "illustrious-2"),
        ("Illustrious-XL-v2.0.safetensors", "eps", "illustrious-2"),
        ("Illustrious-XL-v3.5-vpred.safetensors", "v", "illustrious-vpred"),
        ("animagine-xl-3.1.safetensors", "eps", "animagine-3"),
        ("animagine-xl-4.0-opt.safetensors", "eps", "animagine-4"),
        ("ponyDiffusionV6XL_v6StartWithThisOne.safetensors", "eps", "pony-v6"),
        ("AIDXLv0.8.safetensors", "eps", "aidxl"),
        ("sd_xl_base_1.0.safetensors", "eps", "sdxl-base"),
        ("cosxl.safetensors", "edm", "cosxl"),
        ("nai-anime-v1-full-fp16.safetensors", "sd15", "nai-v1"),
        ("novelaiDiffusionV2_novelaiV2.safetensors", "sd15", "nai-v2"),
        ("naiad-demo.safetensors", "v", "demo"),
        ("mine.safetensors", "v", "sdxl-v"),
        ("mine.safetensors", "v finite", "sdxl-v-finite"),
        ("mine.safetensors", "eps", "sdxl-eps"),
        ("mine.safetensors", "edm", "cosxl"),
        ("mine.safetensors", "sd15", "sd15"),
        ("mine.safetensors", "sd15 v", "sd15-v-zsnr"),
        ("EasyFluffV11.2.safetensors", "sd15 v finite", "sd15-v"),
        ("sdxl_lightning_4step.safetensors", "eps", "lightning-4step"),
        ("sdxl_lightning_8step.safetensors", "eps", "lightning"),
        ("juggernautXL_v9Rdphoto2Lightning.safetensors", "eps", "lightning"),
        ("animagine-xl-3.1-lightning.safetensors", "eps", "lightning"),
        ("NoobAI-XL-Vpred-v1.0-lightning.safetensors", "v", "lightning"),
        ("Hyper-SDXL-1step-Unet-Comfyui.fp16.safetensors", "eps", "hyper"),
        ("realvisxlV40_v40HyperBakedvae.safetensors", "eps", "hyper"),
        ("mineXL_hyper.safetensors", "eps", "hyper"),
        ("mine-Hyper-SDXL-8steps-CFG.safetensors", "eps", "hyper-cfg"),
        ("hyper_realistic-illustrious.safetensors", "eps", "illustrious-2"),
        ("hyperionXL.safetensors", "eps", "sdxl-eps"),
        ("dmd2_sdxl_4step_unet_fp16.safetensors", "eps", "dmd2"),
        ("illustriousXL_DMD2.safetensors", "eps", "dmd2"),
        ("lcm-sdxl-merge.safetensors", "eps", "lcm"),
        ("dreamshaperXL_lcm.safetensors", "eps", "lcm"),
        ("filmCraft.safetensors", "eps", "sdxl-eps"),
        ("sd_xl_turbo_1.0_fp16.safetensors", "eps", "sdxl-turbo"),
        ("dreamshaperXL_v21TurboDPMSDE.safetensors", "eps", "turbo"),
        ("sd15_lightning.safetensors", "sd15", "sd15"),
    ],
)
def test_a_published_file_gets_its_profile(file, kind, profile):
    match, reason = match_profile(PROFILES, file, KINDS[kind])
    assert match.name == profile
    assert reason


# from the models' cards and diffusers' schedulers: trailing, and LCMScheduler of 50 original steps
@pytest.mark.parametrize(
    ("name", "steps", "timesteps"),
    [
        ("sdxl-turbo", 1, [999]),
        ("sdxl-turbo", 4, [999, 749, 499, 249]),
        ("lightning-4step", 4, [999, 749, 499, 249]),
        ("lightning", 2, [999, 499]),
        ("lightning", 8, [999, 874, 749, 624, 499, 374, 249, 124]),
        ("hyper", 8, [999, 874, 749, 624, 499, 374, 249, 124]),
        ("hyper-cfg", 8, [999, 874, 749, 624, 499, 374, 249, 124]),
        ("dmd2", 4, [999, 749, 499, 249]),
        ("lcm", 4, [999, 759, 499, 259]),
        ("lcm", 6, [999, 839, 679, 499, 339, 179]),
        ("lcm", 8, [999, 879, 759, 639, 499, 379, 259, 139]),
    ],
)
def test_a_distilled_model_gets_the_timesteps_of_its_distillation(name, steps, timesteps):
    schedule = find_profile(PROFILES, name).defaults.noise_schedule
    for table in (scaled_linear(), scaled_linear(zsnr=True)):
        sigmas = make_sigmas(schedule, steps, table)
        assert sigmas == (*(table.sigmas[t] for t in timesteps), 0.0)


def test_distilled_models_warn_of_what_nai_s_clients_send():
    few = [profile for profile in PROFILES if profile.match.first]
    assert len(few) == 8
    for profile in few:
        guards, defaults = profile.guards, profile.defaults
        assert guards.warn_steps_above is not None
        assert guards.warn_scale_above is not None
        assert defaults.steps <= guards.warn_steps_above < 28
        assert defaults.scale <= guards.warn_scale_above
        assert guards.warn_scale_above < 5 or profile.name == "hyper-cfg"


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_shipped_profile_has_usable_values(profile):
    defaults = profile.defaults
    assert defaults.sampler in SAMPLERS
    assert defaults.noise_schedule in SCHEDULES
    assert defaults.width % 64 == defaults.height % 64 == 0
    assert 0.2 <= defaults.scale <= 12
    assert not (profile.zsnr and profile.prediction == "eps")
    assert all(re.compile(pattern) for pattern in profile.match.name)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_only_the_demo_uses_deep_shrink_or_the_pyramid_at_its_default_size(profile):
    # the demo was trained with both
    area, limit = profile.defaults.width * profile.defaults.height, profile.deep_shrink_above
    assert profile.name == "demo" or limit is None or area <= limit
    assert profile.name == "demo" or profile.pyramid_above is None


def test_the_demo_has_the_defaults_of_nai():
    defaults = find_profile(PROFILES, "demo").defaults
    assert (defaults.sampler, defaults.noise_schedule, defaults.steps) == ("k_euler", "native", 28)
    assert (defaults.scale, defaults.width, defaults.height) == (5.0, 832, 1216)


def test_a_network_without_a_profile_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"odd\.safetensors.*edm_v"):
        match_profile(PROFILES, "odd.safetensors", Detection("sd15", "single", 4, "edm_v", False, ()))


def test_an_unknown_profile_is_refused_with_a_list_of_all():
    with pytest.raises(ConfigError, match=r"'noobai'.*noobai-vpred"):
        find_profile(PROFILES, "noobai")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[defaults]\nsamplers = "k_euler"', r"defaults\.samplers"),
        ('syntax = "comfy"', "syntax = 'comfy'.*'nai', 'a1111' or"),
        ("sigma_max =", "mine.toml"),
        ("[dialect]\nartist = 'by'", r"artist = 'by': is not a tag with \{name\}"),
        ("[dialect]\nartist = 'artist: {name}'", r"is not a tag with \{name\}"),
        ("[dialect]\nrenamed_tags = 'e621'", "'danbooru' or 'nai'"),
        ("[dialect.tags]\na = 'b'\nB = 'c, d'", "'a' becomes 'b', which would be replaced too"),
        ("[dialect.tags]\na = 'A_'\nb = 'c, a'", "'b' becomes 'a', which would be replaced too"),
        ("[dialect.tags]\na = 'artist:b'", "'a' becomes 'artist:b', which would"),
        ("[dialect.tags]\na = 'b|c'", "'a' becomes 'b|c'"),
        ("[dialect.tags]\na = 'c, (b:1.5)'", r"'\(tag:1.5\)' need syntax = 'nai\+a1111'"),
    ],
)
def test_an_invalid_profile_is_refused_with_file_and_key(tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(f'family = "sdxl"\nprediction = "v"\n{text}\n')
    with pytest.raises(ConfigError, match=message) as error:
        load_profiles(tmp_path)
    assert "mine.toml" in str(error.value)


def test_sigma_max_is_infinity_or_a_number(tmp_path):
    for name, value in (("a", '"inf"'), ("b", "4518.76")):
        (tmp_path / f"{name}.toml").write_text(f'family = "sdxl"\nprediction = "v"\nsigma_max = {value}')
    assert [profile.sigma_max for profile in load_profiles(tmp_path)] == [float("inf"), 4518.76]


def test_an_unknown_family_is_refused_with_those_that_exist(tmp_path):
    (tmp_path / "mine.toml").write_text('family = "sdx"\nprediction = "v"\n')
    with pytest.raises(ConfigError, match=r"mine\.toml:1: family = 'sdx': .*did you mean 'sdxl'.*sd15"):
        load_profiles(tmp_path)


@pytest.mark.parametrize(
    ("profile", "sampler", "schedule", "steps", "scale", "rescale", "size"),
    [
        ("aidxl", "k_euler_ancestral", "native", 28, 7.0, 0.0, (832, 1216)),
        ("animagine-3", "k_euler_ancestral", "native", 28, 6.0, 0.0, (832, 1216)),
        ("animagine-4", "k_euler_ancestral", "native", 28, 5.0, 0.0, (832, 1216)),
        ("nai-v1", "k_euler_ancestral", "native", 28, 10.0, 0.0, (512, 768)),
        ("nai-v2", "k_euler_ancestral", "native", 28, 10.0, 0.0, (832, 1216)),
        ("noobai-eps", "k_euler_ancestral", "native", 28, 5.5, 0.0, (832, 1216)),
        ("noobai-vpred", "k_euler", "native", 28, 5.0, 0.2, (832, 1216)),
        ("pony-v6", "k_euler_ancestral", "native", 25, 7.0, 0.0, (832, 1216)),
    ],
)
def test_the_defaults_are_those_that_a_model_s_page_recommends(
    profile, sampler, schedule, steps, scale, rescale, size
):
    defaults = find_profile(PROFILES, profile).defaults
    assert (defaults.sampler, defaults.noise_schedule, defaults.steps) == (sampler, schedule, steps)
    assert (defaults.scale, defaults.cfg_rescale) == (scale, rescale)
    assert (defaults.width, defaults.height) == size
