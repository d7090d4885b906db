"""Claim: two checkouts draw the same pictures and write the same Comments, for a change that must not alter them.

Run: `python -m benchmarks.same_pictures BEFORE AFTER`, each a checkout with a `.venv`. Both serve the demo model
with one signing key. Statuses, pixels and Comments must be equal to the byte; other texts are printed if they differ.
"""

import argparse
import base64
import hashlib
import io
import json
import sys
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from benchmarks.checkout import Checkout
from benchmarks.machine import machine

RESULT = Path(__file__).parent / "results" / "same_pictures.json"

DRAW, ENLARGE = "/ai/generate-image", "/ai/upscale"
SMALL = {"width": 256, "height": 256, "steps": 6, "seed": 11}


def png(pixels):
    """Pixels as Base64 of a PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def source():
    """A blue disc on a yellow-to-green ramp, 256x256."""
    y, x = np.mgrid[:256, :256]
    ramp = np.stack([240 - y * 0.8, 220 - y * 0.2, 40 + x * 0.1], -1).astype(np.uint8)
    return np.where(
        ((x - 120) ** 2 + (y - 140) ** 2 < 60**2)[..., None], np.array([40, 80, 220], np.uint8), ramp
    )


def mask(side=256):
    """White on black, the middle."""
    area = np.zeros((side, side), np.uint8)
    area[side // 4 : -side // 4, side // 4 : -side // 4] = 255
    return area


def ask(prompt="1girl, red hair, white background", **parameters):
    """A request for a small picture."""
    return DRAW, {"input": prompt, "model": "nai-diffusion-3", "parameters": SMALL | parameters}


def with_action(action, asked):
    """The same with an action."""
    return asked[0], asked[1] | {"action": action}


def requests():
    """What is asked for, by name; those that begin with "blend" go to a server without an inpainting network."""
    start, hole = png(source()), png(mask())
    infill = {"image": start, "mask": hole}
    soft = png((mask(32) // 2 + 60).astype(np.uint8))
    return {
        "text to image": ask(steps=28, sampler="k_euler_ancestral", noise_schedule="karras"),
        "512x768": ask(width=512, height=768, steps=8),
        "832x1216, pyramid and deep shrink": ask(width=832, height=1216, steps=4),
        "three samples": ask(n_samples=3, sampler="k_dpmpp_2m_sde", noise_schedule="exponential"),
        "seven samplers' cousin: dpm_adaptive": ask(sampler="k_dpm_adaptive"),
        "ddim_v3": ask(sampler="ddim_v3", cfg_rescale=0.5),
        "SMEA": ask(sm=True, sampler="k_euler_ancestral"),
        "DYN": ask(sm=True, sm_dyn=True, sampler="k_dpmpp_2s_ancestral", width=320, height=384),
        "autoSmea and deep shrink": ask(autoSmea=True, deep_shrink=True),
        "presets": ask(qualityToggle=True, ucPreset=1, uncond_scale=0.5, dynamic_thresholding=True, scale=9),
        "a mix": ask("red circle:2|blue star, black background:1", qualityToggle=True, prefer_brownian=True),
        "emphasis, three chunks": ask("{{blue heart}}, [1girl], " + "green shirt, " * 60, legacy_v3_extend=True),
        "v4 prompt": (DRAW, {"model": "nai-diffusion-4-full", "input": "", "parameters": SMALL | {
            "v4_prompt": {"caption": {"base_caption": "2girls", "char_captions": [{"char_caption": "hat"}]}},
            "skip_cfg_above_sigma": 19, "skip_cfg_below_sigma": 0.5}}),
        "img2img": with_action("img2img", ask(image=start, strength=0.6, noise=0.1, extra_noise_seed=3)),
        "img2img, two, in colour": ask(image=start, strength=0.99, color_correct=True, n_samples=2, legacy=True),
        "infill by network": with_action("infill", ask(**infill, sampler="ddim_v3")),
        "infill by network, hard": ask(**infill, overlay="hard", inpaintImg2ImgStrength=0.7, n_samples=2),
        "blend infill": with_action("infill", ask(**infill, color_correct=True)),
        "blend infill, soft mask": ask(image=start, mask=soft, soft_mask=True, add_original_image=False),
        "blend text to image": ask(sampler="k_lms"),
        "enhance": ask(n_samples=2, enhance={"scale": 1.5, "magnitude": 3, "seed": 5}),
        "enhance by strength": ask(sm=True, enhance={"scale": 2, "strength": 0.4, "noise": 0.2, "seed": 7}),
        "webp": ask(image_format="webp"),
        "upscale": (ENLARGE, {"image": start, "scale": 1.5}),
        "upscale, webp": (ENLARGE, {"image": start, "image_format": "webp"}),
        "error: steps": ask(steps=99),
        "error: sampler": ask(sampler="k_eular"),
        "error: strength": with_action("img2img", ask(image=start, strength=2)),
        "error: overlay": with_action("infill", ask(**infill, overlay="sof")),
        "error: no mask": with_action("infill", ask(image=start)),
        "error: black mask": with_action("infill", ask(image=start, mask=png(mask() * np.uint8(0)))),
        "error: enhance with img2img": with_action("img2img", ask(image=start, enhance={"magnitude": 1})),
        "error: enhance's magnitude": ask(enhance={"magnitude": 9}),
        "error: enhance's size": ask(enhance={"magnitude": 1, "scale": 1.51}),
        "error: vibe": ask(reference_image=start),
        "error: no parameters": (DRAW, {"input": "1girl"}),
        "error: a mix of nothing": ask("a:0|b:0"),
        "error: no picture": (ENLARGE, {"scale": 2}),
        "error: nothing here": ("/ai/generate-video", {}),
    }  # fmt: skip


def files(answer):
    """The pictures of an answer, a ZIP's or the bare one."""
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    return [archive.read(name) for name in archive.namelist()]


def described(answer):
    """What must be the same: status, and pixels and Comment of each picture."""
    if answer.status_code != 200:
        return {"status": answer.status_code, "pictures": []}, answer.json()["message"]
    pictures = []
    for file in files(answer):
        with Image.open(io.BytesIO(file)) as picture:
            rgb = np.asarray(picture.convert("RGB")).tobytes()
            user_comment = picture.getexif().get_ifd(0x8769).get(0x9286, b"ASCII\0\0\0{}")
            text = picture.info.get("Comment") or json.loads(user_comment[8:])["Comment"]
        pictures.append({
            "pixels": hashlib.sha256(rgb).hexdigest(), "comment": hashlib.sha256(text.encode()).hexdigest()
        })  # fmt: skip
    return {"status": 200, "pictures": pictures}, answer.headers.get("x-naiad-warning", "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    checkouts = vars(parser.parse_args())
    rows, unequal = {}, 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # with one signing key for all
        addresses = {}
        for side, root in checkouts.items():
            checkout = Checkout(root.resolve(), folder)
            addresses[side] = {
                "demo": stack.enter_context(checkout.serve("--demo")),
                "blend": stack.enter_context(checkout.serve(checkout.demo)),
            }
        for name, (path, body) in requests().items():
            model = "blend" if name.startswith("blend") else "demo"
            sides = {
                side: described(httpx.post(address[model] + path, json=body, timeout=600))
                for side, address in addresses.items()
            }
            (before, said), (after, says) = sides["before"], sides["after"]
            same = before == after
            unequal += not same
            rows[name] = before | {"same": same}
            print(f"{'same' if same else 'DIFFERENT':10}{before['status']} {name}", flush=True)
            if said != says:
                print(f"          was: {said}\n          now: {says}")
    print(f"{len(rows) - unequal} of {len(rows)} are the same")
    RESULT.write_text(json.dumps({"machine": machine(), "requests": rows}, indent=2) + "\n")
    sys.exit(unequal > 0)


if __name__ == "__main__":
    main()
