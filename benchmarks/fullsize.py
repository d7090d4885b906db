"""Claim: a full-size SDXL checkpoint is recognised at once, loaded without a copy, and drawn with.

Writes 6.94 GB of random weights in the real single-file layout to a temporary folder, then: sniffing; loading
alternating with safetensors' `load_file`, both followed by reading every byte of every tensor, since a memory map
costs nothing until it is read; anonymous memory; one 256 x 256 picture in two steps.
Run: python -m benchmarks.fullsize [--rounds 3]. Absolute seconds are of whatever CPU this was; ratios are the claim.
"""

import argparse
import gc
import json
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from safetensors.torch import load_file

from benchmarks.machine import machine
from pipelines.job import Guidance, Job, Prompts
from pipelines.pipeline import Pipeline
from pipelines.weights.architecture import sdxl
from pipelines.weights.detect import detect
from pipelines.weights.key_map import MappedKey
from pipelines.weights.load import Weights, load_weights, model_parts
from pipelines.weights.networks import build_networks

RESULTS = Path(__file__).parent / "results"


def stored_shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor of an SDXL single file and its shape, markers included."""
    architecture = sdxl()
    unet, vae, towers = build_networks(architecture)
    shapes: dict[str, tuple[int, ...]] = {"v_pred": (0,), "ztsnr": (0,)}
    for part in model_parts(architecture, unet.module, vae.module, [tower.module for tower in towers]):
        for name, tensor in part.module.state_dict().items():
            source = part.sources[name]
            shapes[source.key] = stored_shape(source, tuple(tensor.shape))
    return shapes


def stored_shape(source: MappedKey, shape: tuple[int, ...]) -> tuple[int, ...]:
    """How the file holds a tensor of ours."""
    if source.shaping == "conv":
        return (*shape, 1, 1)
    if source.shaping == "transposed":
        return shape[::-1]
    if source.shaping == "third":
        return (3 * shape[0], *shape[1:])
    return shape


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write random fp16 weights tensor by tensor, never holding more than one."""
    header, start = {}, 0
    for key, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, shape in shapes.items():
            file.write(values(key, shape, generator).numpy().tobytes())


def values(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Norm gains at one, biases at zero, the rest shrunk by its fan-in: activations stay finite."""
    if len(shape) < 2:
        gain = re.search(r"(norm|ln_|layer_norm|in_layers\.0|out_layers\.0|out\.0)[^.]*\.weight$", key)
        return torch.full(shape, 1.0 if gain else 0.0, dtype=torch.float16)
    fan_in = max(1, torch.Size(shape[1:]).numel())
    noise = torch.empty(shape, dtype=torch.float32).uniform_(-1.7, 1.7, generator=generator)
    return (noise * (0.5 * fan_in**-0.5)).half()


def anonymous() -> float:
    """This process's anonymous memory in GiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 2**20


def timed(work: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and what came of it."""
    gc.collect()
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def read_whole(tensors: Iterable[torch.Tensor]) -> int:
    """Read every byte; the sum keeps anybody from skipping it."""
    return sum(int(tensor.view(torch.int16).sum()) for tensor in tensors if tensor.numel())


def ours(path: Path) -> Weights:
    """Our loader, no dtype changed."""
    return load_weights(path, dtype=torch.float16, vae_dtype=torch.float16)


def parameters(weights: Weights) -> Iterator[torch.Tensor]:
    """All the weights of a loaded model."""
    for network in (weights.unet, weights.vae, *weights.text_encoders):
        yield from cast("Any", network).module.parameters()


def picture(path: Path) -> dict[str, object]:
    """One small picture on the CPU, in bfloat16."""
    pipeline = Pipeline(load_weights(path, dtype=torch.bfloat16))
    job = Job("m", Prompts("1girl"), 256, 256, 2, "k_euler", "native", Guidance(5.0), seeds=(1,))
    seconds, drawn = timed(lambda: pipeline.run(job))
    assert isinstance(drawn, list)
    return {
        "seconds": round(seconds, 1),
        "shape": list(drawn[0].shape),
        "spread": round(float(drawn[0].std()), 2),
    }


def measure(path: Path, rounds: int) -> dict[str, object]:
    """Everything about one file; the first round of each side only warms the page cache."""
    sniffing = [timed(lambda: detect(path))[0] for _ in range(5)]
    loads, reads, references, growth = [], [], [], []
    for _ in range(rounds + 1):
        before = anonymous()
        seconds, weights = timed(lambda: ours(path))
        assert isinstance(weights, Weights)
        loads.append(seconds)
        reads.append(seconds + timed(lambda weights=weights: read_whole(parameters(weights)))[0])
        growth.append(anonymous() - before)
        del weights
        references.append(timed(lambda: read_whole(load_file(path).values()))[0])
    loaded, reference = median(reads[1:]), median(references[1:])
    return {
        "sniff_seconds": round(median(sniffing), 4),
        "load_seconds_before_anything_is_read": round(median(loads[1:]), 2),
        "load_and_read_seconds": round(loaded, 2),
        "load_file_and_read_seconds": round(reference, 2),
        "load_ratio": round(loaded / reference, 3),
        "anonymous_gib_above_the_file": round(max(growth), 3),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fullsize.safetensors"
        shapes = stored_shapes()
        write(path, shapes)
        result: dict[str, object] = {"tensors": len(shapes), "gigabytes": round(path.stat().st_size / 1e9, 2)}
        result |= measure(path, rounds)
        result["picture_256_2_steps_cpu"] = picture(path)
    result["machine"] = machine()
    for key, value in result.items():
        print(f"{key:40} {value}")
    (RESULTS / "fullsize.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
