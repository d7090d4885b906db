"""Bodies as real clients send them, and what the picture's Comment says was made of them."""

import json
from dataclasses import replace

import pytest
from bodies import BODIES, HEAVY, LIGHT, QUALITY, SMALL, V3
from fake_model import BASE_URL, GENERATE, FakeModel, build_state, read_comment, unzip_images
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pipelines.sampling.samplers import ALIASES, SAMPLERS
from server.app import create_app
from server.config.catalog import single_model_catalog
from server.config.resources import configs
from server.engine.model import detect_model
from server.errors import Rejected
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import GenerateRequest


@pytest.fixture(scope="module")
def policy(demo_file):
    return RequestPolicy(
        detect_model(single_model_catalog(demo_file)), load_presets(configs() / "presets.toml")
    )


@pytest.fixture(scope="module")
def client(policy, signing_key):
    state = build_state(policy.served, FakeModel(), signing_key)
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        state.engine.wait_ready()
        yield client


def post(client, body):
    answer = client.post(GENERATE, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    return answer


def said(client, parameters, **top):
    return read_comment(post(client, {"input": "1girl", **top, "parameters": SMALL | parameters}))


@pytest.mark.parametrize("name", BODIES)
def test_every_client_is_understood(client, name):
    body = BODIES[name]
    found = read_comment(post(client, body))
    assert (found["width"], found["height"]) == (128, 192)
    assert found["steps"] == body["parameters"].get("steps", 28)
    assert found["seed"] == body["parameters"]["seed"] % 2**32
    assert found["scale"] == body["parameters"].get("scale", 5)
    assert isinstance(found["scale"], float)
    assert found["request_type"] == "PromptGenerateRequest"


FLAGGED = ("written by hand", "Kohaku", "SDStudio", "NAIS2", "novelai-sdk")
WRITTEN = [name for name in BODIES if name not in FLAGGED]


@pytest.mark.parametrize("name", WRITTEN)
def test_a_client_that_writes_its_texts_gets_them_unchanged(client, name):
    body = BODIES[name]
    found = read_comment(post(client, body))
    assert found["prompt"] == body["input"]
    assert found["uc"] == body["parameters"].get("negative_prompt", "")


@pytest.mark.parametrize(
    ("name", "prompt", "uc"),
    [
        ("written by hand", "a cat" + QUALITY, f"nsfw, {HEAVY}"),
        ("Kohaku", "1girl" + QUALITY, f"nsfw, {HEAVY}"),
        ("SDStudio", "1girl" + QUALITY, "worst quality"),
        ("NAIS2", "1girl", f"nsfw, {HEAVY}"),
        ("novelai-sdk", "1girl" + QUALITY, f", {HEAVY} , "),  # what it wrote into parameters.prompt is V4.5's
    ],
)
def test_flags_without_texts_get_them_from_the_server(client, name, prompt, uc):
    found = read_comment(post(client, BODIES[name]))
    assert (found["prompt"], found["uc"]) == (prompt, uc)


@pytest.mark.parametrize("name", FLAGGED)
def test_flags_are_for_the_record_where_the_operator_says_so(policy, name):
    body = BODIES[name]
    found = final(replace(policy, mode="client"), body)
    assert found == (body["input"], body["parameters"].get("negative_prompt", ""))


LATER = (
    *("characterPrompts", "use_coords", "legacy_uc", "v4_prompt", "v4_negative_prompt", "straight_alpha"),
    *("tag_hint_qt", "tag_hint_uc_preset", "tag_hint_transparent_background", "upscale", "upscaled_enhance"),
    *("variety_plus", "se_seed", "extra_passthrough_testing", "controlnet_any", "image_cache_secret_key"),
)
"""Keys of V4 and later, which requests for V3 carry along."""


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        # the core
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
        # undesired content under all its names
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
        ({"autoSmea": True, "width": 1472, "height": 1472}, {"sm": False}),  # one pixel too few
        ({"autoSmea": True, "width": 1472, "height": 1504}, {"sm": True}),
        ({"auto_smea": True, "width": 1536, "height": 1536}, {"sm": True}),
        ({"autoSmea": False, "width": 1536, "height": 1536}, {"sm": False}),
        # schedules that a sampler does not have
        *(({"sampler": name, "noise_schedule": "karras"}, {"noise_schedule": "native"})
          for name in ("ddim", "ddim_v3", "plms", "k_lms", "k_dpm_fast")),
        *(({"sampler": "ddim", "steps": steps}, {"steps": steps}) for steps in (3, 9, 27, 36, 37)),
        # the flags of Euler a
        ({"sampler": "k_euler_ancestral"}, {"deliberate_euler_ancestral_bug": True, "prefer_brownian": False}),
        ({"sampler": "k_euler_ancestral", "noise_schedule": "karras"},
         {"deliberate_euler_ancestral_bug": False, "prefer_brownian": True}),
        ({"deliberate_euler_ancestral_bug": False, "prefer_brownian": True},
         {"deliberate_euler_ancestral_bug": False, "prefer_brownian": True}),
        ({"sampler": "k_euler_ancestral", "deliberate_euler_ancestral_bug": None}, {"deliberate_euler_ancestral_bug": True}),
        ({"deliberate_euler_ancestral_bug": "false"}, {"deliberate_euler_ancestral_bug": False}),
        # variety
        *(({"skip_cfg_above_sigma": value}, {"skip_cfg_above_sigma": value}) for value in (19, 11.84515480302779)),
        ({"skip_cfg_above_sigma": 19.343056794463642}, {"skip_cfg_above_sigma": 19.343056794463642}),
        ({"skip_cfg_above_sigma": 58}, {"skip_cfg_above_sigma": 58.0}),
        ({"skip_cfg_below_sigma": 0.5}, {"skip_cfg_below_sigma": 0.5}),
        # what belongs to other kinds of request has no say, whatever its value
        ({"strength": 7, "noise": "much", "extra_noise_seed": None, "img2img": {"strength": 0.7}}, {}),
        ({"image": "", "mask": None, "reference_image_multiple": [], "reference_image": ""}, {}),
        ({"mask": "AAAA", "inpaintImg2ImgStrength": 5, "controlnet_strength": -1, "color_correct": 3}, {}),
        ({"controlnet_condition": "AAAA", "controlnet_model": "hed", "masks": [{"seed": 1}], "module": 1}, {"controlnet_model": None}),
        ({"reference_information_extracted": 1.0, "reference_strength": 0.6, "reference_strength_multiple": [],
          "reference_information_extracted_multiple": [], "normalize_reference_strength_multiple": True},
         {"reference_strength_multiple": []}),
        ({f"director_reference_{name}": [] for name in ("images", "descriptions", "strength_values")}, {"prompt": "1girl"}),
        (dict.fromkeys(LATER, "junk"), {"prompt": "1girl", "uc": "", "width": 128}),
        ({"model": "NAI Diffusion V3"}, {"prompt": "1girl"}),
        ({"ucPreset": "heavy", "qualityToggle": "yes", "autoSmea": "perhaps"}, {"prompt": "1girl", "uc": ""}),
        *(({"ucPreset": index}, {"uc": ""}) for index in (4, 5, 6, 7, 99)),  # other clients' own enums
        ({"ucPreset": -1}, {"uc": ""}),
        ({"ucPreset": True}, {"uc": ""}),
        ({"v4_prompt": {"caption": {"base_caption": "not this"}}, "characterPrompts": [1]}, {"prompt": "1girl"}),
        ({"ucPresetId": "heavy", "qualityPresetId": "standard", "variety_plus": True, "url": 1}, {"uc": ""}),
    ],
)  # fmt: skip
def test_a_quirk(client, parameters, expected):
    found = said(client, parameters)
    assert {key: found[key] for key in expected} == expected
    assert "skip_cfg_above_sigma" in found or not parameters.get("skip_cfg_above_sigma")


@pytest.mark.parametrize("value", [None, 0.0])
def test_variety_is_off_when_it_is_null_and_a_number_when_it_is_one(client, value):
    assert said(client, {"skip_cfg_above_sigma": value}).get("skip_cfg_above_sigma") == value


@pytest.mark.parametrize("name", [*SAMPLERS, *ALIASES])
def test_every_sampler_id_that_was_ever_sent_is_known(client, name):
    assert said(client, {"sampler": name, "noise_schedule": None})["sampler"] == ALIASES.get(name, (name,))[0]


def test_the_answer_is_what_clients_insist_on(client):
    answer = post(client, BODIES["the least"] | {"parameters": SMALL | {"n_samples": 3}})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "binary/octet-stream")
    assert ".zip" in answer.headers["content-disposition"]
    assert list(unzip_images(answer)) == ["image_0.png", "image_1.png", "image_2.png"]
    webp = unzip_images(post(client, BODIES["the least"] | {"parameters": SMALL | {"image_format": "webp"}}))
    assert {name: picture.format for name, picture in webp.items()} == {"image_0.webp": "WEBP"}


def test_what_is_refused_is_told_in_nais_envelope(client):
    for field, value in {"steps": 51, "width": 100, "sampler": "none", "image": "AAAA"}.items():
        answer = client.post(GENERATE, json={"input": "1girl", "parameters": SMALL | {field: value}})
        assert answer.status_code == answer.json()["statusCode"] == 400
        assert answer.json()["message"].startswith(f"parameters.{field}: ")


@pytest.mark.parametrize("seed", [0, None, 2**32, "0"])
def test_seed_zero_means_any(client, seed):
    first, second = (said(client, {"seed": seed})["seed"] for _ in range(2))
    assert first != second
    assert 0 < first < 2**32


def test_samples_count_up_from_the_seed_and_past_its_end(client):
    answer = post(client, {"input": "a", "parameters": SMALL | {"seed": 2**32 - 2, "n_samples": 4}})
    seeds = [json.loads(picture.info["Comment"])["seed"] for picture in unzip_images(answer).values()]
    assert seeds == [4294967294, 4294967295, 0, 1]


@pytest.mark.parametrize(
    ("top", "parameters", "prompt"),
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
def test_the_prompt_is_the_input_and_kept_to_the_letter(client, top, parameters, prompt):
    answer = post(client, top | {"parameters": SMALL | parameters})
    picture = unzip_images(answer)["image_0.png"]
    assert json.loads(picture.info["Comment"])["prompt"] == picture.info["Description"] == prompt


def test_a_v4_prompt_becomes_one_text_for_the_models_that_mean_it(client):
    girls = [{"char_caption": "girl, red hair", "centers": []}, {"char_caption": "girl, hat"}]
    prompts = {
        "v4_prompt": {
            "caption": {"base_caption": "2girls, street", "char_captions": girls},
            "use_coords": False,
        },
        "v4_negative_prompt": {"caption": {"base_caption": "bad", "char_captions": [{"char_caption": "boy"}]}},
    }  # fmt: skip
    body = {"input": "2girls", "model": "nai-diffusion-4-5-full", "parameters": SMALL | prompts}
    answer = post(client, body)
    found = read_comment(answer)
    assert found["prompt"] == "2girls, street, girl, red hair, girl, hat"
    assert found["uc"] == "bad, boy"
    assert "nai-diffusion-4-5-full" in answer.headers["x-naiad-warning"]


@pytest.mark.parametrize("action", ["generate", None])
def test_the_action_may_be_missing(client, action):
    body = {"input": "1girl", "parameters": SMALL, "action": action}
    assert read_comment(post(client, body))["seed"] == SMALL["seed"]


def test_what_else_stands_at_the_top_is_not_read(client):
    junk = {"url": 1, "use_new_shared_trial": "yes", "recaptcha_token": None, "service_tier": [], "x": {}}
    assert said(client, {}, **junk)["prompt"] == "1girl"


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
    ("model", "warned"),
    [
        ("nai-diffusion-3", False),
        ("nai-diffusion-3-inpainting", False),
        (None, False),
        ("nai-diffusion-3-furry", True),
        ("my own", True),
        *((model, True) for model in IDS),
    ],
)
def test_other_models_are_answered_by_the_one_there_is_and_that_is_told(client, model, warned):
    answer = post(client, {"input": "1girl", "model": model, "parameters": SMALL})
    assert ("x-naiad-warning" in answer.headers) == warned
    assert not warned or "is answered by 'nai-diffusion-3'" in answer.headers["x-naiad-warning"]


def test_a_furry_request_gets_the_furry_texts_under_either_spelling(client):
    flags = SMALL | {"qualityToggle": True, "ucPreset": 1}
    for model in ("nai-diffusion-furry-3", "nai-diffusion-3-furry"):
        found = read_comment(post(client, {"input": "wolf", "model": model, "parameters": flags}))
        assert found["prompt"] == "wolf, {best quality}, {amazing quality}"
        assert found["uc"].startswith("nsfw, {worst quality}, guide lines")


HUMAN = f"{HEAVY}, bad anatomy, bad hands, @_@"


def final(policy, body):
    prompts = resolve(GenerateRequest.model_validate(body), policy).job.prompts
    return prompts.positive, prompts.negative


def again(body, texts):
    """The request that a client makes of a picture's Comment: the texts it holds, the flags as they were."""
    positive, negative = texts
    kept = {key: value for key, value in body["parameters"].items() if key not in ("uc", "prompt")}
    return body | {"input": positive, "parameters": kept | {"negative_prompt": negative}}


@pytest.mark.parametrize("mode", ["auto", "always", "client"])
@pytest.mark.parametrize("name", BODIES)
def test_presets_applied_twice_are_presets_applied_once(policy, name, mode):
    here = RequestPolicy(policy.served, policy.presets, mode)
    once = final(here, BODIES[name])
    assert final(here, again(BODIES[name], once)) == once


@pytest.mark.parametrize("name", BODIES)
def test_a_picture_imported_and_sent_again_says_the_same(client, name):
    sent = BODIES[name]["parameters"]
    once = read_comment(post(client, BODIES[name]))
    kept = once.keys() - {"prompt", "uc", "generator", "naiad", "signed_hash"}
    flags = {key: sent[key] for key in sent.keys() & {"qualityToggle", "ucPreset"}}
    resent = {key: once[key] for key in kept} | flags | {"negative_prompt": once["uc"]}
    body = {"input": once["prompt"], "model": BODIES[name].get("model"), "action": "generate"}
    twice = read_comment(post(client, body | {"parameters": resent}))
    assert {**twice, "signed_hash": "", "naiad": ""} == {**once, "signed_hash": "", "naiad": ""}


@pytest.mark.parametrize("name", BODIES)
def test_nais_page_imports_a_picture_and_sends_it_again(client, name):
    """It reads its toggles off the texts, and what it then sends is the same texts; for none at all, its "none"."""
    once = read_comment(post(client, BODIES[name]))
    presets = [index for index, text in enumerate((HEAVY, LIGHT, HUMAN)) if text in once["uc"]]
    flags = {"qualityToggle": QUALITY in once["prompt"], "ucPreset": max(presets, default=3)}
    names = ("width", "height", "scale", "steps", "seed", "sampler", "noise_schedule", "sm", "sm_dyn")
    chosen = {name: once[name] for name in names}
    sent = {"params_version": 3, "negative_prompt": once["uc"] or "lowres", **chosen, **flags}
    twice = read_comment(post(client, V3 | {"input": once["prompt"], "parameters": sent}))
    assert (twice["prompt"], twice["uc"]) == (once["prompt"], sent["negative_prompt"])
    assert {name: twice[name] for name in names} == chosen


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
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_presets_are_idempotent_whatever_is_written(policy, positive, negative, quality, preset, mode, model):
    here = RequestPolicy(policy.served, policy.presets, mode)
    parameters = {"negative_prompt": negative, "qualityToggle": quality, "ucPreset": preset}
    body = {"input": positive, "model": model, "parameters": parameters}
    try:
        once = final(here, body)
    except Rejected:  # a `|` mix of nothing
        assume(False)
    assert final(here, again(body, once)) == once


def test_light_is_one_preset_and_nsfw_stays_out_when_it_is_asked_for(client):
    found = said(client, {"ucPreset": 1}, input="1girl, NSFW")
    assert found["uc"] == LIGHT
    assert said(client, {"ucPreset": 3})["uc"] == "lowres"
