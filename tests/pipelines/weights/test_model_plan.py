"""Planning from headers: what a model's files may look like, and what is refused before a tensor is read."""

import json
from dataclasses import replace

import pytest
import torch
from checkpoint_files import hollow
from safetensors.torch import load_file, save_file

from demo.architecture import demo_architecture
from pipelines.errors import WeightsError
from pipelines.weights.architecture import METADATA_KEY
from pipelines.weights.header import read_header
from pipelines.weights.load import load_weights
from pipelines.weights.model_plan import plan_model

UNET, VAE, CLIP_L, CLIP_G = (
    "model.diffusion_model.",
    "first_stage_model.",
    "conditioner.embedders.0.transformer.text_model.",
    "conditioner.embedders.1.model.",
)
PROJECTION = f"{CLIP_G}text_projection"


@pytest.fixture(scope="module")
def stored(demo_file):
    return load_file(demo_file)


@pytest.fixture(scope="module")
def shapes(stored):
    return {key: tuple(tensor.shape) for key, tensor in stored.items()}


@pytest.fixture
def plan(tmp_path, demo_file):
    """Plan a model from the shapes of its tensors; `files` are the shapes of other files, by the argument."""

    def plan_shapes(shapes, **files):
        metadata = dict(read_header(demo_file).metadata)
        others = {name: hollow(tmp_path / f"{name}.safetensors", tensors) for name, tensors in files.items()}
        if "text_encoders" in others:
            others["text_encoders"] = (others["text_encoders"],)
        return plan_model(hollow(tmp_path / "model.safetensors", shapes, metadata), **others)

    return plan_shapes


@pytest.mark.parametrize(
    "extra",
    [
        [
            "first_stage_model.loss.logvar",
            "first_stage_model.model_ema.decay",
            "first_stage_model.loss.main.0.weight",
        ],
        ["safety_checker.concept_embeds", "safety_checker.vision_model.vision_model.post_layernorm.bias"],
        ["global_step", "model_ema.num_updates", "epoch", "betas", "logvar", "scale_factor"],
        ["conditioner.embedders.0.transformer.vision_model.a.bias", f"{CLIP_G}visual.conv1.weight"],
        ["conditioner.embedders.0.transformer.visual_projection.weight", f"{CLIP_G}logit_scale"],
        ["conditioner.embedders.0.transformer.text_projection.weight", f"{CLIP_G}attn_mask"],
        [f"{CLIP_G}transformer.text_projection.weight", f"{CLIP_G}text_projection.bias"],
        [
            "lora_unet_mid_block.lora_down.weight",
            "lora_te1_text_model.alpha",
            "control_model.time_embed.0.bias",
        ],
    ],
)
def test_what_trainers_and_merges_leave_over_is_ignored(plan, shapes, extra):
    plan(shapes | dict.fromkeys(extra, (4,)))


@pytest.mark.parametrize(
    "extra",
    [
        f"{UNET}middle_block.3.in_layers.0.weight",
        f"{VAE}encoder.down.9.block.0.conv1.weight",
        f"{CLIP_L}encoder.layers.99.mlp.fc1.bias",
        f"{CLIP_G}transformer.resblocks.99.mlp.c_fc.bias",
        "something.weight",
    ],
)
def test_a_tensor_of_another_architecture_is_refused(plan, shapes, extra):
    with pytest.raises(WeightsError, match=rf"1 unexpected \({extra}\); it is of another architecture"):
        plan(shapes | {extra: (4,)})


@pytest.mark.parametrize("place", ["transformer.text_projection.weight", "text_projection.weight"])
def test_the_projection_may_be_a_linear_layer_alone(tmp_path, stored, demo, demo_file, place):
    linear = {key: tensor for key, tensor in stored.items() if key != PROJECTION}
    linear[CLIP_G + place] = stored[PROJECTION].T.contiguous()
    save_file(linear, tmp_path / "a.safetensors", dict(read_header(demo_file).metadata))
    loaded = load_weights(tmp_path / "a.safetensors").text_encoders[1]
    assert_same(loaded, demo.weights.text_encoders[1])


def assert_same(encoder, expected):
    tensors = encoder.module.state_dict()
    for name, tensor in expected.module.state_dict().items():
        assert torch.equal(tensors[name], tensor), name


def select(tensors, prefix):
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def to_openai(tensors):
    """CLIP-L's weights, given under transformers' names, in the layout that OpenAI published."""
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    names["self_attn.out_proj"] = "attn.out_proj"
    made = {
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "visual.proj": torch.zeros(2, 2),
        "text_projection": torch.zeros(32, 32),
    }
    for leaf in ("weight", "bias"):
        made[f"ln_final.{leaf}"] = tensors[f"final_layer_norm.{leaf}"]
        for layer in range(3):
            old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
            made |= {
                f"{new}{theirs}.{leaf}": tensors[f"{old}{ours}.{leaf}"] for ours, theirs in names.items()
            }
            parts = [tensors[f"{old}self_attn.{part}_proj.{leaf}"] for part in "qkv"]
            made[f"{new}attn.in_proj_{leaf}"] = torch.cat(parts)
    return made


@pytest.mark.parametrize(
    "prefix", ["", "clip_l.", "text_encoders.clip_l.", "te1.", "cond_stage_model.model."]
)
def test_clip_l_in_openai_layout_is_read_to_the_bit(tmp_path, stored, demo, demo_file, prefix):
    tensors = to_openai(select(stored, CLIP_L))
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, tmp_path / "clip.safetensors")
    loaded = load_weights(demo_file, text_encoders=(tmp_path / "clip.safetensors", demo_file))
    assert_same(loaded.text_encoders[0], demo.weights.text_encoders[0])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("text_encoders.clip_l.transformer.text_model.", "text_encoders.clip_g.transformer.text_model."),
        ("clip_l.transformer.text_model.", "clip_g.transformer.text_model."),
        ("te1.text_model.", "te2.text_model."),
        ("text_encoder.text_model.", "text_encoder_2.text_model."),
    ],
)
def test_one_file_may_hold_both_text_encoders_under_many_prefixes(plan, demo, shapes, first, second):
    encoders = [
        {
            name.removeprefix("text_model."): tuple(tensor.shape)
            for name, tensor in encoder.module.state_dict().items()
        }
        for encoder in demo.weights.text_encoders
    ]
    projection = second.removesuffix("text_model.") + "text_projection.weight"
    file = {first + name: shape for name, shape in encoders[0].items()}
    file |= {
        second + name: shape for name, shape in encoders[1].items() if not name.startswith("text_projection")
    }
    file |= {projection: encoders[1]["text_projection.weight"], first.split(".")[0] + ".logit_scale": ()}
    bare = {key: shape for key, shape in shapes.items() if not key.startswith("conditioner.")}
    sources = [planned.source.path.stem for planned in plan(bare, text_encoders=file).parts]
    assert sources == ["model", "model", "text_encoders", "text_encoders"]


@pytest.mark.parametrize(
    ("argument", "extra", "reason"),
    [
        ("vae", {"encoder.down.9.block.0.conv1.bias": (4,)}, r"vae\.safetensors: 1 unexpected \(encoder"),
        ("vae", {"loss.logvar": (), "model_ema.decay": ()}, None),
        ("vae", {"decoder.conv_out.bias": (4,)}, r"has the shape \(4,\), not \(3,\)"),
        (
            "text_encoders",
            {f"{CLIP_L}encoder.layers.9.mlp.fc1.bias": (4,)},
            "text_encoders.safetensors: 1 unexp",
        ),
    ],
)
def test_replacements_are_checked_like_the_checkpoint(plan, shapes, argument, extra, reason):
    vae, text = select(shapes, VAE), {key: shape for key, shape in shapes.items() if key.startswith("cond")}
    files = {argument: (vae if argument == "vae" else text) | extra}
    if reason is None:
        plan(shapes, **files)
        return
    with pytest.raises(WeightsError, match=reason):
        plan(shapes, **files)


def test_other_components_in_a_replacement_do_not_matter(plan, shapes):
    plan(
        shapes, vae=select(shapes, VAE) | {"model.diffusion_model.x": (4,), "conditioner.embedders.0.y": (4,)}
    )


def test_an_inpainting_unet_is_checked_like_the_checkpoint(tmp_path, demo_file, shapes):
    unet = {key: shape for key, shape in shapes.items() if key.startswith(UNET)} | {
        "v_pred": (0,),
        "ztsnr": (0,),
    }
    unet[f"{UNET}input_blocks.0.0.weight"] = (32, 9, 3, 3)
    metadata = {METADATA_KEY: demo_architecture(9).to_json()}
    for extra, reason in (
        ({}, None),
        ({f"{UNET}middle_block.3.bias": (4,)}, "1 unexpected"),
        ({f"{UNET}out.2.bias": (5,)}, r"not \(4,\)"),
    ):
        path = hollow(tmp_path / "inpainting.safetensors", unet | extra, metadata)
        if reason is None:
            assert plan_model(demo_file, inpainting=path).inpainting is not None
            continue
        with pytest.raises(WeightsError, match=reason):
            plan_model(demo_file, inpainting=path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("unet", "layers_per_block"), 10**9),
        (("unet", "norm_num_groups"), 0),
        (("unet", "norm_num_groups"), 7),
        (("unet", "down_block_types"), ["DownBlock2D"]),
        (("unet", "block_out_channels"), [32] * 100),
        (("unet", "act_fn"), "other"),
        (("unet", "surprise"), 1),
        (("latent_scale",), "1"),
        (("latent_scale",), float("nan")),
        (("family",), []),
        (("towers",), []),
        (("towers", 0, "config", "num_hidden_layers"), 10**7),
        (("towers", 0, "pad"), 10**7),
    ],
)
def test_an_embedded_architecture_that_cannot_be_built_is_refused(tmp_path, shapes, path, value):
    architecture = json.loads(demo_architecture().to_json())
    owner = architecture
    for step in path[:-1]:
        owner = owner[step]
    owner[path[-1]] = value
    for text in (json.dumps(architecture), "[" * 100_000, "[]"):
        file = hollow(tmp_path / "a.safetensors", shapes, {METADATA_KEY: text})
        with pytest.raises(WeightsError, match=METADATA_KEY) as refused:
            plan_model(file)
        assert "\n" not in str(refused.value)


def test_clip_skip_is_for_stable_diffusion_1_alone(demo_file, tmp_path):
    with pytest.raises(WeightsError, match="clip_skip = 1 is set, but SDXL"):
        plan_model(demo_file, clip_skip=1)


def test_clip_skip_chooses_the_layer_that_is_normalized():
    from pipelines.weights.networks import ClipTextEncoder, load_state

    config = replace(demo_architecture().text_encoders[0], final_norm=True)
    states, generator = {}, torch.Generator().manual_seed(1)
    encoders = {skip: ClipTextEncoder(config, skip) for skip in (None, 1, 2, 3)}
    for name, tensor in encoders[None].module.state_dict().items():
        states[name] = torch.randn(tensor.shape, generator=generator) / 4
    ids = torch.arange(77)[None] % 50
    hidden = {}
    for skip, encoder in encoders.items():
        load_state(encoder.module, states)
        hidden[skip] = encoder.encode(ids)[0]
    assert torch.equal(hidden[None], hidden[2])
    assert not torch.allclose(hidden[1], hidden[2])
    assert not torch.allclose(hidden[2], hidden[3])
    # the last layer, normalized, is what the model itself returns
    assert torch.allclose(hidden[1], encoders[1].module(ids).last_hidden_state)
