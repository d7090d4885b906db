"""The engine with the demo model, in whose networks faults happen: what a request gets, and what the next one gets."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_model import GENERATE, build_state, start_client
from faults import Faulty, Hang, inject, lose_device, return_nan, run_out_of_cpu_memory, run_out_of_memory
from jobs import change, make_job
from waiting import LIMIT

from pipelines.device import translate_device_errors
from pipelines.errors import Cancelled, NotFinite, OutOfMemory
from pipelines.image.vae import Tiling
from pipelines.job import InitImage, RgbImage, UpscaleJob, VibeJob
from pipelines.memory_plan import MemoryPlan
from pipelines.pipeline import Pipeline
from pipelines.runner import Runner
from pipelines.steps import Part
from server.engine.engine import Engine, State
from server.engine.loading import LoadedRunner
from server.engine.resident import ResidentModels
from server.errors import Unavailable

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
    return ResidentModels([model], lambda _: LoadedRunner(runner, replace(model, id="demo"), pipeline), 1, 1)


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


@pytest.fixture
def small_tiles(demo, monkeypatch):
    """Let the VAE need 9 tiles for an image of 128 x 128 pixels."""
    plan = MemoryPlan(tiling=Tiling(tile=8, overlap=4, untiled=64))
    monkeypatch.setattr(demo, "weights", replace(demo.weights, memory=plan))
    monkeypatch.setattr(demo._vae, "tiling", plan.tiling)


@pytest.mark.usefixtures("small_tiles")
def test_each_tile_of_a_large_image_is_decoded_in_a_step_of_its_own(load, demo):
    job = change(JOB, width=128, height=128)
    (latents,) = demo.generate_latents(job)
    models, calls = load("vae_decode", {5: run_out_of_memory})
    with run(models) as engine:
        image = engine.submit(job).future.result(LIMIT).images[0]
    assert calls.calls == 10
    with torch.inference_mode():
        assert np.array_equal(image, demo._vae.decode(latents))


@pytest.mark.usefixtures("small_tiles")
def test_a_large_image_is_cancelled_between_two_tiles(load):
    hang = Hang()
    models, calls = load("vae_decode", {3: hang})
    with run(models) as engine:
        ticket = engine.submit(change(JOB, width=128, height=128))
        assert hang.begun.wait(LIMIT)
        ticket.cancel()
        hang.release()
        with pytest.raises(Cancelled):
            ticket.future.result(LIMIT)
    assert calls.calls == 3


def test_an_upscaled_tile_that_runs_out_of_memory_is_computed_again(demo, model):
    calls = []

    def compute():
        calls.append(len(calls))
        if len(calls) == 2:
            run_out_of_memory(None)
        return np.full((8, 16, 3), len(calls), np.uint8)

    def upscale_tiles(pixels):
        top = yield Part(compute, 1, 2)
        bottom = yield Part(compute, 2, 2)
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


@pytest.mark.parametrize("part", PARTS)
def test_a_device_that_is_lost_in_any_part_refuses_all_jobs(load, monkeypatch, part):
    job = PARTS[part]
    models, _ = load(part, {1: lose_device(monkeypatch)})
    with run(models) as engine:
        tickets = [engine.submit(job) for _ in range(3)]
        for ticket in tickets:
            with pytest.raises(Unavailable, match="the device has failed; restart the server"):
                ticket.future.result(LIMIT)
        assert engine.state is State.DEFUNCT


@pytest.mark.parametrize("method", ["activate", "fit_preview", "encode_vibe", "free_memory"])
def test_a_device_that_is_lost_between_steps_refuses_all_jobs(load, monkeypatch, method):
    models, _ = load("unet", {1: run_out_of_memory} if method == "free_memory" else {})
    pipeline = models._device["demo"].pipeline
    monkeypatch.setattr(pipeline, method, Faulty(getattr(pipeline, method), {1: lose_device(monkeypatch)}))
    job = VibeJob("demo", INIT) if method == "encode_vibe" else JOB
    with run(models) as engine:
        ticket = engine.submit(job, on_preview=lambda _: None)
        with pytest.raises(Unavailable, match="the device has failed; restart the server"):
            ticket.future.result(LIMIT)
        assert engine.state is State.DEFUNCT


def test_a_device_that_is_lost_while_loading_is_reported_without_its_text(monkeypatch):
    def load() -> Any:
        with translate_device_errors(torch.device("cpu")):
            lose_device(monkeypatch)(None)

    engine = Engine(load)
    engine.start()
    assert engine.wait_end() == "the model could not be loaded"


@pytest.mark.parametrize("batching", ["exact", "shared"])
def test_latents_that_are_not_finite_fail_one_job_with_advice(load, expected, batching):
    models, _ = load("unet", {1: return_nan})
    with run(models, batching=batching) as engine:
        with pytest.raises(NotFinite, match="the network returned latents that are not finite; lower scale"):
            engine.submit(JOB).future.result(LIMIT)
        assert np.array_equal(engine.submit(JOB).future.result(LIMIT).images[0], expected(JOB))
        assert engine.state is State.READY


def test_pixels_that_are_not_finite_fail_only_their_job(load, expected):
    models, calls = load("vae_decode", {1: return_nan})
    with run(models) as engine:
        with pytest.raises(NotFinite, match="the VAE returned an image that is not finite, in float32 too"):
            engine.submit(JOB).future.result(LIMIT)
        assert calls.calls == 1
        assert np.array_equal(engine.submit(JOB).future.result(LIMIT).images[0], expected(JOB))


@pytest.mark.parametrize(
    ("dtype", "loras", "advice"),
    [
        (torch.float32, False, "lower scale"),
        (torch.float16, False, 'lower scale, or set dtype = "bfloat16" in the server\'s settings'),
        (torch.bfloat16, True, "lower scale or the strengths of the LoRAs, or set dtype = \"float32\" in the server's "
                               "settings"),
    ],
)  # fmt: skip
def test_the_advice_depends_on_what_can_be_changed(demo, monkeypatch, dtype, loras, advice):
    pipeline = Pipeline(replace(demo.weights, dtype=dtype))
    monkeypatch.setattr(pipeline._loras, "is_active", lambda _: not loras)
    with pytest.raises(NotFinite) as caught:
        pipeline._decode([torch.full((4, 8, 8), torch.nan)])
    assert str(caught.value) == f"the network returned latents that are not finite; {advice}"
