"""Claim: upscaling 832 x 1216 by 4 takes less than 2 GB on a CPU, and the tiles do not show.

A network of the size of Real-ESRGAN's anime model (64 features, 6 blocks), in float32 with random weights, upscales
noise in a fresh process. The memory reported is the rise above that with the model loaded. Tiled and untiled results
are compared on a strip long enough for two tiles, with PyTorch's initial weights and with three times those, the output
scaled to the range of images. Random weights depend on less context than real ones. The margin was chosen with real
ones (pipelines/upscale/upscaler.py), which --weights measures.
Run: python -m benchmarks.upscale_memory [--weights FILE]. Seconds are of one core of the CPU in the result.
"""

import argparse
import json
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.machine import machine
from pipelines.types import Pixels
from pipelines.upscale.esrgan import load_rrdbnet
from pipelines.upscale.rrdbnet import RrdbConfig, RrdbNet
from pipelines.upscale.upscaler import MARGIN, Upscaler, load_upscaler

RESULTS = Path(__file__).parent / "results"
ANIME = RrdbConfig(features=64, growth=32, blocks=6, doublings=2, fold=1)
WIDTH, HEIGHT = 832, 1216
STRIP = (96, 480)
"""Height and width of the image that is upscaled both in two tiles and untiled."""


def make_random_network(gain: float) -> RrdbNet:
    """Return PyTorch's initial weights times a gain; the output has mean 0.5 and deviation 0.2 in each color."""
    torch.manual_seed(0)
    network = RrdbNet(ANIME).eval().requires_grad_(False)
    for name, weight in network.named_parameters():
        if name.endswith("weight"):
            weight *= gain
    last, images = network["conv_last"], torch.rand(1, 3, 48, 48)
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.weight *= (0.2 / network(images).std((0, 2, 3)))[:, None, None, None]
    last.bias += 0.5 - network(images).mean((0, 2, 3))
    return network


def make_noise(height: int, width: int) -> Pixels:
    """Return uniform noise, the hardest image for tiling."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def read_memory(field: str) -> float:
    """Return this process's memory in MiB: VmRSS is the current, VmHWM the peak value."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+)", status)[0]) / 2**10


def measure_upscaling(path: Path) -> dict[str, float]:
    """Return memory and time of upscaling one large image. Run it in a fresh process."""
    torch.set_num_threads(1)
    upscaler = load_upscaler(path)
    upscaler.upscale(make_noise(16, 16))  # so that torch's one-time setup is not counted
    start = process_time()
    upscaler.upscale(make_noise(64, 64))
    small_seconds, before, start = process_time() - start, read_memory("VmRSS"), process_time()
    upscaler.upscale(make_noise(HEIGHT, WIDTH))
    return {
        "mib_with_the_model_loaded": round(before),
        "peak_mib_above_that": round(read_memory("VmHWM") - before),
        "cpu_seconds": round(process_time() - start, 1),
        "cpu_seconds_of_64_x_64": round(small_seconds, 2),
    }


def compare_tiled(network: RrdbNet) -> dict[str, float]:
    """Compare the tiled with the untiled result, in 255ths; return the deviation of the image too."""
    pixels = make_noise(*STRIP)
    untiled = Upscaler(network, max(STRIP)).upscale(pixels).astype(int)
    difference = np.abs(Upscaler(network).upscale(pixels) - untiled)
    return {
        "largest": int(difference.max()),
        "share_that_differs": round(float((difference > 0).mean()), 6),
        "deviation_of_the_picture": round(float(untiled.std()), 1),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights", type=Path, help="an ESRGAN-family upscaler to measure instead of random weights"
    )
    weights: Path | None = parser.parse_args().weights
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        path = weights or Path(folder) / "random.safetensors"
        if weights is None:
            networks = {f"gain {gain:g}": make_random_network(gain) for gain in (1, 3)}
            save_file(networks["gain 1"].state_dict(), path)
        else:
            networks = {weights.name: load_rrdbnet(weights, torch.device("cpu"), torch.float32)}
        result: dict[str, object] = {
            "weights": "random" if weights is None else weights.name,
            "picture": f"{WIDTH} x {HEIGHT}",
            "margin": MARGIN,
            "tiles_against_whole": {name: compare_tiled(network) for name, network in networks.items()},
        }
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            result["enlarging"] = pool.submit(measure_upscaling, path).result()
    result["machine"] = machine()
    for key, value in result.items():
        print(f"{key:20} {value}")
    (RESULTS / "upscale_memory.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
