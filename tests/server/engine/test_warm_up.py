import logging
from typing import Any, cast

import pytest
from unets import Tape

from pipelines.errors import DeviceLost, OutOfMemory
from pipelines.job import Guidance, Job, Pass, Prompts
from pipelines.pipeline import Pipeline
from pipelines.speed import SpeedChoices
from pipelines.unet.graphs import UNetGraphs
from pipelines.weights.load import load_weights
from server.config.profiles import Defaults
from server.engine.warm_up import build_jobs, list_common_sizes, warm_up


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((832, 1216), [(832, 1216), (1216, 832), (1024, 1024)]),
        ((1024, 1024), [(1024, 1024)]),
        ((512, 768), [(512, 768), (768, 512), (640, 640)]),
        ((64, 64), [(64, 64)]),
    ],
)
def test_common_sizes_are_those_of_nai_for_the_area_of_the_profile(size, expected):
    assert list(list_common_sizes(Defaults(width=size[0], height=size[1]))) == expected


def test_prompts_of_every_number_of_chunks_are_captured_before_the_first_request(demo_file):
    weights = load_weights(demo_file, speed=SpeedChoices(fused_projections="on"))
    tape, unet = Tape(), cast("Any", weights.unet)
    unet._graphs = UNetGraphs(unet._run, tape.capture)
    pipeline, defaults = Pipeline(weights), Defaults(width=64, height=128, sampler="k_dpmpp_2m")
    warm_up(pipeline.run, defaults, by_tokens=True)
    sizes = [(2, 4, 16, 8), (2, 4, 8, 16), (2, 4, 8, 8)]
    assert [output.shape for (output,) in tape.captured] == [size for size in sizes for _chunks in range(3)]
    for words in (1, 40, 80):
        passes = (Pass(128, 64, seeds=(5,)),)
        pipeline.run(
            Job("demo", Prompts("cat " * words, "dog"), 2, "k_euler", "native", Guidance(3.0), passes)
        )
    assert len(tape.captured) == 9


def test_with_a_step_cache_a_graph_of_the_outermost_level_serves_prompts_of_every_number_of_chunks(demo_file):
    weights = load_weights(demo_file)
    tape, unet = Tape(), cast("Any", weights.unet)
    unet._graphs = UNetGraphs(unet._run, tape.capture)
    warm_up(
        Pipeline(weights, step_cache=2).run, Defaults(width=64, height=64), by_tokens=True, step_cache=True
    )
    assert sorted(map(len, tape.captured)) == [1, 2, 2, 2]


def test_without_graphs_an_image_of_each_size_is_drawn():
    drawn = []
    warm_up(drawn.append, Defaults(), by_tokens=False)
    assert [job.passes[0].latent_size for job in drawn] == [(152, 104), (104, 152), (128, 128)]
    assert list(build_jobs(Defaults(), 1)) == drawn


def test_what_fails_is_left_to_the_requests_and_logged(caplog):
    def draw(job):
        raise OutOfMemory

    with caplog.at_level(logging.WARNING, "naiad"):
        warm_up(draw, Defaults(), by_tokens=True)
    assert [record.getMessage() for record in caplog.records] == [
        "nothing is prepared for 832x1216, so its first picture takes longer: not enough memory"
    ]


def test_a_failed_device_is_no_warning():
    def draw(job):
        raise DeviceLost("cuda: unspecified launch failure")

    with pytest.raises(DeviceLost):
        warm_up(draw, Defaults(), by_tokens=True)
