"""Claim: another model or other LoRAs cost a small part of an image, and a mixed load takes no more memory with time.

Two models with the same networks and different weights, and LoRAs over all attention of the UNet and the text encoders.
A switch is what it adds to a job of one step at 64 x 64, alternating with the same job without it, and compared with an
image of 512 x 768 in 28 steps from the same process. On a CPU times are those of all its threads, which other programs
disturb less than wall-clock time; a parked model does not move there, so only a GPU shows what that costs.
Run: python -m benchmarks.switching [PARTS] [--model FILE] [--rounds 15] [--jobs 240] [--device cuda].
"""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import linear_regression, median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time, sleep

import torch
from safetensors.torch import load_file, save_file

from benchmarks.fullsize import anonymous_memory
from benchmarks.machine import machine
from demo.checkpoint import DEMO
from pipelines.job import Guidance, Job, Lora, Pass, Prompts
from pipelines.weights.checkpoint import UNET_PREFIX, fingerprint
from pipelines.weights.header import read_header
from pipelines.weights.load import load_weights
from server.config.catalog import Catalog, ModelEntry
from server.config.settings import EngineSettings, Settings
from server.engine.loading import load_models
from server.engine.model import ServedModel, detect_model
from server.engine.resident import ResidentModels

RESULTS = Path(__file__).parent / "results"
PROMPTS = Prompts("1girl, solo, smile, red hair, blue background", "lowres")
IMAGE = Job("a", PROMPTS, 28, "k_euler", "native", Guidance(5.0), (Pass(512, 768, (1,)),))
TINY = replace(IMAGE, steps=1, passes=(Pass(64, 64, (1,)),))
RANK = 16
PLACES = {
    "device": EngineSettings(device_memory=1 << 20),
    "memory": EngineSettings(device_memory=0, parked_memory=1 << 20),
    "disk": EngineSettings(device_memory=0, parked_memory=0),
}
"""Settings with which the other model waits on the device, in CPU memory, or on the disk only."""
Results = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Bench:
    """Two models and three LoRAs, and the measurements' sizes; `image` are the seconds that an image took."""

    models: tuple[ServedModel, ...]
    loras: tuple[Lora, ...]
    device: str
    rounds: int
    jobs: int
    image: list[float] = field(default_factory=list[float])

    def load(self, engine: EngineSettings) -> ResidentModels:
        """Load the first model."""
        return load_models(self.models, Settings(device=self.device, engine=engine, threads=1))

    def measure(self, resident: ResidentModels, job: Job) -> float:
        """Run a job and return the seconds it took."""
        clock = process_time if self.device == "cpu" else perf_counter
        start = clock()
        run_job(resident, job)
        return clock() - start

    def compare(self, with_switch: list[float], without: list[float]) -> dict[str, float]:
        """Return what a switch adds, by itself and relative to an image."""
        added = median(with_switch) - median(without)
        return {"seconds": round(added, 4), "of_an_image": round(added / median(self.image), 4)}


def run_job(resident: ResidentModels, job: Job) -> None:
    """Run a job to its end."""
    resident.activate(job)
    resident.begin(job).complete()


def make_models(source: Path, folder: Path) -> tuple[ServedModel, ...]:
    """Return a model, and one whose network predicts half as much."""
    other, tensors = folder / "other.safetensors", load_file(source)
    last = f"{UNET_PREFIX}out.2.weight"
    tensors[last] = tensors[last] * 0.5
    save_file(tensors, other, dict(read_header(source).metadata))
    catalog = Catalog(default="a", models={"a": ModelEntry(path=source), "b": ModelEntry(path=other)})
    return detect_model(catalog, "a"), detect_model(catalog, "b")


def make_loras(source: Path, folder: Path) -> tuple[Lora, ...]:
    """Write three LoRAs over all attention layers of a model, and return them."""
    networks = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    shapes: dict[str, torch.Size] = {}
    for planned in load_weights(source).parts:
        prefix = networks.get(planned.part.folder)
        for name, tensor in planned.part.module.state_dict().items():
            if prefix is not None and "attn" in name and tensor.ndim == 2:
                shapes[f"{prefix}_{name.removesuffix('.weight').replace('.', '_')}"] = tensor.shape
    loras: list[Lora] = []
    for seed in range(3):
        generator, tensors = torch.Generator().manual_seed(seed), dict[str, torch.Tensor]()
        for name, (rows, columns) in shapes.items():
            tensors[f"{name}.lora_down.weight"] = torch.randn(RANK, columns, generator=generator) * 0.02
            tensors[f"{name}.lora_up.weight"] = torch.randn(rows, RANK, generator=generator) * 0.02
        path = folder / f"lora-{seed}.safetensors"
        save_file(tensors, path)
        loras.append(Lora(path.stem, path, fingerprint(path)))
    return tuple(loras)


def measure_models(bench: Bench) -> Results:
    """Return what a switch of the model adds, by where the other one is."""
    residents = {place: bench.load(engine) for place, engine in PLACES.items()}
    times = {place: (list[float](), list[float]()) for place in PLACES}
    for number in range(bench.rounds + 1):
        for place, resident in residents.items():
            for name in ("b", "a"):  # the first round loads what the others find in its place
                found = [bench.measure(resident, replace(TINY, model=name)) for _ in range(2)]
                for values, value in zip(times[place], found if number else (), strict=False):
                    values.append(value)
    counted = {place: resident.switches for place, resident in residents.items()}
    assert set(counted.values()) == {2 * bench.rounds + 2}
    return {"switches": sum(counted.values())} | {
        f"from {place}": bench.compare(*values) for place, values in times.items()
    }


def measure_loras(bench: Bench) -> Results:
    """Return what other LoRAs add: read and computed in advance, at once, and with no memory for copies of weights."""
    first, second, third = bench.loras
    sets = ((first,), (second, third), ())
    residents = {
        "kept": bench.load(EngineSettings()),
        "read again": bench.load(EngineSettings(lora_memory=0)),
    }
    kinds = {
        "in advance": ("kept", True),
        "at once": ("kept", False),
        "without memory": ("read again", False),
    }
    times = {kind: (list[float](), list[float]()) for kind in kinds}
    for number in range(bench.rounds + 1):
        for kind, (name, is_prepared) in kinds.items():
            for loras in sets:
                job = replace(TINY, loras=loras)
                if is_prepared and loras:
                    residents[name].prepare(job)
                    sleep(0.5)  # while an image would be drawn
                found = [bench.measure(residents[name], job) for _ in range(2)]
                for values, value in zip(times[kind], found if number else (), strict=False):
                    values.append(value)
    return {kind: bench.compare(*values) for kind, values in times.items()}


def measure_memory(bench: Bench) -> Results:
    """Return how this process grows: under a load without switches, then under one that switches at random."""
    resident, random = bench.load(PLACES["disk"]), Random(1)
    sets = [(), *((lora,) for lora in bench.loras)]
    kinds = [replace(TINY, model=name, loras=loras) for name in ("b", "a") for loras in sets]
    results: dict[str, object] = {}
    for load in ("without switches", "mixed"):
        switches, curve, jobs = resident.switches, list[float](), list[Job]()
        for number in range(bench.jobs):
            jobs.append(kinds[-1] if load == "without switches" else random.choice(kinds))
            run_job(resident, jobs[-1])
            if number % 8 == 7:
                curve.append(round(1024 * anonymous_memory(), 1))
        late = curve[len(curve) // 3 :]
        slope = linear_regression(range(len(late)), late).slope / 8
        results[load] = {
            "switches": resident.switches - switches,
            "lora_sets": sum(old.loras != new.loras for old, new in pairwise(jobs)),
            "kib_per_job": round(1024 * slope, 1),
            "mib": curve,
        }
    return results


PARTS: Mapping[str, Callable[[Bench], Results]] = {
    "models": measure_models,
    "loras": measure_loras,
    "memory": measure_memory,
}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to measure (default: all)")
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=240)
    options = parser.parse_args()
    file = RESULTS / "switching.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    with TemporaryDirectory() as folder:
        models, loras = make_models(options.model, Path(folder)), make_loras(options.model, Path(folder))
        bench = Bench(models, loras, options.device, options.rounds, options.jobs)
        resident = bench.load(PLACES["device"])
        bench.image.extend(bench.measure(resident, IMAGE) for _ in range(3))
        for part in options.parts or PARTS:
            results[part] = PARTS[part](bench)
            print(part, json.dumps(results[part], indent=1), flush=True)
    setup = {"model": options.model.name, "device": options.device, "rounds": options.rounds}
    setup["image_seconds"] = round(median(bench.image), 2)
    file.write_text(json.dumps({**results, **setup, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
