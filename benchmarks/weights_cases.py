"""Cases of checkpoint files; each function judges one row of shared/cases/weights/README.md."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.case_table import (
    GENERATE,
    Bench,
    Cases,
    decode_pixels,
    mean_difference,
    read_fields,
    read_pixels,
    require,
)
from benchmarks.checkout import Completed, ServerFailed

CASES = Cases()
DRAW = ("--size", "128x128", "--steps", "4", "--seed", "7", "--no-quality", "--negative", "lowres")
HEART = "no humans, red heart, white background"
DRAW_HEART = (
    *(
        "--size",
        "192x192",
        "--steps",
        "14",
        "--seed",
        "7",
        "--scale",
        "5",
        "--no-quality",
        "--negative",
        "lowres",
    ),
    *("--sampler", "k_euler", "--schedule", "exponential"),
)
FLOWS = ("nyaflow-xl-alpha", "noobaiRF_v01", "mugenRF_v1", "sdxlFlowMatching_v1", "model-0", "model-1")
NO_FLOWS = ("flower-garden", "overflow_mix", "airflowXL", "surfMix")
TEXT_ENCODER_LEVELS = 1.5
"""Mean difference of pixels that 8-bit weights of CLIP-L may make: 0.5 with their scales, 84 without (measured)."""

RUN_SCRIPT = """
import runpy, sys
from pathlib import Path
script = Path(sys.argv.pop(1))
import pipelines.sampling.prediction as prediction
sys.modules["pipelines.prediction"] = prediction  # where the script's author had it
prediction.NoiseTable.position = prediction.NoiseTable.fractional_index
sys.path.insert(0, str(script.parent))
runpy.run_path(str(script), run_name="__main__")
"""

MAKE_HOLLOW = """
import sys
from layouts import SDXL, hollow
for name in sys.argv[2:]:
    hollow(f"{name}.safetensors", SDXL)
"""

MAKE_HALF = """
from layouts import OUT, metadata, save, tensors
import torch
for name in ("float8_e4m3fn", "float8_e5m2"):
    stored = tensors(OUT / f"naiad-demo-{name}.safetensors")
    half = {k: t.half() if t.dtype.itemsize == 1 else t for k, t in stored.items()}
    save(f"naiad-demo-{name}-half.safetensors", half)
"""

DRAW_REFERENCE = """
import sys, warnings
import numpy as np, torch
from pathlib import Path
from diffusers import EDMEulerScheduler
from pipelines.image.vae import VaeCodec
from pipelines.job import Prompts
from pipelines.text.encoding import PromptEncoder
from pipelines.unet.attention import Context
from pipelines.weights.load import load_weights

file, output, positive, negative = sys.argv[1:]
side, steps, scale, seed = 192, 14, 5.0, 7
weights = load_weights(Path(file), device="cpu", dtype=torch.float32)
embeddings = PromptEncoder(weights.text_encoders, torch.device("cpu")).encode(Prompts(positive, negative))
context = torch.stack([embeddings.negative.context, embeddings.positive.context])
pooled = torch.stack([embeddings.negative.pooled, embeddings.positive.pooled])
ids = torch.tensor([side, side, 0, 0, side, side])
scheduler = EDMEulerScheduler(
    prediction_type="v_prediction", sigma_schedule="exponential", sigma_min=0.002, sigma_max=120.0, sigma_data=1.0)
scheduler.set_timesteps(steps)
x = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(seed)) * 120.0
with torch.inference_mode():
    keys = Context(torch.stack([weights.unet.project(part) for part in context]))
    for t in scheduler.timesteps:
        sample = torch.cat([scheduler.scale_model_input(x, t)] * 2)
        embedding = torch.cat([weights.unet.embed(t[None], vector, ids) for vector in pooled])
        uncond, cond = weights.unet(sample, embedding, keys).chunk(2)
        x = scheduler.step(uncond + scale * (cond - uncond), t, x).prev_sample
    pixels = VaeCodec(weights.vae, weights.architecture.latent_scale, torch.float32).decode(x[0])
np.save(output, pixels)
"""


def make_files(bench: Bench, script: str, folder: Path | None = None) -> Path:
    """Run one of the input scripts; return the folder that it wrote into."""
    folder = folder or bench.checkout.folder / script.removesuffix(".py")
    done = run_code(bench, RUN_SCRIPT, bench.inputs / "weights" / script, folder)
    require(done.status == 0, f"{script} failed: {done.refusal}")
    return folder


def run_code(bench: Bench, code: str, *arguments: object) -> Completed:
    scripts = str(bench.inputs / "weights")
    variables = {"NAIAD": str(bench.checkout.root), "PYTHONPATH": scripts}
    return bench.checkout.run_python(code, *arguments, variables=variables)


def draw(
    bench: Bench, *model: object, prompt: str = "1girl, red hair", options: tuple[str, ...] = DRAW
) -> tuple["np.ndarray[Any, Any] | None", Completed]:
    """Draw with a model; return the pixels, or None if it was refused, and how the command ended."""
    output = bench.checkout.folder / "drawn.png"
    output.unlink(missing_ok=True)
    done = bench.checkout.run_naiad("generate", prompt, *model, "-o", output, *options)
    return (decode_pixels(output.read_bytes()) if output.exists() else None), done


def demo_pixels(bench: Bench) -> "np.ndarray[Any, Any]":
    """Return what the demo's own file draws."""
    if "demo" not in bench.pictures:
        pixels, done = draw(bench, bench.checkout.demo)
        assert pixels is not None, done.error
        bench.pictures["demo"] = pixels
    return bench.pictures["demo"]


def require_demo_picture(bench: Bench, *model: object) -> str:
    """Require that a model draws exactly what the demo draws."""
    pixels, done = draw(bench, *model)
    require(pixels is not None, f"refused: {done.refusal}")
    assert pixels is not None
    difference = mean_difference(pixels, demo_pixels(bench))
    require(difference == 0, f"another picture, by {difference:.1f} levels")
    return "the same picture"


def require_refusal(done: Completed, file: str, *reasons: str) -> str:
    """Require one line that names the file and, outside its name, matches one of the reasons."""
    require(done.status != 0, "not refused")
    require(not done.has_traceback, f"a traceback: {done.refusal}")
    require(file in done.refusal, f"the file is not named: {done.refusal}")
    require_reason(done.refusal, file, "|".join(reasons))
    return f"refused: {done.refusal}"


def require_problem(card: Mapping[str, Any], file: str, reason: str) -> str:
    """Require that a model's card is a refusal that names the file and, outside its name, the reason."""
    require("problem" in card, f"{file}: {card.get('prediction')}, not refused")
    require(file in card["problem"], f"the file is not named: {card['problem']}")
    require_reason(card["problem"], file, reason)
    return card["problem"]


def require_reason(text: str, file: str, reason: str) -> None:
    require(re.search(reason, text.replace(file, ""), re.IGNORECASE), f"another reason: {text}")


@CASES.add("cosxl_like.py", "a red heart on white, means within 1 level of diffusers' EDMEulerScheduler")
def judge_cosxl(bench: Bench) -> str:
    folder = cosxl_folder(bench)
    file = folder / "cosxl-like.safetensors"
    if not file.exists():
        make_files(bench, "cosxl_like.py", folder)
    pixels, done = draw(bench, file, prompt=HEART, options=DRAW_HEART)
    require(pixels is not None, f"refused: {done.refusal}")
    assert pixels is not None
    comment = json.loads(read_fields((bench.checkout.folder / "drawn.png").read_bytes())["Comment"])
    digest = hashlib.sha256(f"{comment['prompt']}\n{comment['uc']}".encode()).hexdigest()[:12]
    reference = folder / f"reference-{digest}.npy"
    if not reference.exists():
        done = run_code(bench, DRAW_REFERENCE, file, reference, comment["prompt"], comment["uc"])
        require(reference.exists(), f"the reference: {done.refusal}")
    expected = np.load(reference).astype(int)
    require_heart(expected, "the reference")
    difference = np.abs(pixels.mean((0, 1)) - expected.mean((0, 1))).max()
    require(difference <= 1, f"means differ by {difference:.1f} levels")
    require_heart(pixels, "the picture")
    return (
        f"a red heart on white, means within {difference:.2f}, pixels {mean_difference(pixels, expected):.2f}"
    )


def cosxl_folder(bench: Bench) -> Path:
    """A folder for the trained file and its reference, kept for the next run with the same inputs."""
    sources = (
        *sorted((bench.inputs / "weights").glob("*[sl]_like.py")),
        bench.inputs / "weights/layouts.py",
        bench.checkout.demo,
    )
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"naiad-cases-{digest}"


def require_heart(pixels: "np.ndarray[Any, Any]", what: str) -> None:
    """Require light borders and a red middle."""
    border = np.concatenate([pixels[:8].reshape(-1, 3), pixels[-8:].reshape(-1, 3)]).mean(0)
    red = (pixels[..., 0] > 150) & (pixels[..., 1] < 110) & (pixels[..., 2] < 110)
    require(border.min() > 200, f"{what}: the border is {border.round().tolist()}")
    require(0.05 < red.mean() < 0.8, f"{what}: {red.mean():.0%} are red")


@CASES.add(
    "lost_markers.py", "drawn as velocity with zero terminal SNR, or not drawn before someone says which"
)
def judge_lost_markers(bench: Bench) -> str:
    file = make_files(bench, "lost_markers.py") / "merged_model_final.safetensors"
    # every parameter that a profile could choose, as the demo has one of its own
    chosen = {
        "sampler": "k_euler",
        "noise_schedule": "native",
        "scale": 5,
        "cfg_rescale": 0,
        "steps": 4,
        "seed": 7,
    }
    body = {
        "input": "red heart",
        "parameters": chosen | {"width": 128, "height": 128, "negative_prompt": "lowres"},
    }
    expected = read_pixels(bench.post(GENERATE, body))
    try:
        with bench.checkout.serve(file) as address:
            pixels = read_pixels(bench.post(GENERATE, body, server=address))
            card = httpx.get(f"{address}/models", trust_env=False).json()["models"][0]
    except ServerFailed as refusal:
        require(file.name in str(refusal), f"the file is not named: {refusal}")
        require_reason(str(refusal), file.name, "prediction")
        return f"refused: {refusal}"
    difference = mean_difference(pixels, expected)
    require(difference == 0, f"{card['prediction']}: drawn {difference:.1f} levels from the demo's picture")
    kind = (card["prediction"], card["zero_terminal_snr"])
    require(kind == ("v", True), f"drawn as velocity, but the card says {kind}")
    return f"the same picture; {card['evidence'][-1]}"


@CASES.add("sd1_sidecar.py", "v from the yaml, said as evidence; eps without the yaml")
def judge_sidecar(bench: Bench) -> str:
    file = make_files(bench, "sd1_sidecar.py") / "EasyFluffV11.2.safetensors"
    alone = bench.checkout.folder / "alone" / file.name
    alone.parent.mkdir()
    shutil.copy(file, alone)
    cards = bench.checkout.list_models({"with": file, "alone": alone})
    evidence = "; ".join(cards["with"].get("evidence", [cards["with"].get("problem")]))
    require(cards["with"].get("prediction") == "v", f"{cards['with'].get('prediction')}: {evidence}")
    require("yaml" in evidence, f"v, but the evidence is {evidence}")
    require(
        cards["alone"].get("prediction") == "eps", f"without the yaml: {cards['alone'].get('prediction')}"
    )
    return "v, and eps without it"


@CASES.add("rectified_flow.py", "six refused as rectified flow; flower, overflow, airflow, surf stay eps")
def judge_flow(bench: Bench) -> str:
    folder = make_files(bench, "rectified_flow.py")
    done = run_code(bench, MAKE_HOLLOW, folder, *NO_FLOWS)
    require(done.status == 0, f"the controls failed: {done.refusal}")
    cards = bench.checkout.list_models({name: folder / f"{name}.safetensors" for name in (*FLOWS, *NO_FLOWS)})
    drawn = [name for name in FLOWS if "problem" not in cards[name]]
    require(not drawn, f"not refused: {', '.join(drawn)}")
    for name in FLOWS:
        require_problem(cards[name], f"{name}.safetensors", "rectified[- ]flow|flow[- ]matching")
    for name in NO_FLOWS:
        require(cards[name].get("prediction") == "eps", f"{name}: {cards[name].get('problem', cards[name])}")
    return f"{len(FLOWS)} refused, {len(NO_FLOWS)} eps"


@CASES.add("playground_folder.py", "refused as Playground v2.5")
def judge_playground(bench: Bench) -> str:
    folder = make_files(bench, "playground_folder.py") / "playground-v2.5-1024px-aesthetic"
    named = bench.checkout.folder / "model-x"  # the name must not be all that counts
    shutil.copytree(folder, named)
    cards = bench.checkout.list_models({"named": folder, "unnamed": named})
    require_problem(cards["unnamed"], named.name, "playground")
    return require_problem(cards["named"], folder.name, "playground")


@CASES.add("lightning_x0.py", "refused: it predicts x0")
def judge_lightning(bench: Bench) -> str:
    file = make_files(bench, "lightning_x0.py") / "sdxl_lightning_1step_x0.safetensors"
    return require_problem(bench.checkout.list_models({"lightning": file})["lightning"], file.name, "x0")


def draw_with_encoder(
    bench: Bench, script: str, encoder: str
) -> tuple["np.ndarray[Any, Any] | None", Completed]:
    """Draw with the demo whose text encoders come from a made file and from the demo."""
    folder = make_files(bench, script)
    table = {
        "path": folder / "naiad-demo-no-clip.safetensors",
        "text_encoders": [str(folder / encoder), str(bench.checkout.demo)],
    }
    return draw(bench, "--weights", bench.checkout.write_catalog({"nai-diffusion-3": table}))


@CASES.add("scaled_text_encoder.py", "nearly the demo's picture, or refused as scaled")
def judge_scaled(bench: Bench) -> str:
    pixels, done = draw_with_encoder(bench, "scaled_text_encoder.py", "clip_l_fp8_scaled.safetensors")
    if pixels is None:
        return require_refusal(done, "clip_l_fp8_scaled.safetensors", "scaled")
    difference = mean_difference(pixels, demo_pixels(bench))
    require(difference < TEXT_ENCODER_LEVELS, f"drawn, {difference:.1f} levels from the demo")
    return f"within {difference:.1f} levels"


@CASES.add("openai_clip_l.py", "the demo's weights to the bit; if refused, as CLIP in OpenAI's layout")
def judge_openai(bench: Bench) -> str:
    pixels, done = draw_with_encoder(bench, "openai_clip_l.py", "clip_l_openai.safetensors")
    if pixels is None:
        return require_refusal(done, "clip_l_openai.safetensors", "openai")
    difference = mean_difference(pixels, demo_pixels(bench))
    require(difference == 0, f"drawn, {difference:.1f} levels from the demo")
    return "the same picture"


@CASES.add("comfyui_2024_02.py", "loads, same picture")
def judge_comfyui(bench: Bench) -> str:
    return require_demo_picture(
        bench, make_files(bench, "comfyui_2024_02.py") / "naiad-demo-projection-twice.safetensors"
    )


@CASES.add("baked_vae.py", "loads, same picture")
def judge_baked(bench: Bench) -> str:
    return require_demo_picture(bench, make_files(bench, "baked_vae.py") / "naiad-demo-baked-vae.safetensors")


@CASES.add("check_incomplete.py", "naiad check: status 2 and what the load would say")
def judge_incomplete(bench: Bench) -> str:
    folder = make_files(bench, "check_incomplete.py")
    for file in (folder / "naiad-demo-no-vae.safetensors", folder / "naiad-demo-half.safetensors"):
        done = bench.checkout.run_naiad("check", file)
        require(
            done.status == 2,
            f"{file.name}: {done.status} {(done.output.strip() or done.refusal).splitlines()[-1]}",
        )
        require(not done.has_traceback, f"{file.name}: a traceback")
        _, loaded = draw(bench, file)
        reason = loaded.refusal.rpartition(file.name)[2].lstrip(": ")
        require(
            reason in done.error + done.output,
            f"{file.name}: check says {done.refusal}, the load {loaded.refusal}",
        )
    return "2, as the load says"


@CASES.add("nan_weight.py", "refused at load or on failure: not finite, with the tensor's name")
def judge_nan(bench: Bench) -> str:
    file = make_files(bench, "nan_weight.py") / "naiad-demo-nan.safetensors"
    pixels, done = draw(bench, file)
    require(pixels is None, "drawn")
    require(re.search("finite|NaN", done.refusal), done.refusal)
    return require_refusal(
        done, file.name, re.escape("middle_block.0.in_layers.2"), re.escape("mid_block.resnets.0.conv1")
    )


@CASES.add("bf16_variant.py", "read; if refused, not as without safetensors weights")
def judge_variant(bench: Bench) -> str:
    folder = make_files(bench, "bf16_variant.py") / "model-bf16"
    card = bench.checkout.list_models({"bf16": folder})["bf16"]
    require("without safetensors" not in card.get("problem", ""), card.get("problem"))
    return card.get("problem", f"read: {card.get('family')}, {card.get('prediction')}")


@CASES.add(
    "controls.py", "control: 8-bit ones draw like the same values in fp16, the others the same picture"
)
def judge_controls(bench: Bench) -> str:
    folder = make_files(bench, "controls.py")
    for name in ("position-ids", "averaged"):
        require_demo_picture(bench, folder / f"naiad-demo-{name}.safetensors")
    done = run_code(bench, MAKE_HALF, folder)
    require(done.status == 0, f"the fp16 twins: {done.refusal}")
    for name in ("float8_e4m3fn", "float8_e5m2"):
        narrow, done = draw(bench, folder / f"naiad-demo-{name}.safetensors")
        require(narrow is not None, f"{name} refused: {done.refusal}")
        half, done = draw(bench, folder / f"naiad-demo-{name}-half.safetensors")
        assert narrow is not None
        assert half is not None, done.error
        require(
            mean_difference(narrow, half) == 0,
            f"{name}: {mean_difference(narrow, half):.1f} levels from fp16",
        )
    return "all load and draw as they must"
