"""LoRAs of a request: names, strengths, prompt tags, and what is refused."""

from dataclasses import replace
from typing import cast

import pytest
from lora_files import random_lora, write_lora

from demo.checkpoint import CYANOTYPE_LORA, DEMO
from server.config.catalog import LoraEntry, single_model_catalog
from server.config.resources import configs
from server.engine.model import detect_model
from server.errors import Rejected
from server.picture.comment import build_comment, describe_job
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import read_request

LAYER = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
STRENGTH = "is not a number from -10 to 10"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    for name, layers, metadata in (
        ("Style", {LAYER: (64, 96)}, None),
        (
            "ink",
            {LAYER: (64, 96)},
            {"modelspec.prediction_type": "epsilon", "ss_sd_model_name": "ponyDiffusionV6XL"},
        ),
        ("INK2", {LAYER: (64, 96)}, None),
        ("cafe\u0301", {LAYER: (64, 96)}, None),
        ("ink2", {LAYER: (64, 96)}, None),
        ("old", {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": (320, 768)}, None),
        ("flux", {"lora_unet_double_blocks_0_img_attn_proj": (64, 64)}, None),
    ):
        write_lora(folder / f"{name}.safetensors", random_lora(layers), metadata)
    (folder / "broken.safetensors").write_bytes(b"nothing")
    (folder.parent / "outside.safetensors").write_bytes(b"nothing")
    return replace(detect_model(single_model_catalog(DEMO)), lora_folder=folder)


def ask(model, loras=None, prompt="1girl", **choices):
    policy = RequestPolicy(model, load_presets(configs() / "presets.toml"), **choices)
    return resolve(read_request({"input": prompt, "parameters": {"seed": 1, "loras": loras}}), policy)


def applied(resolved):
    return [(lora.name, lora.unet, lora.text) for lora in resolved.job.loras]


@pytest.mark.parametrize(
    ("loras", "expected"),
    [
        (None, []),
        ([], []),
        ([{"name": "Style"}], [("Style", 1, 1)]),
        (["ink"], [("ink", 1, 1)]),
        ([{"name": "style.safetensors", "strength": "0.5"}], [("Style", 0.5, 0.5)]),
        ([{"name": "INK", "strength": {"unet": 0.5, "text": 0}}], [("ink", 0.5, 0)]),
        ([{"name": "ink", "strength": 0.5, "text_strength": -1}], [("ink", 0.5, -1)]),
        ([{"name": "ink", "unet_strength": 0, "text_strength": 2}], [("ink", 0, 2)]),
        ([{"name": "ink", "strength": 0}], []),
        ([{"name": "ink"}, {"name": "ink", "strength": 0.5}], [("ink", 1.5, 1.5)]),
        ([{"name": "ink", "strength": None, "text_strength": None}], [("ink", 1, 1)]),
        ([{"name": "ink", "strength": {"unet": None, "text": 0}}], [("ink", 1, 0)]),
        (["CAF\u00c9"], [("cafe\u0301", 1, 1)]),
        ([{"name": "ink2"}, {"name": "INK2"}], [("ink2", 1, 1), ("INK2", 1, 1)]),
    ],
)  # fmt: skip
def test_names_and_strengths_are_read(model, loras, expected):
    assert applied(ask(model, loras)) == expected


@pytest.mark.parametrize(
    ("loras", "said"),
    [
        ("ink", "parameters.loras: 'ink' is not an array like"),
        ([5], "parameters.loras.0: 5 is not an object like"),
        ([{}], "parameters.loras.0.name: null is not a name of at most 200 characters"),
        ([{"name": "x" * 201}], "parameters.loras.0.name: 'xxx"),
        (["ink", "inc"], "parameters.loras.1.name: 'inc' is not one of the 8 LoRAs; did you mean 'ink'"),
        (["Ink2"], "parameters.loras.0.name: 'Ink2' is not one of the 8 LoRAs; did you mean 'INK2' or 'ink2'?"),
        (["zzzzzz"], "parameters.loras.0.name: 'zzzzzz' is not one of the 8 LoRAs; GET /models lists all"),
        (["../outside"], "parameters.loras.0.name: '../outside' must be the name of a file in the folder of LoRAs"),
        (["..\\outside"], "parameters.loras.0.name: '..\\\\outside' must be the name of a file"),
        (["/etc/passwd"], "parameters.loras.0.name: '/etc/passwd' must be the name of a file"),
        (["."], "parameters.loras.0.name: '.' must be the name of a file"),
        (["ink"] * 10, "parameters.loras: 10 LoRAs; at most 8"),
        ([{"name": "ink", "strength": 1e9}], f"parameters.loras.0.strength: 1000000000.0 {STRENGTH}"),
        ([{"name": "ink", "strength": True}], f"parameters.loras.0.strength: true {STRENGTH}"),
        ([{"name": "ink", "strength": {"unet": "nan"}}], f"parameters.loras.0.strength.unet: 'nan' {STRENGTH}"),
        ([{"name": "ink", "strength": 9}] * 2, f"parameters.loras.1: 'ink': 18.0 {STRENGTH}"),
        ([{"name": "ink", "weight": 1}], "parameters.loras.0: 'weight' is not a key here; known: name, strength,"),
        ([{"name": "ink", "strength": {"clip": 1}}], "parameters.loras.0.strength: 'clip' is not a key here; known: unet, text"),
        (["old"], "parameters.loras.0.name: 'old' cannot be used: it is for Stable Diffusion 1, the model is SDXL; choose one for SDXL"),
        (["flux"], "parameters.loras.0.name: 'flux' cannot be used: it is for Flux, the model is SDXL; choose one for SDXL"),
        (["broken"], "parameters.loras.0.name: 'broken' cannot be used: not a safetensors file"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(model, loras, said):
    with pytest.raises(Rejected) as refused:
        ask(model, loras)
    assert refused.value.message.startswith(said)
    assert str(model.lora_folder) not in refused.value.message


def test_without_a_folder_no_name_is_known(model):
    with pytest.raises(Rejected, match="no LoRAs are offered"):
        ask(replace(model, lora_folder=None), ["ink"])
    with pytest.raises(
        Rejected, match=r"^parameters.loras.0.name: 'ink' cannot be used: the folder cannot be read"
    ):
        ask(replace(model, lora_folder=DEMO.with_name("gone")), ["ink"])


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("1girl, <lora:ink:0.5>, smile", "1girl, smile", [("ink", 0.5, 0.5)]),
        ("<lora:ink:0.5:0.25> cat", "cat", [("ink", 0.5, 0.25)]),
        ("cat<lora:ink>", "cat", [("ink", 1, 1)]),
        ("cat, <lora:ink:1>, <lora:Style:-1>", "cat", [("ink", 1, 1), ("Style", -1, -1)]),
        ("cat,  <lora:ink:1> ,dog", "cat ,dog", [("ink", 1, 1)]),
        ("cat, <3", "cat, <3", []),
    ],
)
def test_tags_of_the_prompt_apply_loras_if_that_is_on(model, prompt, text, expected):
    resolved = ask(model, prompt=prompt, prompt_loras=True)
    assert (resolved.job.prompts.positive, applied(resolved)) == (text, expected)
    plain = ask(model, prompt=prompt)
    assert (plain.job.prompts.positive, applied(plain)) == (prompt, [])


def test_a_tag_in_a_negative_prompt_is_refused(model):
    center = {"centers": [{"x": 0.1, "y": 0.5}]}
    for field, negative in (
        ("negative_prompt", {"negative_prompt": "bad <lora:ink:1>"}),
        ("v4_negative_prompt", {"v4_negative_prompt": {"caption": {"char_captions": [{"char_caption": "<lora:ink:1>"}]}}}),
    ):  # fmt: skip
        caption = {"base_caption": "a", "char_captions": [{"char_caption": "b", **center}]}
        parameters = {"v4_prompt": {"caption": caption, "use_coords": True}, **negative}
        policy = RequestPolicy(model, load_presets(configs() / "presets.toml"), prompt_loras=True)
        body = {"model": "nai-diffusion-4-full", "parameters": parameters}
        with pytest.raises(Rejected, match=rf"^{field}: <lora:...> belongs into the prompt"):
            resolve(read_request(body), policy)


def test_spaces_before_a_tag_take_no_time(model):
    prompt = " " * 39_000 + "x <lora:ink:1>"
    assert ask(model, prompt=prompt, prompt_loras=True).job.prompts.positive == "x"


def test_a_tag_that_is_read_as_text_gives_a_warning(model):
    warning = "input: <lora:...> is read as text; use parameters.loras, or the setting api.prompt_loras"
    assert warning in ask(model, prompt="cat, <lora:ink:1>").warnings
    for prompt, setting in (("cat, <lora:ink:1>", True), ("cat, <lora>", False)):
        assert warning not in ask(model, prompt=prompt, prompt_loras=setting).warnings


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<lora:nothing:1>", "input: 'nothing' is not one of the 8 LoRAs"),
        ("<lora:../x:1>", "input: '../x' must be the name of a file"),
        ("<lora:ink:much>", f"input: <lora:ink>: 'much' {STRENGTH}"),
        ("<lora:ink:1:1:1>", "input: <lora:ink:1:1:1> is not like <lora:name:0.8>"),
        ("<lora::1>", "input: <lora:>: '' is not a name"),
    ],
)
def test_wrong_tags_are_refused(model, prompt, said):
    with pytest.raises(Rejected) as refused:
        ask(model, prompt=prompt, prompt_loras=True)
    assert refused.value.message.startswith(said)


def test_a_loras_metadata_that_name_another_prediction_give_a_warning(model):
    warnings = [warning for warning in ask(model, ["ink"]).warnings if warning.startswith("loras:")]
    assert len(warnings) == 1
    assert warnings[0].startswith("loras: 'ink' was trained for another prediction")
    noob = replace(
        model, entry=model.entry.model_copy(update={"path": DEMO.with_name("NoobAI-XL.safetensors")})
    )
    assert "loras: 'ink' was trained on pony, the model is noob" in ask(noob, ["ink"]).warnings
    assert not [warning for warning in ask(model, ["Style"]).warnings if warning.startswith("loras:")]


def test_loras_of_the_catalog_are_always_applied_first(model):
    entry = model.entry.model_copy(update={"loras": (LoraEntry(name="ink", strength=0.5, text_strength=0),)})
    always = replace(model, entry=entry)
    assert applied(ask(always)) == [("ink", 0.5, 0)]
    assert applied(ask(always, ["Style", {"name": "ink", "strength": 0.25}])) == [
        ("ink", 0.75, 0.25),
        ("Style", 1, 1),
    ]


def test_the_metadata_record_names_strengths_and_fingerprints(model):
    job = ask(model, [{"name": "ink", "strength": {"unet": 1, "text": 0.5}}]).job
    comment = build_comment(job, 0)
    assert comment["lora_unet_weights"] == {"ink": 1.0}
    assert comment["lora_clip_weights"] == {"ink": 0.5}
    about = describe_job(job, (1.0, 0.0), "exact", "ABCDEF12")
    recorded = cast("dict[str, object]", about["job"])
    assert recorded["loras"] == [{"name": "ink", "hash": job.loras[0].fingerprint, "unet": 1.0, "text": 0.5}]
    plain = ask(model).job
    assert "loras" not in str(describe_job(plain, (1.0, 0.0), "exact", "ABCDEF12"))
    assert build_comment(plain, 0)["lora_unet_weights"] is None


def test_the_demo_has_a_lora_of_a_known_kind(model):
    assert CYANOTYPE_LORA.stat().st_size < 1 << 20
    resolved = ask(replace(model, lora_folder=CYANOTYPE_LORA.parent), ["cyanotype"])
    assert applied(resolved) == [("cyanotype", 1, 1)]
    assert resolved.warnings == ()
