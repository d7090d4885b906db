"""Which steps of an image are full, and what the others reuse."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from analytic import run_denoise, velocity_network
from jobs import make_job, plan_first
from unets import Tape, WrappedUNet, shrink_demo

from benchmarks.random_weights import build_random_weights, copy_weights
from pipelines.job import Guidance, Prompts
from pipelines.pipeline import Pipeline
from pipelines.sampling.denoise import Estimator, denoise
from pipelines.sampling.noise import make_image_noise
from pipelines.sampling.prediction import PREDICTIONS, scaled_linear
from pipelines.sampling.smea import make_smea
from pipelines.sampling.step_cache import StepCache, make_step_cache
from pipelines.speed import PLAIN
from pipelines.steps import run_steps
from pipelines.text.encoding import Conditioning, PromptEmbeddings
from pipelines.unet.graphs import UNetGraphs

TABLE = scaled_linear(zsnr=True)
POSITIVE, NEGATIVE, EMPTY = (Conditioning(torch.full((77, 3), value), None) for value in (1.0, -1.0, 0.0))
EMBEDDINGS = PromptEmbeddings(POSITIVE, NEGATIVE, EMPTY)
CPU = torch.device("cpu")


def trace_kinds(interval, smea=False, start=None, controls=(), **options):
    """Return a letter for each evaluation of an image: full, shallow, or plain, which keeps nothing.

    Shallow rows must have the deep features of the last full evaluation of the same row.
    """
    job = make_job(64, 64, Prompts("a", "b"), **{"guidance": Guidance(5.0), **options})
    plan = plan_first(job, TABLE)
    if start is not None:
        plan = replace(plan, sigmas=plan.sigmas[start:])
    noise = make_image_noise(1, (4, 8, 8), plan.sampler, plan.sigmas, TABLE, plan.brownian)
    views = make_smea("smea", (8, 8), plan.sigmas, CPU) if smea else None
    estimator = Estimator(
        plan, EMBEDDINGS, None, PREDICTIONS["v"], smea=views, controls=controls,
        step_cache=make_step_cache(plan, interval),
    )  # fmt: skip
    kept = {}

    def evaluate(row):
        key = row.conditioning, row.x.shape
        if row.keep_deep is not None:
            kept[key] = torch.zeros(1, 2, *(side // 2 for side in row.x.shape[1:]))
            row.keep_deep(kept[key])
        assert row.deep is None or row.deep is kept[key]
        return velocity_network(lambda row: row.x * 0)(row)

    _, requests = run_denoise(denoise(estimator, noise.initial, noise), evaluate)
    return "".join(map(name_kind, requests))


def name_kind(rows):
    (kind,) = {"s" if row.deep is not None else "f" if row.keep_deep is not None else "p" for row in rows}
    return kind


@pytest.mark.parametrize(
    ("interval", "kinds"), [(1, "pppppppp"), (2, "fsfsfsff"), (3, "fssfssff"), (5, "fssssfsf")]
)
def test_every_nth_step_is_full_and_so_is_the_last(interval, kinds):
    assert trace_kinds(interval, steps=8) == kinds


def test_the_first_tenth_of_the_steps_is_full():
    assert trace_kinds(3, steps=28) == "fff" + 8 * "ssf" + "f"
    assert trace_kinds(5, steps=28) == "fff" + 4 * "ssssf" + "ssss" + "f"


def test_with_a_sampler_of_second_order_both_evaluations_of_a_step_are_alike():
    assert trace_kinds(3, steps=7, sampler="k_heun") == "f" + "ss" + "ss" + "ff" + "ss" + "ss" + "f"
    assert trace_kinds(3, steps=7, sampler="k_dpmpp_sde") == "f" + "ss" + "ss" + "ff" + "ss" + "ss" + "f"


def test_the_steps_of_an_image_that_begins_with_another_one_are_counted_from_there():
    assert trace_kinds(3, steps=9, start=2) == "fssfssf"
    assert trace_kinds(3, steps=6, start=2, sampler="k_heun") == "ff" + "ss" + "ss" + "f"


def test_all_steps_are_full_with_a_sampler_that_measures_its_errors():
    assert set(trace_kinds(3, steps=5, sampler="k_dpm_adaptive")) == {"p"}


def test_a_step_is_full_where_guidance_begins_and_may_be_shallow_where_it_ends():
    sigmas = plan_first(make_job(steps=9), TABLE).sigmas
    assert trace_kinds(4, steps=9, guidance=Guidance(5.0, skip_above=sigmas[2])) == "fsfsfsssf"
    assert trace_kinds(4, steps=9, guidance=Guidance(5.0, skip_below=sigmas[2])) == "fsssfsssf"


def test_a_step_is_full_where_the_resolution_changes():
    plan = plan_first(make_job(64, 64, steps=12, pyramid=1), TABLE)
    assert [plan.pyramid_levels(sigma) for sigma in plan.sigmas[:4]] == [1, 1, 0, 0]
    assert trace_kinds(4, steps=12, pyramid=1) == "fffssfsssfsf"
    assert trace_kinds(4, steps=9, smea=True) == "fsssfsssf"


def test_nothing_is_kept_with_deep_shrink_and_the_step_after_it_is_full():
    kinds = trace_kinds(4, steps=12, deep_shrink=1)
    plain = kinds.count("p")
    assert 1 < plain < 8
    assert kinds[: plain + 1] == "p" * plain + "f"


def test_a_step_is_full_if_the_last_full_one_lacked_one_of_its_rows():
    cache = StepCache(plan_first(make_job(steps=4), TABLE), 2, features={"row": torch.zeros(1)})
    assert cache.is_full(2, ["row", "another"])
    assert not cache.is_full(2, ["row"])
    assert cache.is_full(3, ["row"])


@pytest.fixture(scope="module")
def plain():
    return build_random_weights(shrink_demo(), CPU, torch.float32)


@pytest.fixture(scope="module")
def recorded(plain):
    """A small model and the kinds of its passes, with their numbers of rows."""
    weights, passes = plain, []
    unet = WrappedUNet(weights.unet, lambda unet, *inputs: unet(*inputs))
    for name in ("run_full", "run_shallow"):
        setattr(unet, name, partial(_record, passes, name, getattr(weights.unet, name)))
    return replace(weights, unet=unet), passes


def _record(passes, name, run, sample, *inputs):
    passes.append((name, len(sample)))
    return run(sample, *inputs)


def test_images_at_other_steps_share_passes_of_their_kind_and_stay_what_they_are_alone(recorded):
    weights, passes = recorded
    pipeline = Pipeline(weights, step_cache=3)
    jobs = [
        make_job(64, 64, Prompts(text, "bad"), steps, guidance=Guidance(3.0), seeds=(seed,))
        for text, steps, seed in (("1girl", 9, 1), ("1boy, smile", 8, 2), ("cat", 9, 3))
    ]
    alone = [pipeline.generate_latents(job)[0] for job in jobs]
    passes.clear()
    inputs = [pipeline.begin_pass(job) for job in jobs]
    images = [pipeline.denoise_image(each, 0) for each in inputs]
    together = run_steps(images, together=True)
    assert {("run_full", 6), ("run_shallow", 6)} <= set(passes)
    assert {("run_full", 2), ("run_shallow", 4)} <= set(passes)  # the shorter job's last step
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_graphs_run_both_kinds_of_pass(plain):
    weights, tape = copy_weights(plain, PLAIN), Tape()
    unet: Any = weights.unet
    job = make_job(64, 64, steps=7)
    (expected,) = Pipeline(weights, step_cache=3).generate_latents(job)
    unet._graphs = UNetGraphs(unet._run, tape.capture)
    (found,) = Pipeline(weights, step_cache=3).generate_latents(job)
    assert torch.equal(found, expected)
    assert [len(outputs) for outputs in tape.captured] == [2, 1]


def test_an_interval_of_one_uses_neither_kind_of_pass(recorded):
    weights, passes = recorded
    passes.clear()
    job = make_job(64, 64, steps=3)
    (plain,), (same,) = (
        Pipeline(weights).generate_latents(job),
        Pipeline(weights, step_cache=1).generate_latents(job),
    )
    assert torch.equal(plain, same)
    assert passes == []
    (cached,) = Pipeline(weights, step_cache=2).generate_latents(job)
    assert [name for name, _ in passes] == ["run_full", "run_shallow", "run_full"]
    assert not torch.equal(cached, plain)
