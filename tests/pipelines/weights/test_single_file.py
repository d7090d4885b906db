import json

import pytest
import torch
from checkpoint_files import CONV_IN, CONV_OUT, CROSS, FOLDER, are_identical, hollow, save, save_sources
from safetensors.torch import load_file

from demo.architecture import demo_architecture
from pipelines.errors import WeightsError
from pipelines.weights.architecture import METADATA_KEY, sdxl
from pipelines.weights.checkpoint import UNET_PREFIX, open_checkpoint
from pipelines.weights.detect import detect
from pipelines.weights.load import load_weights
from pipelines.weights.merge import merge_inpainting
from pipelines.weights.model_plan import model_parts
from pipelines.weights.networks import build_networks
from pipelines.weights.single_file import find_companion_tensors, find_unet_tensors, read_bytes

EMBEDDED = {METADATA_KEY: demo_architecture().to_json()}
EMBEDDED_INPAINTING = {METADATA_KEY: demo_architecture(9).to_json()}


@pytest.fixture(scope="module")
def demos(tmp_path_factory, demo_file):
    """An inpainting model, the demo as a fine-tune, and a base, all in the original layout; and the merged file."""
    folder, tune = tmp_path_factory.mktemp("demos"), load_file(demo_file)
    noise = torch.Generator().manual_seed(1)
    base = {
        key: tensor + torch.randn(tensor.shape, generator=noise).half() / 64
        for key, tensor in tune.items()
        if key.startswith(UNET_PREFIX)
    }
    extra = torch.randn(32, 5, 3, 3, generator=noise).half()
    inpaint = base | {CONV_IN: torch.cat([base[CONV_IN] + 1, extra], 1)}
    paths = (
        save(folder / "inpaint.safetensors", inpaint, EMBEDDED_INPAINTING),
        demo_file,
        save(folder / "base.safetensors", base, EMBEDDED),
    )
    return paths, merge_inpainting(*paths, folder / "result.safetensors").output


def test_the_result_loads_as_the_inpainting_unet_of_the_fine_tune(demos, demo_file):
    assert load_weights(demo_file, inpainting=demos[1]).inpainting is not None
    assert load_weights(demos[1]).architecture == demo_architecture(9)


@pytest.fixture(scope="module")
def tables():
    """The key table of each of the demo's networks, by diffusers' folders."""
    unet, vae, encoders = build_networks(demo_architecture())
    parts = model_parts(
        demo_architecture(), unet.module, vae.module, [encoder.module for encoder in encoders]
    )
    return {part.folder: part.keys for part in parts}


def read_as_diffusers(path, keys, prefix=""):
    """Read a file of the original layout into diffusers' names and shapes."""
    stored = load_file(path)
    return {prefix + name: mapped.to_model(stored[mapped.key]) for name, mapped in keys.items()}


def rename_attention(key):
    """Return a key with the names that diffusers gave a VAE's attention in 2022."""
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        key = key.replace(new, old)
    return key


def test_any_mix_of_layouts_gives_the_same_file(tmp_path, demos, tables):
    (inpaint, tune, base), expected = demos
    full = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    for folder, keys in tables.items():
        full |= read_as_diffusers(tune, keys, f"{folder}.")
    full = {rename_attention(key) if key.startswith("vae.") else key: tensor for key, tensor in full.items()}
    full["text_encoder_2.text_model.embeddings.position_ids"] = torch.arange(77)
    bare = {key.removeprefix(UNET_PREFIX): tensor for key, tensor in load_file(base).items()}
    bare |= {"first_stage_model.decoder.conv_in.weight": torch.zeros(512, 4, 3, 3), "v_pred": torch.zeros(0)}
    inpaint_diffusers = save(
        tmp_path / "i.safetensors", read_as_diffusers(inpaint, tables["unet"]), EMBEDDED_INPAINTING
    )
    tune_diffusers = save(tmp_path / "t.safetensors", full, EMBEDDED)
    base_diffusers = save(
        tmp_path / "b.safetensors", read_as_diffusers(base, tables["unet"], "unet."), EMBEDDED
    )
    base_bare = save(tmp_path / "bare.safetensors", bare, EMBEDDED)
    mixes = (
        (inpaint_diffusers, tune, base),
        (inpaint, tune_diffusers, base_bare),
        (inpaint_diffusers, tune_diffusers, base_diffusers),
    )
    merged = load_file(expected)
    for number, paths in enumerate(mixes):
        result = load_file(merge_inpainting(*paths, tmp_path / f"{number}.safetensors").output)
        assert result.keys() == merged.keys()
        assert [key for key in merged if not are_identical(result[key], merged[key])] == []


def save_folder(path, seed):
    """Write random values for the tensors by which a diffusers folder is detected, with v-prediction."""
    for name, shapes in FOLDER.items():
        generator = torch.Generator().manual_seed(seed)
        tensors = {key: torch.randn(shape, generator=generator).half() for key, shape in shapes.items()}
        (path / name).parent.mkdir(parents=True)
        save(path / f"{name}.safetensors", tensors)
    (path / "scheduler").mkdir()
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return path


def test_diffusers_folders_merge_and_their_prediction_becomes_markers(tmp_path):
    tune, base = save_folder(tmp_path / "tune", 1), save_folder(tmp_path / "base", 2)
    inpaint = load_file(base / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    inpaint["conv_in.weight"] = torch.randn(320, 9, 3, 3).half()
    file = save(tmp_path / "inpaint.safetensors", inpaint)
    merged = merge_inpainting(file, tune, base, tmp_path / "result.safetensors")
    detection = detect(merged.output)
    assert (detection.channels, detection.prediction, detection.zsnr) == (9, "v", True)
    assert detection.missing == ()
    result = load_file(merged.output)
    expected = load_file(tune / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    # the base's tensor is the inpainting model's, so the fine-tune's results, up to two roundings to float32
    assert torch.allclose(result[CROSS].float(), expected[key].float(), rtol=0, atol=2**-20)
    assert "v_pred" in result
    assert "ztsnr" in result


SECOND_ENCODER = "text_encoder_2.text_model.encoder.layers.0.self_attn"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"text_encoder_2.text_model.a.b.weight": (1,)}, r"text_encoder_2\.text_model.*no text encoder"),
        ({"text_encoder_2.surprise": (1,)}, r"text_encoder_2\.surprise.*no text encoder"),
        ({"text_encoder_2.text_projection.weight": (1,)}, r"text_projection.*\(1,\), which is no matrix"),
        ({f"{SECOND_ENCODER}.{part}_proj.bias": (8,) for part in "qk"}, r"0\.attn\.in_proj_bias: its query"),
        (
            {f"{SECOND_ENCODER}.{part}_proj.bias": (ord(part),) for part in "qkv"},
            r"in_proj_bias: .*not alike",
        ),
    ],
)
def test_a_text_encoder_other_than_clip_is_refused_by_name(tmp_path, tensors, reason):
    checkpoint = open_checkpoint(hollow(tmp_path / "a.safetensors", tensors))
    with pytest.raises(WeightsError, match=reason):
        find_companion_tensors(checkpoint, sdxl())


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path):
    path = save_sources(tmp_path)[1]
    stored = find_unet_tensors(open_checkpoint(path), demo_architecture())
    with path.open("r+b") as file:
        file.truncate(stored[CONV_OUT].ranges[0].end - 1)
    with pytest.raises(WeightsError, match="shorter"):
        read_bytes(stored[CONV_OUT])
    path.unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        read_bytes(stored[CONV_OUT])
