"""The engine with the demo model, in whose networks faults happen: what a request gets, and what the next one gets."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_model import GENERATE, build_state, start_client
from faults import inject, run_out_of_cpu_memory, run_out_of_memory
from jobs import make_job
from waiting import LIMIT

from pipelines.errors import OutOfMemory
from pipelines.job import InitImage, RgbImage, UpscaleJob
from pipelines.pipeline import Pipeline
from pipelines.runner import Runner
from pipelines.steps import Tile
from server.engine.engine import Engine, State
from server.engine.loading import LoadedRunner
from server.engine.resident import ResidentModels

INIT = RgbImage(64, 64, bytes(range(256)) * 48)
JOB = replace(make_job(64, 64, steps=3), model="demo")
FROM_IMAGE = replace(JOB, passes=(replace(JOB.passes[0], init=InitImage(INIT), strength=0.9),))
PARTS = {"text_encoder": JOB, "unet": JOB, "vae_decode": JOB, "vae_encode": FROM_IMAGE}
"""The parts of a model, and a job that uses each."""
ALWAYS = range(1, 1000)
BODY = {"input": "a", "parameters": {"width": 64, "height": 64, "steps": 2, "seed": 1}}


@pytest.fixture(scope="module")
def expected(demo):
    """The pixels of a job without faults."""
    pixels = {id(job): demo.run(job).images[0] for job in PARTS.values()}
    return lambda job: pixels[id(job)]


@pytest.fixture
def load(demo, model):
    """Return a function that loads the demo model, with faults in a part of it."""

    def load(part, faults):
        weights, calls = inject(demo.weights, part, faults)
        return build_models(model, Pipeline(weights)), calls

    return load


def build_models(model, pipeline, upscaler=None):
    runner = Runner(pipeline, upscaler)
    return ResidentModels(
        [model], lambda _: LoadedRunner(runner, replace(model, model="demo"), pipeline), 1, 1
    )


@contextmanager
def run(models, **options):
    engine = Engine(lambda: models, **options)
    engine.start()
    engine.wait_ready()
    try:
        yield engine
    finally:
        engine.stop()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("fault", [run_out_of_memory, run_out_of_cpu_memory])
def test_an_image_is_the_same_after_memory_ran_out_once(load, expected, part, fault):
    job = PARTS[part]
    models, calls = load(part, {1: fault})
    with run(models) as engine:
        result = engine.submit(job).future.result(LIMIT)
        assert np.array_equal(result.images[0], expected(job))
        assert calls.calls > 1
        assert engine.state is State.READY


@pytest.mark.parametrize("part", PARTS)
def test_an_image_for_which_memory_never_suffices_fails_and_the_next_does_not(load, expected, part):
    job = PARTS[part]
    models, calls = load(part, {1: run_out_of_memory, 2: run_out_of_memory})
    with run(models) as engine:
        with pytest.raises(OutOfMemory):
            engine.submit(job).future.result(LIMIT)
        assert calls.calls == 2
        assert engine.state is State.READY
        assert np.array_equal(engine.submit(job).future.result(LIMIT).images[0], expected(job))


def test_an_upscaled_tile_that_runs_out_of_memory_is_computed_again(demo, model):
    calls = []

    def compute():
        calls.append(len(calls))
        if len(calls) == 2:
            run_out_of_memory(None)
        return np.full((8, 16, 3), len(calls), np.uint8)

    def upscale_tiles(pixels):
        top = yield Tile(1, 2, compute)
        bottom = yield Tile(2, 2, compute)
        return np.concatenate([top, bottom])

    upscaler: Any = SimpleNamespace(scale=2, upscale_tiles=upscale_tiles)
    with run(build_models(model, demo, upscaler)) as engine:
        image = engine.submit(UpscaleJob(RgbImage(8, 8, bytes(192)), 16, 16)).future.result(LIMIT).images[0]
    assert (image[0, 0, 0], image[-1, 0, 0]) == (1, 3)


def test_a_request_for_which_memory_does_not_suffice_gets_503_with_advice(load, model):
    models, _ = load("unet", dict.fromkeys(ALWAYS, run_out_of_memory))
    with start_client(build_state(model, models)) as client:
        response = client.post(GENERATE, json=BODY)
        assert response.status_code == 503
        assert response.json()["message"] == (
            "not enough memory; request a smaller image, or lower engine.device_memory in the server's settings"
        )
        assert client.get("/ready").status_code == 200
