"""Request bodies as real clients send them, and how the image's Comment shows they were read."""

import json
from dataclasses import replace

import pytest
from fake_model import BASE_URL, GENERATE, FakeModel, build_state, read_comment, unzip_images
from fastapi.testclient import TestClient
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from request_bodies import BODIES, HEAVY, LIGHT, QUALITY, SMALL, V3

from pipelines.sampling.samplers import ALIASES, SAMPLERS
from server.app import create_app
from server.config.catalog import single_model_catalog
from server.config.resources import configs
from server.engine.model import detect_model
from server.errors import Rejected
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import read_request


@pytest.fixture(scope="module")
def policy(demo_file):
    return RequestPolicy(
        detect_model(single_model_catalog(demo_file)), load_presets(configs() / "presets.toml")
    )


@pytest.fixture(scope="module")
def client(policy, signing_key):
    state = build_state(policy.model, FakeModel(), signing_key)
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        state.engine.wait_ready()
        yield client


def post(client, body):
    response = client.post(GENERATE, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    return response


def generate_comment(client, parameters, **top_level):
    return read_comment(post(client, {"input": "1girl", **top_level, "parameters": SMALL | parameters}))


@pytest.mark.parametrize("name", BODIES)
def test_every_client_s_body_is_read(client, name):
    body = BODIES[name]
    metadata = read_comment(post(client, body))
    assert (metadata["width"], metadata["height"]) == (128, 192)
    assert metadata["steps"] == body["parameters"].get("steps", 28)
    assert metadata["seed"] == body["parameters"]["seed"] % 2**32
    assert metadata["scale"] == body["parameters"].get("scale", 5)
    assert isinstance(metadata["scale"], float)
    assert metadata["request_type"] == "PromptGenerateRequest"


FLAGS_ONLY = ("written by hand", "Kohaku", "SDStudio", "NAIS2", "novelai-sdk")
COMPLETE_TEXTS = [name for name in BODIES if name not in FLAGS_ONLY]


@pytest.mark.parametrize("name", COMPLETE_TEXTS)
def test_prompts_that_a_client_completes_stay_unchanged(client, name):
    body = BODIES[name]
    metadata = read_comment(post(client, body))
    assert metadata["prompt"] == body["input"]
    assert metadata["uc"] == body["parameters"].get("negative_prompt", "")


@pytest.mark.parametrize(
    ("name", "prompt", "uc"),
    [
        ("written by hand", "a cat" + QUALITY, f"nsfw, {HEAVY}"),
        ("Kohaku", "1girl" + QUALITY, f"nsfw, {HEAVY}"),
        ("SDStudio", "1girl" + QUALITY, "worst quality"),
        ("NAIS2", "1girl", f"nsfw, {HEAVY}"),
        ("novelai-sdk", "1girl" + QUALITY, f", {HEAVY} , "),  # its parameters.prompt has V4.5's tags
    ],
)
def test_the_server_adds_the_texts_for_flags_without_texts(client, name, prompt, uc):
    metadata = read_comment(post(client, BODIES[name]))
    assert (metadata["prompt"], metadata["uc"]) == (prompt, uc)


@pytest.mark.parametrize("name", FLAGS_ONLY)
def test_mode_client_ignores_the_flags(policy, name):
    body = BODIES[name]
    texts = resolve_texts(replace(policy, mode="client"), body)
    assert texts == (body["input"], body["parameters"].get("negative_prompt", ""))


LATER = (
    *("characterPrompts", "use_coords", "legacy_uc", "v4_prompt", "v4_negative_prompt", "straight_alpha"),
    *("tag_hint_qt", "tag_hint_uc_preset", "tag_hint_transparent_background", "upscale", "upscaled_enhance"),
    *("variety_plus", "se_seed", "extra_passthrough_testing", "controlnet_any", "another_secret_key"),
)
"""Keys of V4 and later that requests for V3 also contain."""


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        # basic fields
        *(({"params_version": number}, {"prompt": "1girl"}) for number in (1, 3, 4, None)),
        ({"width": 96, "height": 160}, {"width": 96, "height": 160}),
        ({"scale": 7}, {"scale": 7.0}),
        ({"scale": 25}, {"scale": 25.0}),
        ({"scale": "6.2"}, {"scale": 6.2}),
        ({"steps": 5.0}, {"steps": 5}),
        ({"steps": "5"}, {"steps": 5}),
        ({}, {"noise_schedule": "native", "sampler": "k_euler", "cfg_rescale": 0.0, "uncond_scale": 1.0}),
        ({"noise_schedule": "exponential"}, {"noise_schedule": "exponential"}),
        ({"cfg_rescale": 0.3}, {"cfg_rescale": 0.3}),
        ({"uncond_scale": 0}, {"uncond_scale": 1.0}),
        ({"uncond_scale": 1e-5}, {"uncond_scale": 1e-5}),
        ({"uncond_scale": 1.5}, {"uncond_scale": 1.5}),
        ({"dynamic_thresholding": True}, {"dynamic_thresholding": True}),
        ({"add_original_image": True, "hide_debug_overlay": True}, {"hide_debug_overlay": False}),
        ({"legacy_v3_extend": True}, {"legacy_v3_extend": True}),
        ({"legacy": True}, {"legacy": True}),
        ({"noise_schedule": None, "sampler": None}, {"noise_schedule": "native", "sampler": "k_euler"}),
        ({"stream": "msgpack"}, {"request_type": "PromptGenerateRequest"}),
        ({"width": None, "steps": None, "seed": 3}, {"width": 832, "steps": 28, "seed": 3}),
        # all names of the negative prompt
        ({"uc": "bad"}, {"uc": "bad"}),
        ({"uc": "bad", "negative_prompt": "worse"}, {"uc": "worse"}),
        ({"uc": "bad", "negative_prompt": ""}, {"uc": "bad"}),
        ({"negative_prompt": ", lowres, , "}, {"uc": ", lowres, , "}),
        # seeds
        ({"seed": -1}, {"seed": 4294967295}),
        ({"seed": 9999999999}, {"seed": 1410065407}),
        ({"seed": 2**63 - 1}, {"seed": 4294967295}),
        ({"seed": "42"}, {"seed": 42}),
        ({"seed": 42.0}, {"seed": 42}),
        ({"seed": 4294967294}, {"seed": 4294967294}),
        ({"extra_noise_seed": 9}, {"seed": SMALL["seed"]}),
        # SMEA
        ({"sm": True}, {"sm": True, "sm_dyn": False}),
        ({"sm_dyn": True}, {"sm": True, "sm_dyn": True}),
        ({"sm": "true"}, {"sm": True}),
        ({"sm": "false"}, {"sm": False}),
        ({"sampler": "nai_smea"}, {"sampler": "k_euler_ancestral", "sm": True, "sm_dyn": False}),
        ({"sampler": "nai_smea_dyn", "noise_schedule": "karras"},
         {"sampler": "k_euler_ancestral", "sm": True, "sm_dyn": True, "noise_schedule": "native"}),
        ({"sampler": "ddim_v3", "sm": True, "sm_dyn": True}, {"sm": False, "sm_dyn": False}),
        ({"sampler": "ddim", "sm": True}, {"sampler": "ddim_v3", "sm": False}),
        ({"sampler": "nai_smea", "sm": False, "noise_schedule": "karras"}, {"sm": True, "noise_schedule": "native"}),
        ({"sampler": "plms", "sm": True}, {"sm": False}),
        ({"sampler": "k_lms", "sm": True}, {"sm": False}),
        ({"autoSmea": True}, {"sm": False}),
        ({"autoSmea": True, "width": 1472, "height": 1472}, {"sm": False}),  # one pixel below the threshold
        ({"autoSmea": True, "width": 1472, "height": 1504}, {"sm": True}),
        ({"auto_smea": True, "width": 1536, "height": 1536}, {"sm": True}),
        ({"autoSmea": False, "width": 1536, "height": 1536}, {"sm": False}),
        # noise schedules that a sampler does not support
        *(({"sampler": name, "noise_schedule": "karras"}, {"noise_schedule": "native"})
          for name in ("ddim", "ddim_v3", "plms", "k_lms", "k_dpm_fast")),
        *(({"sampler": "ddim", "steps": steps}, {"steps": steps}) for steps in (3, 9, 27, 36, 37)),
        # flags of Euler ancestral
        ({"sampler": "k_euler_ancestral"}, {"deliberate_euler_ancestral_bug": True, "prefer_brownian": False}),
        ({"sampler": "k_euler_ancestral", "noise_schedule": "karras"},
         {"deliberate_euler_ancestral_bug": False, "prefer_brownian": True}),
        ({"deliberate_euler_ancestral_bug": False, "prefer_brownian": True},
         {"deliberate_euler_ancestral_bug": False, "prefer_brownian": True}),
        ({"sampler": "k_euler_ancestral", "deliberate_euler_ancestral_bug": None}, {"deliberate_euler_ancestral_bug": True}),
        ({"deliberate_euler_ancestral_bug": "false"}, {"deliberate_euler_ancestral_bug": False}),
        # Variety+
        *(({"skip_cfg_above_sigma": value}, {"skip_cfg_above_sigma": value}) for value in (19, 11.84515480302779)),
        ({"skip_cfg_above_sigma": 19.343056794463642}, {"skip_cfg_above_sigma": 19.343056794463642}),
        ({"skip_cfg_above_sigma": 58}, {"skip_cfg_above_sigma": 58.0}),
        ({"skip_cfg_below_sigma": 0.5}, {"skip_cfg_below_sigma": 0.5}),
        # fields of other request types are ignored with any value
        ({"strength": 7, "noise": "much", "extra_noise_seed": None, "img2img": {"strength": 0.7}}, {}),
        ({"image": "", "mask": None, "reference_image_multiple": [], "reference_image": ""}, {}),
        ({"mask": "AAAA", "inpaintImg2ImgStrength": 5, "controlnet_strength": -1, "color_correct": 3}, {}),
        ({"controlnet_condition": "", "controlnet_model": "hed", "masks": [], "module": 1}, {"controlnet_model": None}),
        ({"reference_information_extracted": 1.0, "reference_strength": 0.6, "reference_strength_multiple": [],
          "reference_information_extracted_multiple": [], "normalize_reference_strength_multiple": True},
         {"reference_strength_multiple": []}),
        ({f"director_reference_{name}": [] for name in ("images", "descriptions", "strength_values")}, {"prompt": "1girl"}),
        (dict.fromkeys(LATER, "junk"), {"prompt": "1girl", "uc": "", "width": 128}),
        ({"model": "NAI Diffusion V3"}, {"prompt": "1girl"}),
        ({"ucPreset": "heavy", "qualityToggle": "yes", "autoSmea": "perhaps"}, {"prompt": "1girl", "uc": ""}),
        *(({"ucPreset": index}, {"uc": ""}) for index in (4, 5, 6, 7, 99)),  # indices of other clients' lists
        ({"ucPreset": -1}, {"uc": ""}),
        ({"ucPreset": True}, {"uc": ""}),
        ({"v4_prompt": {"caption": {"base_caption": "not this"}}, "characterPrompts": [1]}, {"prompt": "1girl"}),
        ({"ucPresetId": "heavy", "qualityPresetId": "standard"}, {"prompt": "1girl" + QUALITY, "uc": f"nsfw, {HEAVY}"}),
        ({"ucPresetId": "none", "qualityPresetId": "none", "url": 1}, {"prompt": "1girl", "uc": "lowres"}),
    ],
)  # fmt: skip
def test_the_comment_shows_how_parameters_are_read(client, parameters, expected):
    metadata = generate_comment(client, parameters)
    assert {key: metadata[key] for key in expected} == expected
    assert "skip_cfg_above_sigma" in metadata or not parameters.get("skip_cfg_above_sigma")


@pytest.mark.parametrize("value", [None, 0.0])
def test_skip_cfg_above_sigma_is_recorded_unless_null(client, value):
    assert generate_comment(client, {"skip_cfg_above_sigma": value}).get("skip_cfg_above_sigma") == value


@pytest.mark.parametrize("name", [*SAMPLERS, *ALIASES])
def test_every_known_sampler_id_is_accepted(client, name):
    metadata = generate_comment(client, {"sampler": name, "noise_schedule": None})
    assert metadata["sampler"] == ALIASES.get(name, (name,))[0]


def test_the_response_has_the_type_and_names_that_clients_require(client):
    response = post(client, BODIES["the least"] | {"parameters": SMALL | {"n_samples": 3}})
    assert (response.status_code, response.headers["content-type"]) == (200, "binary/octet-stream")
    assert ".zip" in response.headers["content-disposition"]
    assert list(unzip_images(response)) == ["image_0.png", "image_1.png", "image_2.png"]
    webp = unzip_images(post(client, BODIES["the least"] | {"parameters": SMALL | {"image_format": "webp"}}))
    assert {name: image.format for name, image in webp.items()} == {"image_0.webp": "WEBP"}


def test_a_rejected_request_gets_nais_error_envelope(client):
    for field, value in {"steps": 51, "width": 100, "sampler": "none", "image": "AAAA"}.items():
        response = client.post(GENERATE, json={"input": "1girl", "parameters": SMALL | {field: value}})
        assert response.status_code == response.json()["statusCode"] == 400
        assert response.json()["message"].startswith(f"parameters.{field}: ")


@pytest.mark.parametrize("seed", [0, None, 2**32, "0"])
def test_seed_zero_means_a_random_seed(client, seed):
    first, second = (generate_comment(client, {"seed": seed})["seed"] for _ in range(2))
    assert first != second
    assert 0 < first < 2**32


def test_samples_use_consecutive_seeds_that_wrap_around(client):
    response = post(client, {"input": "a", "parameters": SMALL | {"seed": 2**32 - 2, "n_samples": 4}})
    seeds = [json.loads(image.info["Comment"])["seed"] for image in unzip_images(response).values()]
    assert seeds == [4294967294, 4294967295, 0, 1]


@pytest.mark.parametrize(
    ("top_level", "parameters", "prompt"),
    [
        ({"input": "cat"}, {"prompt": "dog"}, "cat"),
        ({"input": ""}, {"prompt": "dog"}, "dog"),
        ({"input": None}, {"prompt": "dog"}, "dog"),
        ({"input": " "}, {"v4_prompt": {"caption": {"base_caption": "owl", "char_captions": []}}}, "owl"),
        ({"input": ""}, {}, ""),
        ({"input": "a\0b\ud83d"}, {}, "ab"),
        ({"input": "<lora:../../x:1>, __wildcard__, é \"quoted\"\n猫"}, {}, "<lora:../../x:1>, __wildcard__, é \"quoted\"\n猫"),
    ],
)  # fmt: skip
def test_the_prompt_comes_from_the_input_and_stays_unchanged(client, top_level, parameters, prompt):
    response = post(client, top_level | {"parameters": SMALL | parameters})
    image = unzip_images(response)["image_0.png"]
    assert json.loads(image.info["Comment"])["prompt"] == image.info["Description"] == prompt


def test_a_v4_prompt_becomes_one_text_for_v4_models(client):
    girls = [{"char_caption": "girl, red hair", "centers": []}, {"char_caption": "girl, hat"}]
    prompts = {
        "v4_prompt": {
            "caption": {"base_caption": "2girls, street", "char_captions": girls},
            "use_coords": False,
        },
        "v4_negative_prompt": {"caption": {"base_caption": "bad", "char_captions": [{"char_caption": "boy"}]}},
    }  # fmt: skip
    body = {"input": "2girls", "model": "nai-diffusion-4-5-full", "parameters": SMALL | prompts}
    response = post(client, body)
    metadata = read_comment(response)
    assert metadata["prompt"] == "2girls, street, girl, red hair, girl, hat"
    assert metadata["uc"] == "bad, boy"
    assert "nai-diffusion-4-5-full" in response.headers["x-naiad-warning"]


@pytest.mark.parametrize("action", ["generate", None])
def test_the_action_is_optional(client, action):
    body = {"input": "1girl", "parameters": SMALL, "action": action}
    assert read_comment(post(client, body))["seed"] == SMALL["seed"]


def test_other_top_level_keys_are_ignored(client):
    junk = {"url": 1, "use_new_shared_trial": "yes", "recaptcha_token": None, "service_tier": [], "x": {}}
    assert generate_comment(client, {}, **junk)["prompt"] == "1girl"


IDS = (
    *("stable-diffusion", "waifu-diffusion", "dalle-mini", "curated-diffusion-test", "custom", "kandinsky-vanilla"),
    *("safe-diffusion", "nai-diffusion", "nai-diffusion-furry", "nai-diffusion-furry2", "safe-diffusion-inpainting"),
    *("nai-diffusion-inpainting", "furry-diffusion-inpainting", "nai-diffusion-2", "nai-diffusion-xl"),
    *("nai-diffusion-furry-3", "nai-diffusion-furry-3-inpainting", "nai-diffusion-3-furry-inpainting"),
    *(f"nai-diffusion-4-{name}" for name in ("curated-preview", "curated-inpainting", "full", "full-inpainting", "curated")),
    *(f"nai-diffusion-{number}-{name}{kind}" for number in ("4-5", "5") for name in ("curated", "full")
      for kind in ("", "-inpainting")),
)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "is_warned"),
    [
        ("nai-diffusion-3", False),
        ("nai-diffusion-3-inpainting", False),
        (None, False),
        ("nai-diffusion-3-furry", True),
        ("my own", True),
        *((model, True) for model in IDS),
    ],
)
def test_the_loaded_model_serves_other_ids_with_a_warning(client, model, is_warned):
    response = post(client, {"input": "1girl", "model": model, "parameters": SMALL})
    assert ("x-naiad-warning" in response.headers) == is_warned
    assert not is_warned or "is answered by 'nai-diffusion-3'" in response.headers["x-naiad-warning"]


def test_a_furry_request_gets_the_furry_texts_in_either_spelling(client):
    flags = SMALL | {"qualityToggle": True, "ucPreset": 1}
    for model in ("nai-diffusion-furry-3", "nai-diffusion-3-furry"):
        metadata = read_comment(post(client, {"input": "wolf", "model": model, "parameters": flags}))
        assert metadata["prompt"] == "wolf, {best quality}, {amazing quality}"
        assert metadata["uc"].startswith("nsfw, {worst quality}, guide lines")


HUMAN = f"{HEAVY}, bad anatomy, bad hands, @_@"


def resolve_texts(policy, body):
    prompts = resolve(read_request(body), policy).job.prompts
    return prompts.positive, prompts.negative


def build_resent_body(body, texts):
    """The request that a client builds from an image's Comment: the texts in it, the flags as before."""
    positive, negative = texts
    others = {key: value for key, value in body["parameters"].items() if key not in ("uc", "prompt")}
    return body | {"input": positive, "parameters": others | {"negative_prompt": negative}}


@pytest.mark.parametrize("mode", ["auto", "always", "client"])
@pytest.mark.parametrize("name", BODIES)
def test_applying_presets_twice_equals_applying_them_once(policy, name, mode):
    policy = RequestPolicy(policy.model, policy.presets, mode)
    once = resolve_texts(policy, BODIES[name])
    assert resolve_texts(policy, build_resent_body(BODIES[name], once)) == once


@pytest.mark.parametrize("name", BODIES)
def test_resending_an_imported_comment_gives_the_same_comment(client, name):
    sent = BODIES[name]["parameters"]
    once = read_comment(post(client, BODIES[name]))
    imported = once.keys() - {"prompt", "uc", "generator", "naiad", "signed_hash"}
    flags = {key: sent[key] for key in sent.keys() & {"qualityToggle", "ucPreset"}}
    resent = {key: once[key] for key in imported} | flags | {"negative_prompt": once["uc"]}
    body = {"input": once["prompt"], "model": BODIES[name].get("model"), "action": "generate"}
    twice = read_comment(post(client, body | {"parameters": resent}))
    assert {**twice, "signed_hash": "", "naiad": ""} == {**once, "signed_hash": "", "naiad": ""}


@pytest.mark.parametrize("name", BODIES)
def test_nais_page_imports_an_image_and_resends_it(client, name):
    """The page infers its toggles from the texts and sends the same texts, or "lowres" without a negative prompt."""
    once = read_comment(post(client, BODIES[name]))
    presets = [index for index, text in enumerate((HEAVY, LIGHT, HUMAN)) if text in once["uc"]]
    flags = {"qualityToggle": QUALITY in once["prompt"], "ucPreset": max(presets, default=3)}
    names = ("width", "height", "scale", "steps", "seed", "sampler", "noise_schedule", "sm", "sm_dyn")
    sampling = {name: once[name] for name in names}
    sent = {"params_version": 3, "negative_prompt": once["uc"] or "lowres", **sampling, **flags}
    twice = read_comment(post(client, V3 | {"input": once["prompt"], "parameters": sent}))
    assert (twice["prompt"], twice["uc"]) == (once["prompt"], sent["negative_prompt"])
    assert {name: twice[name] for name in names} == sampling


TAGS = st.sampled_from(
    ["1girl", "best quality", "{Best  Quality}", "nsfw", "", " ", "cat:1.5", "lowres", "|", ",", "hat", ":0.5"]
)  # fmt: skip


@given(
    st.lists(TAGS, max_size=8).map(", ".join) | st.lists(TAGS, max_size=8).map("|".join),
    st.lists(TAGS, max_size=4).map(", ".join),
    st.sampled_from([True, False, None, "true"]),
    st.sampled_from([0, 1, 2, 3, 4, None, "0"]),
    st.sampled_from(["auto", "always"]),
    st.sampled_from(["nai-diffusion-3", "nai-diffusion-2", "safe-diffusion", "nai-diffusion-furry-3", "nai-diffusion-4-full", "x"]),
)  # fmt: skip
@settings(max_examples=300)
def test_presets_are_idempotent_for_any_text(policy, positive, negative, quality, preset, mode, model):
    policy = RequestPolicy(policy.model, policy.presets, mode)
    parameters = {"negative_prompt": negative, "qualityToggle": quality, "ucPreset": preset}
    body = {"input": positive, "model": model, "parameters": parameters}
    try:
        once = resolve_texts(policy, body)
    except Rejected:  # a `|` mix without any text
        assume(False)
    assert resolve_texts(policy, build_resent_body(body, once)) == once


def test_a_preset_omits_nsfw_if_the_prompt_asks_for_it(client):
    metadata = generate_comment(client, {"ucPreset": 1}, input="1girl, NSFW")
    assert metadata["uc"] == LIGHT
    assert generate_comment(client, {"ucPreset": 3})["uc"] == "lowres"
