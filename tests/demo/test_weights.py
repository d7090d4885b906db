from typing import Any

import torch

from demo.checkpoint import build_demo
from pipelines.job import Guidance, Job, Prompts
from pipelines.weights.detect import detect
from pipelines.weights.load import load_weights as load_weights

load: Any = load_weights  # the protocols do not promise modules


def test_the_demo_is_detected_by_its_markers(demo_file):
    detection = detect(demo_file)
    assert (detection.family, detection.channels, detection.prediction, detection.zsnr) == (
        "sdxl",
        4,
        "v",
        True,
    )
    assert detection.missing == ()


def test_the_inpainting_demo_takes_nine_channels(tmp_path):
    weights = load(build_demo(tmp_path / "nine.safetensors", channels=9))
    assert weights.detection.channels == weights.architecture.channels == 9
    assert weights.unet.module.state_dict()["conv_in.weight"].shape[1] == 9


def test_building_the_demo_leaves_the_global_generator_unchanged(tmp_path):
    before = torch.random.get_rng_state()
    load(build_demo(tmp_path / "a.safetensors"))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_generated_images_are_neither_flat_nor_overexposed(demo):
    job = Job("m", Prompts("1girl"), 64, 64, 3, "k_euler", "native", Guidance(5.0), seeds=(1, 2))
    one, two = demo.run(job)
    assert 5 < one.std() < 120
    assert 20 < one.mean() < 235
    assert (one != two).any()
