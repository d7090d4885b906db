import json

import pytest
import torch
from checkpoint_files import CONV_IN, CROSS, FOLDER, OUT, hollow, same_bits, saved, three
from safetensors.torch import load_file

from demo.architecture import demo_architecture
from pipelines.errors import WeightsError
from pipelines.weights.architecture import METADATA_KEY, sdxl
from pipelines.weights.checkpoint import open_checkpoint
from pipelines.weights.detect import detect
from pipelines.weights.key_map import UNET
from pipelines.weights.load import load_weights, model_parts
from pipelines.weights.merge import merge_inpainting
from pipelines.weights.networks import build_networks
from pipelines.weights.single_file import companion_tensors, read_bytes, unet_tensors

OWN = {METADATA_KEY: demo_architecture().to_json()}
OWN_INPAINTING = {METADATA_KEY: demo_architecture(9).to_json()}


@pytest.fixture(scope="module")
def demos(tmp_path_factory, demo_file):
    """An inpainting model, the demo as a fine-tune, and a base, all in the original layout; and what they give."""
    folder, tune = tmp_path_factory.mktemp("demos"), load_file(demo_file)
    noise = torch.Generator().manual_seed(1)
    base = {
        key: tensor + torch.randn(tensor.shape, generator=noise).half() / 64
        for key, tensor in tune.items()
        if key.startswith(UNET)
    }
    extra = torch.randn(32, 5, 3, 3, generator=noise).half()
    inpaint = base | {CONV_IN: torch.cat([base[CONV_IN] + 1, extra], 1)}
    paths = (
        saved(folder / "inpaint.safetensors", inpaint, OWN_INPAINTING),
        demo_file,
        saved(folder / "base.safetensors", base, OWN),
    )
    return paths, merge_inpainting(*paths, folder / "result.safetensors").output


def test_the_loader_takes_the_result_as_the_models_inpainting_unet(demos, demo_file):
    assert load_weights(demo_file, inpainting=demos[1]).inpainting is not None
    assert load_weights(demos[1]).architecture == demo_architecture(9)


@pytest.fixture(scope="module")
def tables():
    """Where each weight of the demo's networks lies in the original layout, by diffusers' folders."""
    unet, vae, towers = build_networks(demo_architecture())
    parts = model_parts(demo_architecture(), unet.module, vae.module, [tower.module for tower in towers])
    return {part.folder: part.sources for part in parts}


def renamed(path, sources, prefix=""):
    """The tensors of a file of the original layout as diffusers names and shapes them."""
    stored = load_file(path)
    return {prefix + name: source.to_model(stored[source.key]) for name, source in sources.items()}


def of_2022(key):
    """How diffusers named a VAE's attention then."""
    for now, then in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        key = key.replace(now, then)
    return key


def test_any_mix_of_layouts_gives_the_same_file(tmp_path, demos, tables):
    (inpaint, tune, base), expected = demos
    whole = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    for folder, sources in tables.items():
        whole |= renamed(tune, sources, f"{folder}.")
    whole = {of_2022(key) if key.startswith("vae.") else key: tensor for key, tensor in whole.items()}
    whole["text_encoder_2.text_model.embeddings.position_ids"] = torch.arange(77)
    bare = {key.removeprefix(UNET): tensor for key, tensor in load_file(base).items()}
    bare |= {"first_stage_model.decoder.conv_in.weight": torch.zeros(512, 4, 3, 3), "v_pred": torch.zeros(0)}
    inpaint_renamed = saved(tmp_path / "i.safetensors", renamed(inpaint, tables["unet"]), OWN_INPAINTING)
    tune_renamed = saved(tmp_path / "t.safetensors", whole, OWN)
    base_renamed = saved(tmp_path / "b.safetensors", renamed(base, tables["unet"], "unet."), OWN)
    base_bare = saved(tmp_path / "bare.safetensors", bare, OWN)
    mixes = (
        (inpaint_renamed, tune, base),
        (inpaint, tune_renamed, base_bare),
        (inpaint_renamed, tune_renamed, base_renamed),
    )
    wanted = load_file(expected)
    for number, paths in enumerate(mixes):
        result = load_file(merge_inpainting(*paths, tmp_path / f"{number}.safetensors").output)
        assert result.keys() == wanted.keys()
        assert [key for key in wanted if not same_bits(result[key], wanted[key])] == []


def folder_of(path, seed):
    for name, shapes in FOLDER.items():
        generator = torch.Generator().manual_seed(seed)
        tensors = {key: torch.randn(shape, generator=generator).half() for key, shape in shapes.items()}
        (path / name).parent.mkdir(parents=True)
        saved(path / f"{name}.safetensors", tensors)
    (path / "scheduler").mkdir()
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    return path


def test_diffusers_folders_merge_and_the_schedulers_word_becomes_a_marker(tmp_path):
    tune, base = folder_of(tmp_path / "tune", 1), folder_of(tmp_path / "base", 2)
    inpaint = load_file(base / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    inpaint["conv_in.weight"] = torch.randn(320, 9, 3, 3).half()
    file = saved(tmp_path / "inpaint.safetensors", inpaint)
    merged = merge_inpainting(file, tune, base, tmp_path / "result.safetensors")
    found = detect(merged.output)
    assert (found.channels, found.prediction, found.zsnr, found.missing) == (9, "v", True, ())
    result = load_file(merged.output)
    learned = load_file(tune / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    # the base's tensor is the inpainting model's, so the fine-tune's comes back but for two roundings to float32
    assert torch.allclose(result[CROSS].float(), learned[key].float(), rtol=0, atol=2**-20)
    assert "v_pred" in result
    assert "ztsnr" in result


SECOND = "text_encoder_2.text_model.encoder.layers.0.self_attn"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"text_encoder_2.vision_model.a.b.weight": (1,)}, r"text_encoder_2\.vision_model.*no text encoder"),
        ({"text_encoder_2.surprise": (1,)}, r"text_encoder_2\.surprise.*no text encoder"),
        ({"text_encoder_2.text_projection.weight": (1,)}, r"text_projection.*\(1,\), which is no matrix"),
        ({f"{SECOND}.{part}_proj.bias": (8,) for part in "qk"}, r"0\.attn\.in_proj_bias: its query"),
        ({f"{SECOND}.{part}_proj.bias": (ord(part),) for part in "qkv"}, r"in_proj_bias: .*not alike"),
    ],
)
def test_a_text_encoder_that_is_not_clips_is_refused_by_name(tmp_path, tensors, reason):
    checkpoint = open_checkpoint(hollow(tmp_path / "a.safetensors", tensors))
    with pytest.raises(WeightsError, match=reason):
        companion_tensors(checkpoint, sdxl())


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = three(tmp_path)[1]
    stored = unet_tensors(open_checkpoint(path), demo_architecture())
    with path.open("r+b") as file:
        file.truncate(stored[OUT].stretches[0].end - 1)
    with pytest.raises(WeightsError, match="shorter"):
        read_bytes(stored[OUT])
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        read_bytes(stored[OUT])
