"""Claim: each of the options that are on by default makes images faster, and changes them but for rounding.

On one device with random weights, for each option: an image with it and all others, in turns with all others alone;
with it alone, in turns with none. The seconds' medians give two gains, and the latents' relative RMS difference from
those without any option tells what it changes. Then all options against none, and on top of all the UNet's compilation
and each lossy option that the device has, which changes images, 8-bit weights compiled too. Options that need a GPU are
left out on a CPU. Run by gpu.sh, or:
python -m benchmarks.speed_options [--small]. Gains only count on a GPU.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, get_args

import torch

from benchmarks.gpu import Setup, compile_networks, parse_setup, save, time_in_turns
from benchmarks.random_weights import build_random_weights, copy_weights
from pipelines.pipeline import Pipeline
from pipelines.speed import PLAIN, Speed, SpeedChoices, choose_speed
from pipelines.unet.quantized_linear import QuantizedFormat, explain_missing_format
from pipelines.weights.load import Weights

NEEDS = {"kernels": "channels_last"}
"""Options that have no effect without another one."""
ALL = SpeedChoices("on", "on", "on", "on", "on")
"""Without the UNet's compilation, which takes the place of kernels."""
INTERVALS = (2, 3)
"""Of full steps, with `speed.step_cache`."""


@dataclass(frozen=True, slots=True)
class Way:
    """How images are drawn."""

    speed: Speed
    step_cache: int = 1


class Sweep:
    """Compares ways to run one model."""

    def __init__(self, setup: Setup, weights: Weights) -> None:
        self._setup, self._weights = setup, weights
        self._plain = self._draw(Way(PLAIN))

    def compare(self, slow: Way, fast: Way) -> dict[str, Any]:
        """Return how many times faster the second one is, and how its latents differ from those without options."""
        device, job = self._weights.device, self._setup.build_job()
        pipelines = {name: self._build(way) for name, way in (("slow", slow), ("fast", fast))}
        runs = {name: partial(pipeline.run, job) for name, pipeline in pipelines.items()}
        times = time_in_turns(device, runs, self._setup.rounds)
        return {
            "gain": round(times["slow"]["seconds"] / times["fast"]["seconds"], 3),
            "seconds": times["fast"]["seconds"],
            "first_seconds": times["fast"]["first_seconds"],
            "difference": self._measure_difference(fast),
        }

    def _build(self, way: Way) -> Pipeline:
        pipeline = Pipeline(copy_weights(self._weights, way.speed), step_cache=way.step_cache)
        compile_networks(self._setup, pipeline)
        return pipeline

    def _draw(self, way: Way) -> torch.Tensor:
        (latents,) = self._build(way).generate_latents(self._setup.build_job())
        return latents.float()

    def _measure_difference(self, way: Way) -> float:
        latents = self._draw(way)
        return float(f"{(latents - self._plain).norm() / self._plain.norm():.2g}")


def list_options(device: torch.device) -> list[str]:
    """Return the options that a device can be run with."""
    return [name for name, value in asdict(choose_speed(device, ALL)).items() if value is True]


def list_additions(every: Speed, device: torch.device) -> Mapping[str, Way]:
    """Return the ways to draw with one more option that a device can be run with."""
    formats = [name for name in get_args(QuantizedFormat) if explain_missing_format(name, device) is None]
    compiled = replace(every, compile_unet=True)
    return {
        "compile_unet": Way(compiled),
        **{f"weights {name}": Way(replace(every, weights=name)) for name in formats},
        **{f"weights {name}, compile_unet": Way(replace(compiled, weights=name)) for name in formats},
        **{f"step_cache {interval}": Way(every, interval) for interval in INTERVALS},
    }


def without(speed: Speed, option: str) -> Speed:
    """Return what is left without an option, and without those that need it."""
    dropped = {option, *(name for name, needed in NEEDS.items() if needed == option)}
    return replace(speed, **dict.fromkeys(dropped, False))


@torch.inference_mode()
def measure(setup: Setup, weights: Weights) -> Mapping[str, object]:
    """Compare each option, and all together."""
    options = list_options(weights.device)
    every = replace(PLAIN, **dict.fromkeys(options, True))
    sweep, rows = Sweep(setup, weights), dict[str, object]()
    for option in options:
        base = replace(PLAIN, **{NEEDS[option]: True}) if option in NEEDS else PLAIN
        rows[option] = {
            "on_top_of_all_others": sweep.compare(Way(without(every, option)), Way(every)),
            "alone": sweep.compare(Way(base), Way(replace(base, **{option: True}))),
        }
        print(option, rows[option], flush=True)
    added: dict[str, object] = {}
    for name, way in list_additions(every, weights.device).items():
        added[name] = sweep.compare(Way(every), way)
        print(name, added[name], flush=True)
    together = sweep.compare(Way(PLAIN), Way(every))
    return {"picture": setup.picture, "options": rows, "all": together, "on_top_of_all": added}


def main() -> None:
    """Measure, print, and write the JSON file."""
    setup, device, dtype, file = parse_setup(__doc__, "speed_options")
    save(measure(setup, build_random_weights(setup.architecture, device, dtype)), file)


if __name__ == "__main__":
    main()
