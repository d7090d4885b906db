"""Images of small models on a device that does not exist: no mix-up of devices or dtypes, and no waiting for the host."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from control_files import build_control
from jobs import make_job, plan_first
from sd15_files import small_sd15
from unets import WrappedUNet, shrink_demo

from benchmarks.dispatch import META, DryDevice
from benchmarks.dry_run import (
    build_empty_weights,
    build_pipeline,
    measure_parts,
    summarize,
    trace_image,
)
from demo.architecture import demo_architecture
from demo.checkpoint import VIBE
from pipelines.adapters.control_network import DiffusersControlNet
from pipelines.adapters.vibe import VibeEncoder
from pipelines.adapters.vibe_plan import plan_vibe
from pipelines.job import (
    Character,
    Control,
    Guidance,
    InitImage,
    Prompts,
    RgbImage,
    Threshold,
    UncondZero,
    Vibe,
)
from pipelines.previewer import Previewer
from pipelines.sampling.noise import list_noise_calls
from pipelines.sampling.samplers import SAMPLERS
from pipelines.sampling.schedules import SCHEDULES

WIDTH, HEIGHT, STEPS = 64, 96, 3
PASS_OPERATIONS = 178
"""Of the small SDXL's UNet on a CFG pair. A GPU starts every one of them, and for small passes that is what takes the
time: raise the number only for what is worth it, by the count that the failing test prints."""
SHALLOW_OPERATIONS = 44
"""Of its outermost level alone."""
STEP_OPERATIONS = 12
"""Of CFG and Euler in a step: two conversions to x0 of three, three of guidance, three of the sampler."""
IMAGE = RgbImage(WIDTH, HEIGHT, bytes(3 * WIDTH * HEIGHT))
MASK = bytes(255 * (k % 2) for k in range(WIDTH * HEIGHT // 64))
PLACES = Prompts(
    "2girls", "bad", characters=(Character("a", "", 0.2, 0.5), Character("b", "worse", 0.8, 0.5))
)
CONSTANT_SAMPLERS = [name for name in SAMPLERS if name != "k_dpm_adaptive"]
"""Those whose steps do not depend on the estimates."""
REFERENCE = RgbImage(448, 448, bytes(3 * 448 * 448))
JOBS = {
    "text to image": {},
    "three chunks": {"prompts": Prompts("1girl, " * 70, "bad")},
    "mix": {"prompts": Prompts("cat|dog:2", "bad")},
    "smea": {"smea": "smea"},
    "dyn": {"smea": "dyn"},
    "pyramid": {"pyramid": 1},
    "deep shrink": {"deep_shrink": 1},
    "rescale": {"guidance": Guidance(5.0, rescale=0.7)},
    "dynamic thresholding": {"guidance": Guidance(10.0, threshold=Threshold())},
    "uncond scale": {"guidance": Guidance(5.0, uncond_scale=0.5)},
    "empty negative": {"guidance": Guidance(5.0, uncond_scale=0.0)},
    "uncond zero": {"guidance": Guidance(5.0, uncond_zero=UncondZero())},
    "guidance skipped at first": {"guidance": Guidance(5.0, skip_above=20.0)},
    "guidance skipped at last": {"guidance": Guidance(5.0, skip_below=1.0)},
    "prompt alone": {"guidance": Guidance(1.0)},
    "characters by place": {"prompts": PLACES},
    "img2img": {"init": InitImage(IMAGE), "strength": 0.9, "noise": 0.1},
    "infill": {"init": InitImage(IMAGE, MASK, "soft", True)},
    "infill of a part": {"init": InitImage(IMAGE, MASK), "strength": 0.9},
}


def build(architecture, prediction: Any = "v", zsnr=True, inpainting=None):
    return build_pipeline(build_empty_weights(architecture, prediction, zsnr, inpainting=inpainting))


@pytest.fixture(scope="module")
def sdxl():
    return build(shrink_demo())


class HollowVae:
    """A VAE that does nothing."""

    def decode(self, latents):
        return latents.new_empty(len(latents), 3, *(8 * side for side in latents.shape[2:]))

    def encode(self, image):
        return image.new_empty(len(image), 4, *(side // 8 for side in image.shape[2:]))


@pytest.fixture(scope="module")
def hollow(sdxl):
    """The same with a UNet and a VAE that do nothing: for what does not depend on them."""
    unet = WrappedUNet(sdxl.weights.unet, lambda _, sample, *inputs: torch.empty_like(sample[:, :4]))
    vae: Any = HollowVae()
    return build_pipeline(replace(sdxl.weights, unet=unet, vae=vae))


@pytest.fixture(scope="module")
def inpainting():
    return build(shrink_demo(), inpainting=shrink_demo(9))


@pytest.fixture(scope="module")
def sd15():
    return build(small_sd15(), "eps", False)


@pytest.fixture(scope="module")
def adapted():
    """A model with an image adapter."""
    weights: Any = build_empty_weights(demo_architecture(), "v", True)
    plan = plan_vibe(VIBE, None, weights.unet.attention_shapes)
    for part in plan.parts:
        part.module.half()
    weights.unet.image_layers = plan.layers
    return build_pipeline(weights, vibe=VibeEncoder(plan, META, torch.float16))


def make(**changes):
    return make_job(WIDTH, HEIGHT, **{"steps": STEPS, "prompts": Prompts("1girl", "bad"), **changes})


def list_transfers(counts):
    return [(each.kind, each.place.split(":")[0]) for part in counts for each in part.transfers]


def check(trace):
    """Assert that the host waits for nothing in the loop, and after it for the image alone."""
    assert list_transfers(trace.loop) == []
    assert trace.pixels.shape == (HEIGHT, WIDTH, 3)
    *_, last = trace.steps
    found = [each.kind for each in last.own.transfers]
    assert found == ["download", "read"]  # the pixels; are they and the latents finite


@pytest.mark.parametrize("options", JOBS.values(), ids=JOBS)
def test_the_host_waits_for_nothing_in_the_loop(hollow, options):
    check(trace_image(hollow, make(**options)))


@pytest.mark.parametrize("name", ["text to image", "smea", "deep shrink", "infill of a part"])
def test_neither_does_it_in_a_pass_of_the_unet(sdxl, name):
    check(trace_image(sdxl, make(**JOBS[name])))


@pytest.mark.parametrize("name", ["text to image", "infill"])
def test_neither_does_it_with_sd15(sd15, name):
    check(trace_image(sd15, make(**JOBS[name], schedule="karras")))


@pytest.mark.parametrize("name", ["infill", "infill of a part"])
def test_neither_does_it_with_an_inpainting_network(inpainting, name):
    check(trace_image(inpainting, make(**JOBS[name])))


@pytest.mark.parametrize("name", ["text to image", "guidance skipped at first"])
def test_neither_does_it_with_reference_images(adapted, name):
    vibes = Vibe(REFERENCE, 1.0), Vibe(REFERENCE, 0.5)
    check(trace_image(adapted, make(**JOBS[name], vibes=vibes)))


@pytest.mark.parametrize("modes", [None, 6])
def test_neither_does_it_with_a_controlnet(adapted, modes, monkeypatch):
    with torch.device("meta"):
        config = build_control(demo_architecture(), modes).config
    network = DiffusersControlNet({key: value for key, value in config.items() if key[0] != "_"})
    network.module.half()
    monkeypatch.setattr(adapted._controls, "activate", lambda controls: [network] * len(controls))
    control = Control("c", VIBE, "", IMAGE, mode=None if modes is None else 2)
    check(trace_image(adapted, make(controls=(control,))))


@pytest.mark.parametrize("number", range(len(CONSTANT_SAMPLERS)))
def test_a_sampler_s_noise_is_one_copy_a_draw(hollow, number):
    job = make(sampler=CONSTANT_SAMPLERS[number], schedule=SCHEDULES[number % len(SCHEDULES)], steps=4)
    plan = plan_first(job, hollow.table)
    draws = len(list_noise_calls(plan.sampler, plan.sigmas[1:]))
    assert bool(draws) == bool(plan.sampler.eta)
    trace = trace_image(hollow, job)
    # each draw starts when the one before is taken, the first before the loop
    assert list_transfers(trace.loop) == [("upload", "sampling/noise.py")] * max(0, draws - 1)
    renewals = int(plan.sampler.eta > 0)
    assert list_transfers([trace.start]) == [("upload", "sampling/noise.py")] * (1 + renewals + bool(draws))


def test_dpm_adaptive_reads_its_error_once_a_proposal(hollow):
    trace = trace_image(
        hollow, make(sampler="k_dpm_adaptive"), number=0.01
    )  # the errors: each proposal is accepted
    proposals, rest = divmod(
        len(trace.draws) - 2, 3
    )  # without the step at infinite noise and the last estimate
    assert rest == 0
    assert proposals > 1
    assert list_transfers(trace.loop) == [("read", "sampling/dpm_solver.py")] * proposals


def test_an_image_needs_few_transfers(hollow):
    """For each chunk its ids for both text encoders and its weights, noise; then whether all is finite, and pixels."""
    trace = trace_image(build_pipeline(hollow.weights), make())
    uploads = list_transfers([trace.encode])
    assert uploads == [("upload", "text/encoding.py")] * 9  # the prompt, the negative and the empty one
    assert list_transfers([trace.start]) == [("upload", "sampling/noise.py")]
    assert list_transfers([step.own for step in trace.draws] + [step.after for step in trace.draws]) == []


def test_a_step_takes_no_more_operations_than_before(sdxl):
    trace = trace_image(sdxl, make(steps=4))
    first, *others = trace.draws
    assert [step.own.operations for step in others] == [others[0].own.operations] * 3
    assert first.own.operations > others[0].own.operations  # it prepares what the others use
    assert others[0].own.operations <= PASS_OPERATIONS
    assert max(step.after.operations for step in trace.draws) <= STEP_OPERATIONS


def test_a_shallow_step_takes_few_operations(sdxl):
    pipeline = build_pipeline(sdxl.weights, step_cache=3)
    trace = trace_image(pipeline, make(steps=8))
    check(trace)
    _, *others = (step.own.operations for step in trace.draws)
    full, shallow = others[2], others[0]
    assert others == [shallow, shallow, full, shallow, shallow, full, full]
    assert full <= PASS_OPERATIONS + 2  # a copy of the deep features of each row
    assert shallow <= SHALLOW_OPERATIONS
    assert max(step.after.operations for step in trace.draws) <= STEP_OPERATIONS


def test_a_preview_is_one_copy(hollow):
    with torch.inference_mode(), DryDevice() as device:
        previewer = Previewer(hollow.fit_preview(), META)
        device.take_counts()
        previewer.start(make_meta(4, 12, 8)).result()
    assert list_transfers([device.counts]) == [("download", "previewer.py")]


def test_the_masks_of_characters_are_computed_once(hollow):
    first, second, *_ = trace_image(hollow, make(prompts=PLACES)).draws
    assert second.after.operations < first.after.operations


WAITS = {
    "number": lambda x: float(x.sum()),
    "flag": lambda x: bool(x.isfinite().all()),
    "pixels": lambda x: x.cpu().numpy(),
    "list": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "new tensor": lambda x: x.new_tensor([1.0]),
    "array": lambda x: torch.from_numpy(np.zeros(3)).to(x.device),
    "indices": lambda x: x[torch.tensor([0])],
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_what_makes_the_host_wait_is_noticed(wait):
    with torch.inference_mode(), DryDevice() as device:
        wait(make_meta(2, 2))
    assert len(device.counts.transfers) == 1


def test_a_unet_that_reads_is_noticed_in_the_loop(sdxl):
    def call(unet, sample, *inputs):
        assert sample.isfinite().all()
        return sample[:, :4].clone()

    pipeline = build_pipeline(replace(sdxl.weights, unet=WrappedUNet(sdxl.weights.unet, call)))
    trace = trace_image(pipeline, make())
    assert list_transfers(trace.loop) == [("read", "sampling/batching.py")] * (STEPS - 1)


def make_meta(*shape, dtype=torch.float16):
    return torch.empty(*shape, dtype=dtype, device=META)


MIXES = {
    "devices": lambda: make_meta(2, 2) + torch.zeros(2, 2),
    "devices of a product": lambda: torch.nn.functional.linear(torch.zeros(2, 2).half(), make_meta(2, 2)),
    "dtypes of a product": lambda: make_meta(2, 2) @ make_meta(2, 2, dtype=torch.float32),
    "dtypes of a convolution": lambda: torch.nn.functional.conv2d(
        make_meta(1, 1, 2, 2, dtype=torch.float32), make_meta(1, 1, 1, 1)
    ),
    "dtypes of a normalization": lambda: torch.nn.functional.layer_norm(
        make_meta(2, 2), [2], make_meta(2, dtype=torch.float32), make_meta(2, dtype=torch.float32)
    ),
    "dtypes of attention": lambda: torch.nn.functional.scaled_dot_product_attention(
        make_meta(1, 1, 2, 2), make_meta(1, 1, 2, 2, dtype=torch.float32), make_meta(1, 1, 2, 2)
    ),
}


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_a_mix_up_raises_what_it_would_raise_on_a_gpu(mix):
    with (
        torch.inference_mode(),
        DryDevice(),
        pytest.raises(RuntimeError, match=r"same (d|D)?(evice|type|dtype)|dtype"),
    ):
        mix()


def test_a_number_of_the_host_is_no_mix_up():
    with torch.inference_mode(), DryDevice() as device:
        assert (make_meta(2) * torch.tensor(2.0) + 1).is_meta
    assert device.counts.operations == 2
    assert device.counts.transfers == []


def test_attention_allocates_its_output_alone():
    heads = make_meta(1, 2, 1000, 8)
    with torch.inference_mode(), DryDevice() as device:
        output = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
    assert output.shape == heads.shape
    assert device.memory.peak == heads.nbytes
    assert device.counts.operations == 1


def test_live_bytes_are_those_of_tensors_that_exist():
    weight = make_meta(100)
    with torch.inference_mode(), DryDevice() as device:
        view = weight.view(10, 10)
        total = weight + 1
        assert device.memory.live == total.nbytes == 200  # the view has no memory of its own
        total = total[:50] * 2
        assert (device.memory.live, device.memory.peak) == (100, 300)
        del view, total
    assert device.memory.live == 0


def test_weights_count_where_they_do_not_wait_in_cpu_memory(sdxl):
    trace, parts = trace_image(sdxl, make()), measure_parts(sdxl.weights)
    peaks = [summarize(trace, parts, waiting)["peak_mib"] for waiting in (0, parts["text_encoders"])]
    assert peaks[0] == pytest.approx((max(trace.peaks.values()) + sum(parts.values())) / 2**20, abs=0.06)
    assert peaks[0] - peaks[1] == pytest.approx(parts["text_encoders"] / 2**20, abs=0.11)


def test_copies_of_weights_that_wait_count_while_they_exist():
    weights = build_empty_weights(demo_architecture(), gigabytes=1)  # everything that can wait fits into it
    assert weights.offload is None
    small = build_empty_weights(demo_architecture(), gigabytes=0)
    assert small.offload is not None
    waiting = small.offload.size
    assert 0 < waiting < sum(measure_parts(small).values())
    plain, streamed = (trace_image(build_pipeline(each), make()).peaks for each in (weights, small))
    assert all(0 < streamed[stage] - plain[stage] < waiting for stage in ("encode", "draw"))


def test_an_operation_takes_no_more_than_on_a_gpu():
    """Python's versions of operations, made for compilers, would convert to float32 and gather."""
    features = make_meta(1, 8, 16, 16, dtype=torch.bfloat16)
    with torch.inference_mode(), DryDevice() as device:
        output = torch.nn.functional.interpolate(features, scale_factor=2.0)
    assert device.counts.operations == 1
    assert device.memory.peak == output.nbytes
