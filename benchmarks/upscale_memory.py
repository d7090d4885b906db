"""Claim: enlarging 832 x 1216 four times takes less than 2 GB on a CPU, and the tiles do not show.

A network in the shape of Real-ESRGAN's anime model (64 features, 6 blocks), in float32 and with weights at random,
enlarges noise in a process of its own; told is how far its memory rose above what it held with the model loaded.
The difference of tiles and the whole is measured on a strip long enough for two tiles, with PyTorch's initial weights
and with three times those, the output brought to the range of pictures. Weights at random see less far than genuine
ones: the margin was chosen by the latter (upscale/upscaler.py), which --weights puts in the place of the former.
Run: python -m benchmarks.upscale_memory [--weights FILE]. Seconds are of one core of whatever CPU this was.
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
"""Height and width of what is enlarged both in two tiles and whole."""


def at_random(gain: float) -> RrdbNet:
    """PyTorch's initial weights times a gain; each colour comes out with a mean of 0.5 and a deviation of 0.2."""
    torch.manual_seed(0)
    network = RrdbNet(ANIME).eval().requires_grad_(False)
    for name, weight in network.named_parameters():
        if name.endswith("weight"):
            weight *= gain
    last, given = network["conv_last"], torch.rand(1, 3, 48, 48)
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    last.weight *= (0.2 / network(given).std((0, 2, 3)))[:, None, None, None]
    last.bias += 0.5 - network(given).mean((0, 2, 3))
    return network


def noise(height: int, width: int) -> Pixels:
    """The hardest of pictures."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def resident(field: str) -> float:
    """This process's memory in MiB: VmRSS now, VmHWM at its highest."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+)", status)[0]) / 2**10


def enlarging(path: Path) -> dict[str, float]:
    """Memory and time of one large picture; to be run in a fresh process."""
    torch.set_num_threads(1)
    upscaler = load_upscaler(path)
    upscaler.upscale(noise(16, 16))  # what torch sets up once belongs to no picture
    start = process_time()
    upscaler.upscale(noise(64, 64))
    little, before, start = process_time() - start, resident("VmRSS"), process_time()
    upscaler.upscale(noise(HEIGHT, WIDTH))
    return {
        "mib_with_the_model_loaded": round(before),
        "peak_mib_above_that": round(resident("VmHWM") - before),
        "cpu_seconds": round(process_time() - start, 1),
        "cpu_seconds_of_64_x_64": round(little, 2),
    }


def differences(network: RrdbNet) -> dict[str, float]:
    """How far tiles and the whole are apart, in bytes, and how far the picture's values spread."""
    pixels = noise(*STRIP)
    whole = Upscaler(network, max(STRIP)).upscale(pixels).astype(int)
    apart = np.abs(Upscaler(network).upscale(pixels) - whole)
    return {
        "largest": int(apart.max()),
        "share_that_differs": round(float((apart > 0).mean()), 6),
        "deviation_of_the_picture": round(float(whole.std()), 1),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="an ESRGAN-family upscaler to measure instead")
    given: Path | None = parser.parse_args().weights
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        path = given or Path(folder) / "random.safetensors"
        if given is None:
            networks = {f"gain {gain:g}": at_random(gain) for gain in (1, 3)}
            save_file(networks["gain 1"].state_dict(), path)
        else:
            networks = {given.name: load_rrdbnet(given, torch.device("cpu"), torch.float32)}
        result: dict[str, object] = {
            "weights": "random" if given is None else given.name,
            "picture": f"{WIDTH} x {HEIGHT}",
            "margin": MARGIN,
            "tiles_against_whole": {name: differences(network) for name, network in networks.items()},
        }
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            result["enlarging"] = pool.submit(enlarging, path).result()
    result["machine"] = machine()
    for key, value in result.items():
        print(f"{key:20} {value}")
    (RESULTS / "upscale_memory.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
