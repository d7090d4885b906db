"""Claim: a full-size SDXL checkpoint is detected in milliseconds, loaded without a copy, and generates an image.

Writes 6.94 GB of random weights in the real single-file layout to a temporary folder. Then measures detection; loading
alternating with safetensors' `load_file`, both followed by reading every byte of every tensor, since a memory map
costs nothing until it is read; anonymous memory; one 256 x 256 image in two steps.
Run: python -m benchmarks.fullsize [--rounds 3]. Absolute seconds depend on the CPU; the ratios are the claim.
With --write FILE it only writes the checkpoint, which other benchmarks read.
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
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.types import Output
from pipelines.weights.architecture import sdxl
from pipelines.weights.detect import detect
from pipelines.weights.key_map import MappedKey
from pipelines.weights.load import Weights, load_weights
from pipelines.weights.model_plan import model_parts
from pipelines.weights.networks import build_networks

RESULTS = Path(__file__).parent / "results"


def stored_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of an SDXL single file, markers included."""
    architecture = sdxl()
    unet, vae, encoders = build_networks(architecture)
    shapes: dict[str, tuple[int, ...]] = {"v_pred": (0,), "ztsnr": (0,)}
    for part in model_parts(architecture, unet.module, vae.module, [encoder.module for encoder in encoders]):
        for name, tensor in part.module.state_dict().items():
            mapped = part.keys[name]
            shapes[mapped.key] = stored_shape(mapped, tuple(tensor.shape))
    return shapes


def stored_shape(mapped: MappedKey, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in the file of a tensor with `shape` in the model."""
    if mapped.storage == "conv":
        return (*shape, 1, 1)
    if mapped.storage == "transposed":
        return shape[::-1]
    if mapped.storage == "third":
        return (3 * shape[0], *shape[1:])
    return shape


def write(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Write random float16 weights, with one tensor in memory at a time."""
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
            file.write(make_values(key, shape, generator).numpy().tobytes())


def make_values(key: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return ones for norm gains, zeros for biases, else noise scaled by the fan-in: activations stay finite."""
    if len(shape) < 2:
        gain = re.search(r"(norm|ln_|layer_norm|in_layers\.0|out_layers\.0|out\.0)[^.]*\.weight$", key)
        return torch.full(shape, 1.0 if gain else 0.0, dtype=torch.float16)
    fan_in = max(1, torch.Size(shape[1:]).numel())
    noise = torch.empty(shape, dtype=torch.float32).uniform_(-1.7, 1.7, generator=generator)
    return (noise * (0.5 * fan_in**-0.5)).half()


def anonymous_memory() -> float:
    """Return this process's anonymous memory in GiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 2**20


def measure_time(work: Callable[[], object]) -> tuple[float, object]:
    """Call `work`; return the seconds it took and its result."""
    gc.collect()
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def read_all(tensors: Iterable[torch.Tensor]) -> int:
    """Read every byte by computing a sum, which cannot be skipped."""
    return sum(int(tensor.view(torch.int16).sum()) for tensor in tensors if tensor.numel())


def load_unchanged(path: Path) -> Weights:
    """Load with our loader without a change of dtype."""
    return load_weights(path, dtype=torch.float16, vae_dtype=torch.float16)


def parameters(weights: Weights) -> Iterator[torch.Tensor]:
    """Yield all parameters of a loaded model."""
    for network in (weights.unet, weights.vae, *weights.text_encoders):
        yield from cast("Any", network).module.parameters()


def measure_image(path: Path) -> dict[str, object]:
    """Generate one small image on the CPU in bfloat16, and measure it."""
    pipeline = Pipeline(load_weights(path, dtype=torch.bfloat16))
    passes = (Pass(256, 256, seeds=(1,)),)
    job = Job("m", Prompts("1girl"), 2, "k_euler", "native", Guidance(5.0), passes)
    seconds, output = measure_time(lambda: pipeline.run(job))
    assert isinstance(output, Output)
    (image,) = output.images
    return {
        "seconds": round(seconds, 1),
        "shape": list(image.shape),
        "spread": round(float(image.std()), 2),
    }


def measure(path: Path, rounds: int) -> dict[str, object]:
    """Measure everything about one file; the first round of each loader only warms the page cache."""
    detection = [measure_time(lambda: detect(path))[0] for _ in range(5)]
    loads, reads, references, growth = [], [], [], []
    for _ in range(rounds + 1):
        before = anonymous_memory()
        seconds, weights = measure_time(lambda: load_unchanged(path))
        assert isinstance(weights, Weights)
        loads.append(seconds)
        reads.append(seconds + measure_time(lambda weights=weights: read_all(parameters(weights)))[0])
        growth.append(anonymous_memory() - before)
        del weights
        references.append(measure_time(lambda: read_all(load_file(path).values()))[0])
    loaded, reference = median(reads[1:]), median(references[1:])
    return {
        "sniff_seconds": round(median(detection), 4),
        "load_seconds_before_anything_is_read": round(median(loads[1:]), 2),
        "load_and_read_seconds": round(loaded, 2),
        "load_file_and_read_seconds": round(reference, 2),
        "load_ratio": round(loaded / reference, 3),
        "anonymous_gib_above_the_file": round(max(growth), 3),
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, help="only write the checkpoint to this file")
    options = parser.parse_args()
    rounds = options.rounds
    if options.write is not None:
        write(options.write, stored_shapes())
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fullsize.safetensors"
        shapes = stored_shapes()
        write(path, shapes)
        result: dict[str, object] = {"tensors": len(shapes), "gigabytes": round(path.stat().st_size / 1e9, 2)}
        result |= measure(path, rounds)
        result["picture_256_2_steps_cpu"] = measure_image(path)
    result["machine"] = machine()
    for key, value in result.items():
        print(f"{key:40} {value}")
    (RESULTS / "fullsize.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
