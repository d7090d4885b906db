from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file, save_file
from sd15_files import write_small_sd15
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from demo.architecture import demo_architecture
from demo.checkpoint import build_demo
from pipelines.errors import UnusableSetting, WeightsError
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.weights.architecture import METADATA_KEY, sd15, sdxl
from pipelines.weights.header import read_header
from pipelines.weights.key_map import map_text_keys, map_unet_keys, map_vae_keys
from pipelines.weights.load import load_weights as load_weights
from pipelines.weights.model_plan import model_parts
from pipelines.weights.networks import build_networks, set_attention

load: Any = load_weights  # tests look at the modules inside, which the protocols do not promise
clip_text_config: Any = CLIPTextConfig


@pytest.fixture(scope="module")
def stored(demo_file):
    return load_file(demo_file)


def save(path, tensors, demo_file, **metadata):
    save_file(tensors, path, dict(read_header(demo_file).metadata) | metadata)
    return path


def assert_equal(tensors, expected):
    assert set(tensors) == set(expected)
    for key, tensor in tensors.items():
        assert torch.equal(tensor, expected[key].to(tensor.dtype)), key


def test_the_key_tables_agree_with_diffusers_conversion(stored, demo):
    architecture = demo_architecture()
    unet = convert_ldm_unet_checkpoint(dict(stored), dict(architecture.unet) | {"class_embed_type": None})
    assert_equal(demo.weights.unet.module.state_dict(), unet)
    vae = convert_ldm_vae_checkpoint(dict(stored), dict(architecture.vae))
    assert_equal(demo.weights.vae.module.state_dict(), vae)
    encoder = CLIPTextModelWithProjection(clip_text_config(**architecture.text_encoders[1].config))
    text = convert_open_clip_checkpoint(encoder, dict(stored), prefix="conditioner.embedders.1.model.")
    assert_equal(demo.weights.text_encoders[1].module.state_dict(), text)


@pytest.mark.parametrize(
    ("architecture", "counts"), [(sdxl(), (1680, 248, 196, 389)), (sd15(), (686, 248, 196))]
)
def test_full_size_tables_map_to_each_tensor_of_a_real_file_once(architecture, counts):
    unet, vae, encoders = build_networks(architecture)
    parts = [
        map_unet_keys(unet.module.state_dict(), architecture.unet),
        map_vae_keys(vae.module.state_dict(), architecture.vae),
        *(map_text_keys(encoder.module.state_dict(), architecture, k) for k, encoder in enumerate(encoders)),
    ]
    for part, count in zip(parts, counts, strict=True):
        assert len({mapped.key for mapped in part.values()}) == count
        assert not any(
            word in mapped.key
            for mapped in part.values()
            for word in ("resnets", "attentions", "blocks.0.0.0")
        )


def test_known_extra_tensors_are_ignored_and_others_refused(tmp_path, stored, demo_file):
    ignored = {"model_ema.decay": torch.zeros(1), "conditioner.embedders.1.model.logit_scale": torch.zeros(1)}
    assert load(save(tmp_path / "a.safetensors", stored | ignored, demo_file)).detection.prediction == "v"
    extra = {"model.diffusion_model.surprise": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"1 unexpected \(model.diffusion_model.surprise\)"):
        load(save(tmp_path / "b.safetensors", stored | extra, demo_file))


def test_missing_weights_are_counted_and_named(tmp_path, stored, demo_file):
    absent = [key for key in stored if "middle_block.0." in key]
    part = {key: tensor for key, tensor in stored.items() if key not in absent}
    with pytest.raises(WeightsError, match=rf"{len(absent)} missing \(model.diffusion_model.middle_block.0"):
        load(save(tmp_path / "a.safetensors", part, demo_file))


def test_a_wrong_shape_is_named(tmp_path, stored, demo_file):
    wrong = {"first_stage_model.decoder.conv_out.bias": torch.zeros(5)}
    with pytest.raises(WeightsError, match=r"decoder.conv_out.bias has the shape \(5,\), not \(3,\)"):
        load(save(tmp_path / "a.safetensors", stored | wrong, demo_file))


def test_a_checkpoint_without_vae_or_text_encoder_needs_a_replacement(tmp_path, stored, demo_file):
    bare = {key: tensor for key, tensor in stored.items() if not key.startswith("first_stage_model.")}
    path = save(tmp_path / "bare.safetensors", bare, demo_file)
    with pytest.raises(WeightsError, match="it contains no vae"):
        load(path)
    vae = {
        key.removeprefix("first_stage_model."): tensor
        for key, tensor in stored.items()
        if "first_stage" in key
    }
    save_file(vae, tmp_path / "vae.safetensors")
    weights = load(path, vae=tmp_path / "vae.safetensors")
    assert_equal(weights.vae.module.state_dict(), load(demo_file).vae.module.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_mixture_of_dtypes_loads_into_one(tmp_path, stored, demo_file, dtype):
    mixed = {
        key: tensor.to(dtype) if "diffusion_model" in key or "embedders.1" in key else tensor
        for key, tensor in stored.items()
    }
    weights = load(save(tmp_path / "a.safetensors", mixed, demo_file), dtype=torch.float32)
    assert {tensor.dtype for tensor in weights.unet.module.state_dict().values()} == {torch.float32}
    assert {tensor.dtype for tensor in weights.text_encoders[1].module.state_dict().values()} == {
        torch.float32
    }


def test_every_tensor_has_memory_and_needs_no_gradient(demo):
    for module in (
        demo.weights.unet.module,
        demo.weights.vae.module,
        *(encoder.module for encoder in demo.weights.text_encoders),
    ):
        assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert not module.training


def save_folder(path, demo, tag=""):
    """Write the demo model as a diffusers folder."""
    modules = {
        "unet/diffusion_pytorch_model": demo.weights.unet.module,
        "vae/diffusion_pytorch_model": demo.weights.vae.module,
        "text_encoder/model": demo.weights.text_encoders[0].module,
        "text_encoder_2/model": demo.weights.text_encoders[1].module,
    }
    for name, module in modules.items():
        (path / name).parent.mkdir(parents=True)
        tensors = {key: tensor.contiguous() for key, tensor in module.state_dict().items()}
        save_file(tensors, path / f"{name}{tag}.safetensors")
    return path


@pytest.mark.parametrize("tag", ["", ".fp16"])
def test_a_folder_fills_the_same_networks_as_the_single_file(tmp_path, demo, tag):
    from pipelines.weights.checkpoint import open_checkpoint
    from pipelines.weights.model_plan import plan_parts

    path = save_folder(tmp_path / "model", demo, tag)
    unet, vae, encoders = build_networks(demo_architecture())
    parts = model_parts(
        demo_architecture(), unet.module, vae.module, [encoder.module for encoder in encoders]
    )
    for planned in plan_parts(open_checkpoint(path), parts, {}):
        planned.fill(torch.device("cpu"), torch.float32)
    assert_equal(unet.module.state_dict(), demo.weights.unet.module.state_dict())
    assert_equal(encoders[1].module.state_dict(), demo.weights.text_encoders[1].module.state_dict())


def test_the_leaked_names_of_the_text_encoder_are_loaded(tmp_path):
    from pipelines.weights.checkpoint import open_checkpoint
    from pipelines.weights.model_plan import model_parts, plan_parts
    from pipelines.weights.networks import ClipTextEncoder

    architecture = sd15()
    config = demo_architecture().text_encoders[0]
    leaked = {
        "cond_stage_model.transformer." + name.removeprefix("text_model."): torch.zeros(tensor.shape)
        for name, tensor in ClipTextEncoder(config).module.state_dict().items()
    }
    save_file(leaked, tmp_path / "a.safetensors")
    module = ClipTextEncoder(config).module
    part = model_parts(architecture, torch.nn.Module(), None, [module])[1]
    (planned,) = plan_parts(open_checkpoint(tmp_path / "a.safetensors"), [part], {})
    planned.fill(torch.device("cpu"), torch.float32)
    assert not any(tensor.is_meta for tensor in module.state_dict().values())


def test_the_untrained_demo_is_written_identically_each_time(tmp_path):
    files = [build_demo(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_demo_is_small_and_has_metadata_and_markers(demo_file):
    assert sum(file.stat().st_size for file in demo_file.parent.glob("*.safetensors")) <= 40e6
    header = read_header(demo_file)
    assert header.metadata[METADATA_KEY]
    assert header.tensors["v_pred"].shape == header.tensors["ztsnr"].shape == (0,)


def test_an_attention_backend_that_is_not_installed_is_named(demo):
    try:
        import xformers  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(UnusableSetting, match="xformers"):
            set_attention(demo.weights.unet, "xformers")


def test_stable_diffusion_1_generates_from_a_file_with_the_names_of_2022(tmp_path):
    path = write_small_sd15(tmp_path / "nai-v1.safetensors")
    pipeline = Pipeline(load(path))
    assert (pipeline.weights.detection.family, pipeline.weights.detection.prediction) == ("sd15", "eps")
    passes = (Pass(64, 96, seeds=(1,)),)
    job = Job("m", Prompts("1girl"), 3, "k_euler_ancestral", "karras", Guidance(7.0), passes)
    (image,) = pipeline.run(job).images
    assert image.shape == (96, 64, 3)
    assert image.std() > 1
    (other,) = Pipeline(load(path, clip_skip=1)).run(job).images
    (same,) = Pipeline(load(path, clip_skip=2)).run(job).images
    assert np.array_equal(image, same)
    assert not np.array_equal(image, other)
    with pytest.raises(WeightsError, match=r"clip_skip = 12 is set; 1 \(the last layer\) to 3 are allowed"):
        load(path, clip_skip=12)
