"""Claim: each of the options that are on by default makes images faster, and changes them but for rounding.

On one device with random weights, for each option: an image with it and all others, in turns with all others alone;
with it alone, in turns with none. The seconds' medians give two gains, and the latents' relative RMS difference from
those without any option tells what it changes. The last row is all options against none. Options that need a GPU are
left out on a CPU. Run by gpu.sh, or: python -m benchmarks.speed_options [--small]. Gains only count on a GPU.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from typing import Any, cast

import torch

from benchmarks.gpu import Setup, parse_setup, save, time_in_turns
from benchmarks.random_weights import build_random_weights, copy_weights
from pipelines.pipeline import Pipeline
from pipelines.speed import PLAIN, Speed, SpeedChoices, choose_speed
from pipelines.weights.load import Weights

NEEDS = {"kernels": "channels_last"}
"""Options that have no effect without another one."""


class Sweep:
    """Compares ways to run one model."""

    def __init__(self, setup: Setup, weights: Weights) -> None:
        self._setup, self._weights = setup, weights
        self._plain = self._draw(PLAIN)

    def compare(self, slow: Speed, fast: Speed) -> dict[str, Any]:
        """Return how many times faster the second one is, and how its latents differ from those without options."""
        device, job = self._weights.device, self._setup.build_job()
        pipelines = {name: self._build(speed) for name, speed in (("slow", slow), ("fast", fast))}
        runs = {name: partial(pipeline.run, job) for name, pipeline in pipelines.items()}
        times = time_in_turns(device, runs, self._setup.rounds)
        return {
            "gain": round(times["slow"]["seconds"] / times["fast"]["seconds"], 3),
            "seconds": times["fast"]["seconds"],
            "first_seconds": times["fast"]["first_seconds"],
            "difference": self._measure_difference(fast),
        }

    def _build(self, speed: Speed) -> Pipeline:
        return Pipeline(copy_weights(self._weights, speed))

    def _draw(self, speed: Speed) -> torch.Tensor:
        (latents,) = self._build(speed).generate_latents(self._setup.build_job())
        return latents.float()

    def _measure_difference(self, speed: Speed) -> float:
        latents = self._draw(speed)
        return float(f"{(latents - self._plain).norm() / self._plain.norm():.2g}")


def list_options(device: torch.device) -> list[str]:
    """Return the options that a device can be run with."""
    every = cast("Any", SpeedChoices)(**{field.name: "on" for field in fields(SpeedChoices)})
    return [name for name, value in asdict(choose_speed(device, every)).items() if value is True]


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
            "on_top_of_all_others": sweep.compare(without(every, option), every),
            "alone": sweep.compare(base, replace(base, **{option: True})),
        }
        print(option, rows[option], flush=True)
    return {"picture": setup.picture, "options": rows, "all": sweep.compare(PLAIN, every)}


def main() -> None:
    """Measure, print, and write the JSON file."""
    setup, device, dtype, file = parse_setup(__doc__, "speed_options")
    save(measure(setup, build_random_weights(setup.architecture, device, dtype)), file)


if __name__ == "__main__":
    main()
