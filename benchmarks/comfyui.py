"""Claim: sampling takes no longer than ComfyUI's with the same weights.

ComfyUI's code is read from a folder that the caller has, and is no part of this project. Both sides get the same
prompt embeddings, noise, sigmas, scale and size, evaluate prompt and negative prompt in one pass, and return clean
latents, which are compared first. They alternate, in one process, as in benchmarks.loop, whose networks these are.
Run: python -m benchmarks.comfyui FOLDER [--rounds 20]; ComfyUI needs einops, psutil, scipy and torchsde.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, cast
from unittest.mock import MagicMock

import torch
from torch import Tensor

from benchmarks.diffusers_pipeline import encode_prompts
from benchmarks.loop import (
    RESULTS,
    SIZES,
    Size,
    build_job,
    build_own_run,
    describe,
    describe_ratio,
    time_warm_rounds,
)
from benchmarks.machine import machine
from benchmarks.random_weights import build_random_weights
from pipelines.pipeline import Pipeline
from pipelines.unet.graphs import measure_difference
from pipelines.unet.shape import UNetShape, read_shape
from pipelines.weights.checkpoint import UNET_PREFIX
from pipelines.weights.key_map import map_unet_keys, to_stored
from pipelines.weights.load import Weights

UNUSED = "torchvision", "torchaudio"
"""What ComfyUI imports for models of other kinds."""
TOLERANCE = 1e-3
"""Relative difference of latents: ComfyUI begins at sigma 4518 in place of pure noise."""


def import_comfyui(folder: Path) -> None:
    """Make ComfyUI's modules importable, for the CPU and with torch's attention, which it takes on a GPU."""
    for name in UNUSED:
        sys.modules.setdefault(name, MagicMock(__spec__=ModuleSpec(name, None)))
    sys.path.append(str(folder))
    sys.argv = sys.argv[:1]  # which ComfyUI reads at import
    options = cast("Any", import_module("comfy.cli_args")).args
    options.cpu = options.use_pytorch_cross_attention = True


def build_operations(groups: int) -> ModuleType:
    """Return ComfyUI's layers, with the number of groups that these networks normalize in."""
    layers = cast("Any", import_module("comfy.ops")).disable_weight_init

    class GroupNorm(layers.GroupNorm):
        def __init__(self, num_groups: int, *arguments: object, **options: object) -> None:
            super().__init__(groups, *arguments, **options)

    return cast("ModuleType", type("Operations", (layers,), {"GroupNorm": GroupNorm}))


def build_config(shape: UNetShape, dtype: torch.dtype) -> dict[str, object]:
    """Return a UNet's shape in ComfyUI's terms."""
    widths = [level.width for level in shape.levels]
    down = [level.depth for level in shape.levels for _ in range(shape.resnets)]
    up = [level.depth for level in shape.levels for _ in range(shape.resnets + 1)]
    return {
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "num_classes": "sequential",
        "in_channels": shape.channels,
        "out_channels": 4,
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [shape.resnets] * len(widths),
        "transformer_depth": down,
        "transformer_depth_output": up,
        "transformer_depth_middle": shape.middle.depth,
        "context_dim": shape.context,
        "use_linear_in_transformer": shape.linear,
        "adm_in_channels": shape.added,
        "use_temporal_attention": False,
        "dtype": dtype,
    }


def build_model(weights: Weights) -> Any:
    """Return ComfyUI's model with the same tensors."""
    shape = read_shape(weights.architecture.unet)
    base, models = import_module("comfy.model_base"), import_module("comfy.supported_models")
    config = cast("Any", models).SDXL(build_config(shape, weights.dtype))
    head = shape.middle.width // shape.middle.heads
    config.unet_config["num_head_channels"] = head  # which its constructor sets to SDXL's 64
    config.custom_operations = build_operations(shape.groups)
    config.sampling_settings["zsnr"] = True
    model = cast("Any", base).SDXL(config, model_type=cast("Any", base).ModelType.V_PREDICTION)
    model.embedder = type(model.embedder)(shape.size_width)
    state = cast("Any", weights.unet).module.state_dict()
    stored = to_stored(map_unet_keys(state, weights.architecture.unet), state)
    keys = {name.removeprefix(UNET_PREFIX): tensor for name, tensor in stored.items()}
    model.diffusion_model.load_state_dict(keys)
    patcher = cast("Any", import_module("comfy.model_patcher")).ModelPatcher
    return patcher(model.eval().requires_grad_(False), weights.device, weights.device)


def build_comfyui_run(weights: Weights, size: Size, sigmas: Sequence[float]) -> Callable[[], Tensor]:
    """Return a function that generates an image's latents with ComfyUI's sampler for Euler steps."""
    model, noise = build_model(weights), make_noise(size)
    finite = torch.tensor(sigmas).clamp(max=float(model.model.model_sampling.sigma_max))
    ids = {"width": size.side, "height": size.side}
    prompt, negative = (
        [[text.context[None], {"pooled_output": cast("Tensor", text.pooled)[None], **ids}]]
        for text in encode_prompts(weights)
    )
    sample = cast("Any", import_module("comfy.sample")).sample
    arguments = model, noise, size.steps, 5.0, "euler", "normal", prompt, negative, torch.zeros_like(noise)
    scale = model.model.latent_format.scale_factor
    return lambda: sample(*arguments, sigmas=finite, disable_pbar=True) * scale


def measure(size: Size, rounds: int) -> dict[str, object]:
    """Return the ratio of one network."""
    weights = build_random_weights(size.architecture, torch.device("cpu"), torch.float32)
    pipeline, job = Pipeline(weights), build_job(size)
    comfyui = build_comfyui_run(weights, size, pipeline.begin_pass(job).plan.sigmas)
    own = build_own_run(pipeline, job)
    difference = measure_difference(comfyui()[0], own()[0])
    assert difference < TOLERANCE, f"the latents differ by {difference:.3g}"
    seconds = time_warm_rounds(weights, {"naiad": own, "ComfyUI": comfyui}, rounds)
    return {
        **describe(size, weights),
        "relative_difference": difference,
        "ratio_to_comfyui": describe_ratio(seconds["naiad"], seconds["ComfyUI"]),
    }


def make_noise(size: Size) -> Tensor:
    """Return the noise of the job's seed."""
    side = size.side // 8
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1))


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    import_comfyui(arguments.folder)
    networks = {name: measure(size, arguments.rounds) for name, size in SIZES.items()}
    version = cast("Any", import_module("comfyui_version")).__version__
    result = {"comfyui": version, "rounds": arguments.rounds, "networks": networks, "machine": machine()}
    print(json.dumps(result, indent=2))
    (RESULTS / "comfyui.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
