"""Requests in every shape that clients are known to send, posted as they are, and the Comment of the image."""

import json
from base64 import b64decode, b64encode
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from fake_model import BASE_URL, GENERATE, FakeModel, build_state, read_comment
from fastapi.testclient import TestClient
from PIL import Image
from request_bodies import BODIES, build_infill_bodies, encode_image

from server.app import create_app
from server.config.catalog import single_model_catalog
from server.engine.model import detect_model

SIZE = {"width": 64, "height": 64, "steps": 2, "seed": 7}
LATENT_MASK = np.zeros((8, 8), np.uint8)
LATENT_MASK[:, 4:] = 1
PIXELS = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
PICTURE, MASK = encode_image(PIXELS), encode_image(LATENT_MASK.repeat(8, 0).repeat(8, 1) * np.uint8(255))


@pytest.fixture(scope="module")
def fake_model():
    return FakeModel()


@pytest.fixture(scope="module")
def client(demo_file, fake_model):
    state = build_state(detect_model(single_model_catalog(demo_file)), fake_model)
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        state.engine.wait_ready()
        yield client


@pytest.fixture
def comment(client):
    """A function that posts a body and returns the Comment of its first image."""

    def comment(body):
        response = client.post(GENERATE, json=body)
        assert response.status_code == 200, response.text
        return read_comment(response)

    return comment


def check(comment, body, expected):
    """Post a body and compare the keys of the Comment that `expected` has."""
    found = comment(body)
    assert {key: found.get(key) for key in expected} == expected
    return found


def build(model="nai-diffusion-3", prompt="1girl", **parameters):
    return {"input": prompt, "model": model, "action": "generate", "parameters": SIZE | parameters}


EULER = {"sampler": "k_euler", "noise_schedule": "native", "sm": False, "sm_dyn": False}
TEXT_TO_IMAGE = {
    "official page, January 2024": EULER | {"steps": 28, "scale": 5.0, "seed": 1234567, "uncond_scale": 1.0},
    "official page, 2026": {"sampler": "k_euler_ancestral", "noise_schedule": "karras", "steps": 23, "prefer_brownian": True, "deliberate_euler_ancestral_bug": False},
    "novelai-api": {"sampler": "k_euler_ancestral", "steps": 28, "sm": False},
    "novelai-python": {"sampler": "k_euler_ancestral", "skip_cfg_above_sigma": 19.0, "deliberate_euler_ancestral_bug": False},
    "novelai, the older package": {"sm": True, "scale": 6.0},
    "novelai-sdk": {"skip_cfg_above_sigma": 58.0},
    "nekoai-api": {"scale": 6.0},
    "SillyTavern": {"seed": 9876543210 % 2**32, "sampler": "k_dpmpp_2m", "scale": 9.0, "uncond_scale": 1.0, "uc": "bad"},
    "koishi": {"sampler": "ddim_v3", "noise_schedule": "native", "uc": "lowres", "prompt": "masterpiece, 1girl"},
    "SDStudio": {"uc": "worst quality"},
    "ComfyUI": {"skip_cfg_above_sigma": 19.3, "prompt": "1girl"},
    "NAI-Auto-Generator": {"seed": 9999999999 % 2**32, "prompt": "1girl", "uc": "bad"},
    "strings for booleans": {"sm": False, "sm_dyn": False, "legacy": False},
}  # fmt: skip
"""What the Comment must say of the bodies in `request_bodies`."""


@pytest.mark.parametrize("name", BODIES)
def test_text_to_image(name, comment):
    expected = {"width": 128, "height": 192, "request_type": "PromptGenerateRequest", "n_samples": 1}
    check(comment, BODIES[name], expected | TEXT_TO_IMAGE.get(name, {}))


WEB = 19 * (4 * 8 * 8 / (4 * 104 * 152)) ** 0.5
PARAMETERS = {
    "no action and no model": ({}, {"seed": 7}),
    "the SMEA sampler": ({"sampler": "nai_smea"}, {"sampler": "k_euler_ancestral", "sm": True, "sm_dyn": False, "noise_schedule": "native"}),
    "the DYN sampler": ({"sampler": "nai_smea_dyn"}, {"sampler": "k_euler_ancestral", "sm": True, "sm_dyn": True, "noise_schedule": "native"}),
    "DYN without SMEA": ({"sampler": "k_euler", "sm_dyn": True}, {"sm": True, "sm_dyn": True}),
    "SMEA with ddim": ({"sampler": "ddim", "sm": True}, {"sampler": "ddim_v3", "sm": False}),
    "SMEA with k_lms": ({"sampler": "k_lms", "sm": True}, {"sampler": "k_lms", "sm": False, "noise_schedule": "native"}),
    "SMEA with plms": ({"sampler": "plms", "sm": True, "noise_schedule": "karras"}, {"sm": False, "noise_schedule": "native"}),
    "SMEA below its automatic size": ({"autoSmea": True}, {"sm": False}),
    "k_dpm_fast without a schedule": ({"sampler": "k_dpm_fast"}, {"sampler": "k_dpm_fast", "noise_schedule": "native"}),
    "ancestral on karras": ({"sampler": "k_euler_ancestral", "noise_schedule": "karras"}, {"deliberate_euler_ancestral_bug": False, "prefer_brownian": True}),
    "ancestral on native": ({"sampler": "k_euler_ancestral", "noise_schedule": "native"}, {"deliberate_euler_ancestral_bug": True, "prefer_brownian": False}),
    "undesired content strength 0": ({"uncond_scale": 0}, {"uncond_scale": 1.0}),
    "undesired content strength 0 of the page": ({"uncond_scale": 1e-5}, {"uncond_scale": 1e-5}),
    "undesired content strength": ({"uncond_scale": 1.35}, {"uncond_scale": 1.35}),
    "rescale": ({"cfg_rescale": 0.18}, {"cfg_rescale": 0.18}),
    "Decrisper": ({"dynamic_thresholding": True}, {"dynamic_thresholding": True, "dynamic_thresholding_percentile": 0.999, "dynamic_thresholding_mimic_scale": 10.0}),
    "Variety+ of the page": ({"skip_cfg_above_sigma": WEB}, {"skip_cfg_above_sigma": WEB}),
    "Variety+ of AutoRef": ({"skip_cfg_above_sigma": 11.84515480302779}, {"skip_cfg_above_sigma": 11.84515480302779}),
    "Variety+ off": ({"skip_cfg_above_sigma": None}, {"skip_cfg_above_sigma": None}),
    "guidance below a sigma": ({"skip_cfg_below_sigma": 0.5}, {"skip_cfg_below_sigma": 0.5}),
    "seed -1 of the page": ({"seed": -1}, {"seed": 2**32 - 1}),
    "the largest seed": ({"seed": 2**32 - 7}, {"seed": 2**32 - 7}),
    "a seed of ten digits": ({"seed": 9999999999}, {"seed": 9999999999 % 2**32}),
    "a Java long": ({"seed": 2**63 - 1}, {"seed": (2**63 - 1) % 2**32}),
    "only uc": ({"uc": "blurry"}, {"uc": "blurry"}),
    "both with the same text": ({"uc": "blurry", "negative_prompt": "blurry"}, {"uc": "blurry"}),
    "commas at both ends": ({"negative_prompt": ", lowres, "}, {"uc": ", lowres, "}),
    "the seam of V3": ({"legacy_v3_extend": True}, {"legacy_v3_extend": True}),
    "legacy": ({"legacy": True}, {"legacy": True}),
    "a preset of another program": ({"ucPreset": 7, "qualityToggle": False}, {"uc": ""}),
    "the strength of an image that is not there": ({"strength": 0.3, "noise": 0, "extra_noise_seed": 3}, {"request_type": "PromptGenerateRequest"}),
    "references without images": ({"reference_information_extracted": 1, "reference_strength": 0.6, "reference_image_multiple": [], "reference_information_extracted_multiple": [], "reference_strength_multiple": [], "normalize_reference_strength_multiple": True}, {"reference_strength_multiple": [], "reference_information_extracted_multiple": []}),
    "character references without images": ({"director_reference_images": [], "director_reference_descriptions": [], "director_reference_information_extracted": [], "director_reference_strength_values": [], "director_reference_secondary_strength_values": []}, {"seed": 7}),
    "ControlNet's constants": ({"controlnet_strength": 1, "controlnet_model": None}, {"controlnet_strength": 1.0, "controlnet_model": None}),
    "ControlNet's values without a map": ({"controlnet_strength": 0.3, "controlnet_model": "hed", "controlnet_condition": ""}, {"controlnet_strength": 1.0, "controlnet_model": None}),
    "keys of V4": ({"characterPrompts": [{"prompt": "boy"}], "use_coords": True, "legacy_uc": False, "v4_prompt": {"caption": {"base_caption": "x", "char_captions": []}}}, {"prompt": "1girl"}),
    "flags of several programs": ({"variety_plus": False, "se_seed": 0, "extra_passthrough_testing": {}, "upscale": None, "straight_alpha": True, "tag_hint_qt": "x", "module": "vanilla"}, {"seed": 7}),
    "versions 1 and 3 are alike": ({"params_version": 1}, {"seed": 7}),
    "version as a text": ({"params_version": "3"}, {"seed": 7}),
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name, comment):
    parameters, expected = PARAMETERS[name]
    check(comment, build(**parameters), expected)


TOP = {
    "without action": ({"input": "1girl", "model": "nai-diffusion-3", "parameters": SIZE}, "1girl"),
    "without model": ({"input": "1girl", "parameters": SIZE}, "1girl"),
    "the prompt in parameters": ({"input": "", "parameters": SIZE | {"prompt": "a cat"}}, "a cat"),
    "two prompts": ({"input": "raw", "parameters": SIZE | {"prompt": "raw, masterpiece"}}, "raw"),
    "the page's own keys": (build() | {"url": "", "use_new_shared_trial": True, "recaptcha_token": "x", "service_tier": "y"}, "1girl"),
    "a wrong id of novelai-sdk": (build("nai-diffusion-3-furry"), "1girl"),
    "the name before V3": (build("nai-diffusion-xl"), "1girl"),
}  # fmt: skip


@pytest.mark.parametrize("name", TOP)
def test_fields_around_the_parameters(name, comment):
    body, prompt = TOP[name]
    check(comment, body, {"prompt": prompt, "seed": 7})


def test_seeds_of_several_samples_count_up(client):
    response = client.post(GENERATE, json=build(n_samples=3), headers={"Accept": "application/json"})
    assert [image["seed"] for image in response.json()["images"]] == [7, 8, 9]


@pytest.mark.parametrize("seed", [0, None])
def test_no_seed_means_any(seed, comment):
    seeds = {comment(build(seed=seed))["seed"] for _ in range(3)}
    assert len(seeds) == 3
    assert 0 not in seeds


IMAGE = {"image": PICTURE, "strength": 0.5, "noise": 0.1}
NESTED = {"strength": 0.4, "noise": 0.2, "color_correct": True, "extra_noise_seed": 9}
IMG2IMG: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "LlmKira": (IMAGE | {"extra_noise_seed": 9, "color_correct": True}, {"strength": 0.5, "noise": 0.1, "extra_noise_seed": 9}),
    "the page": (IMAGE | {"extra_noise_seed": 6, "sm": True, "sm_dyn": True}, {"extra_noise_seed": 6, "sm": False, "sm_dyn": False}),
    "no strength": ({"image": PICTURE}, {"strength": 0.7, "noise": 0.0, "extra_noise_seed": 7}),
    "only in img2img": ({"image": PICTURE, "img2img": NESTED}, {"strength": 0.4, "noise": 0.2, "extra_noise_seed": 9}),
    "in both places": (IMAGE | {"img2img": NESTED}, {"strength": 0.5, "noise": 0.1, "extra_noise_seed": 9}),
    "Enhance of the page": ({"image": PICTURE, "strength": 0.7, "noise": 0.1, "width": 96, "height": 96}, {"width": 96, "strength": 0.7}),
    "a mask that only infill reads": (IMAGE | {"mask": MASK}, {"strength": 0.5}),
    "a data URI": (IMAGE | {"image": f"data:image/png;base64,{PICTURE}"}, {"strength": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("action", ["img2img", "generate"])
@pytest.mark.parametrize("name", IMG2IMG)
def test_image_to_image(name, action, comment):
    parameters, expected = IMG2IMG[name]
    body = build(**parameters) | {"action": action}
    check(comment, body, {"request_type": "Img2ImgRequest"} | expected)


def encode(image, kind="PNG"):
    file = BytesIO()
    image.save(file, kind)
    return b64encode(file.getvalue()).decode()


SOURCES = {
    "RGBA, opaque": Image.fromarray(PIXELS).convert("RGBA"),
    "gray": Image.fromarray(PIXELS).convert("L"),
    "a palette": Image.fromarray(PIXELS).convert("P"),
    "another size and shape": Image.fromarray(PIXELS).resize((300, 400)),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("name", SOURCES)
def test_an_init_image_of_any_kind_becomes_the_jobs_size(name, kind, comment, fake_model):
    image = SOURCES[name].convert("RGB") if kind != "PNG" else SOURCES[name]
    comment(build(image=encode(image, kind)) | {"action": "img2img"})
    init = fake_model.jobs[-1].passes[0].init
    assert (init.image.width, init.image.height) == (64, 64)


INFILL = build_infill_bodies("1girl", PIXELS, LATENT_MASK)


@pytest.mark.parametrize("name", INFILL)
def test_infill(name, comment, fake_model):
    found = check(comment, INFILL[name], {"request_type": "NativeInfillingRequest", "width": 64, "seed": 4})
    pass_ = fake_model.jobs[-1].passes[0]
    assert pass_.init.mask == (LATENT_MASK * 255).tobytes()
    assert pass_.strength == 1
    assert found["add_original_image"] is INFILL[name]["parameters"].get("add_original_image", True)


def test_infill_reads_only_its_own_strengths(comment, fake_model):
    body: Any = build("nai-diffusion-3-inpainting", image=PICTURE, mask=MASK, strength=0.3) | {
        "action": "infill"
    }
    for sent, strength in (
        ({}, 1),
        ({"img2img": {"strength": 0.6}}, 0.6),
        ({"inpaintImg2ImgStrength": 0.5}, 0.5),
    ):
        comment(body | {"parameters": body["parameters"] | sent})
        assert fake_model.jobs[-1].passes[0].strength == strength


def test_infill_replaces_ddim(comment):
    body = build("nai-diffusion-3-inpainting", image=PICTURE, mask=MASK, sampler="ddim") | {
        "action": "infill"
    }
    check(comment, body, {"sampler": "k_euler_ancestral"})


@pytest.mark.parametrize("content_type", ["application/json", None])
def test_the_newer_form_with_inline_images(client, content_type):
    part = ("blob", json.dumps(build(**IMAGE)), content_type)
    response = client.post(GENERATE, files={"request": part})
    assert response.status_code == 200, response.text
    assert read_comment(response)["strength"] == 0.5


CAPTIONS = [{"char_caption": "a boy", "centers": [{"x": 0.9, "y": 0.5}]}, {"char_caption": "a dog", "centers": [{"x": 0.1, "y": 0.5}]}]  # fmt: skip


def build_v4(base="1girl", captions=(), **flags):
    return {"caption": {"base_caption": base, "char_captions": list(captions)}, **flags}


HEAVY_V45 = "nsfw, lowres, artistic error, film grain, scan artifacts, worst quality, bad quality, jpeg artifacts, very displeasing, chromatic aberration, dithering, halftone, screentone, multiple views, logo, too many watermarks, negative space, blank page"  # fmt: skip
LATER = {
    "V4 with characters": (
        "nai-diffusion-4-full", {"v4_prompt": build_v4("1girl", CAPTIONS, use_coords=False, use_order=True)},
        {"prompt": "1girl, a boy, a dog"},
    ),
    "V4 with places": (
        "nai-diffusion-4-full", {"v4_prompt": build_v4("1girl", CAPTIONS, use_coords=True, use_order=False), "v4_negative_prompt": build_v4("hat")},
        {"prompt": "1girl", "uc": "hat", "v4_prompt": build_v4("1girl", CAPTIONS, use_coords=True, use_order=True)},
    ),
    "V4 with both prompts": (
        "nai-diffusion-4-5-full", {"v4_prompt": build_v4("2::rain::, 1girl"), "v4_negative_prompt": build_v4("hat", [{"char_caption": "red"}])},
        {"prompt": "2::rain::, 1girl", "uc": "hat, red"},
    ),
    "V4.5 names its presets": (
        "nai-diffusion-4-5-full", {"params_version": 4, "qualityPresetId": "standard", "ucPresetId": "heavy"},
        {"prompt": "1girl, very aesthetic, masterpiece, no text", "uc": HEAVY_V45},
    ),
    "V5 names its presets": (
        "nai-diffusion-5-full", {"params_version": 4, "qualityPresetId": "light", "negative_prompt": "hat"},
        {"prompt": "1girl, very aesthetic, amazing quality, no text", "uc": "hat"},
    ),
    "V5 without presets": (
        "nai-diffusion-5-full", {"params_version": 4, "qualityPresetId": "none", "negative_prompt": "hat", "ucPresetId": "none"},
        {"prompt": "1girl", "uc": "hat"},
    ),
    "the page merges and names": (
        "nai-diffusion-3", {"params_version": 4, "qualityPresetId": "standard", "ucPresetId": "heavy", "negative_prompt": "lowres"},
        {"prompt": "1girl, best quality, amazing quality, very aesthetic, absurdres", "uc": "lowres"},
    ),
    "keys that change nothing": (
        "nai-diffusion-5-full", {"tag_hint_transparent_background": True, "straight_alpha": True, "tag_hint_qt": "a", "tag_hint_uc_preset": "b", "normalize_reference_strength_multiple": True, "image_cache_secret_key": None},
        {"prompt": "1girl"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_later_models(name, comment):
    model, parameters, expected = LATER[name]
    check(comment, build(model, **parameters), expected)


@pytest.mark.parametrize("model", ["nai-diffusion-3", "nai-diffusion-furry-3", "nai-diffusion-2", "mine"])
def test_earlier_models_read_none_of_it(model, comment, fake_model):
    check(comment, build(model, "2::rain::, 1girl, teXt: hello"), {"prompt": "2::rain::, 1girl, teXt: hello"})
    assert fake_model.jobs[-1].prompts.syntax == "nai"


PNG_PART, MASK_PART = (("blob", b64decode(text), "image/png") for text in (PICTURE, MASK))
INIT = {"image": "image", "image_cache_secret_key": "a" * 64}
NEWER = {
    "img2img": ("img2img", INIT | {"img2img": {"strength": 0.6, "color_correct": True}}, ["image"], {"strength": 0.6}),
    "infill": ("infill", INIT | {"mask": "mask", "mask_cache_secret_key": "b" * 64}, ["image", "mask"], {"add_original_image": True}),
    "parts of other names": ("infill", {"image": "first", "mask": "second"}, ["first", "second"], {"seed": 7}),
}  # fmt: skip


@pytest.mark.parametrize("model", ["nai-diffusion-3-inpainting", "nai-diffusion-5-full-inpainting"])
@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("name", NEWER)
def test_the_newer_form(name, is_last, model, client):
    action, parameters, names, expected = NEWER[name]
    body = build(model, **parameters, params_version=4) | {"action": action}
    images = list(zip(names, (PNG_PART, MASK_PART), strict=False))
    request = [("request", ("blob", json.dumps(body), "application/json"))]
    response = client.post(GENERATE, files=images + request if is_last else request + images)
    assert response.status_code == 200, response.text
    found = read_comment(response)
    assert {key: found.get(key) for key in expected} == expected


REFERENCES = {
    "a vibe": {"reference_image": PICTURE},
    "vibes": {"reference_image_multiple": [PICTURE], "reference_strength_multiple": [0.6]},
    "vibes by key": {"reference_image_multiple_cached": [{"cache_secret_key": "c" * 64, "data": PICTURE}]},
    "a character": {"director_reference_images": [PICTURE], "director_reference_descriptions": [{"caption": {"base_caption": "character"}}]},
    "a character by key": {"director_reference_images_cached": [{"cache_secret_key": "d" * 64, "data": PICTURE}]},
    "a ControlNet": {"controlnet_condition": PICTURE, "controlnet_model": "hed"},
}  # fmt: skip


@pytest.mark.parametrize("name", REFERENCES)
def test_what_the_model_lacks_is_refused_by_name(name, client):
    response = client.post(GENERATE, json=build(**REFERENCES[name]))
    assert response.status_code == 400
    assert response.json()["message"].startswith(f"parameters.{next(iter(REFERENCES[name]))}")
