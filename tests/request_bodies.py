"""Request bodies of known clients for text to image and infill with V3, key for key as far as known, with small sizes.

Prompts are as the clients send them: the first group writes quality tags and presets into them, the second sends flags
without meaning them, the third omits the flags.
"""

from base64 import b64encode
from io import BytesIO

import numpy as np
from PIL import Image

QUALITY = ", best quality, amazing quality, very aesthetic, absurdres"
HEAVY = (
    "lowres, {bad}, error, fewer, extra, missing, worst quality, jpeg artifacts, bad quality, watermark, "
    "unfinished, displeasing, chromatic aberration, signature, extra digits, artistic error, username, scan, "
    "[abstract]"
)
LIGHT = "lowres, jpeg artifacts, worst quality, watermark, blurry, very displeasing"
SMALL = {"width": 128, "height": 192, "seed": 1234567}
V3 = {"model": "nai-diffusion-3", "action": "generate"}

BODIES = {
    "official page, January 2024": {
        **V3, "input": "1girl, solo" + QUALITY,
        "parameters": {
            **SMALL, "params_version": 1, "scale": 5, "sampler": "k_euler", "steps": 28, "n_samples": 1, "ucPreset": 0,
            "qualityToggle": True, "sm": False, "sm_dyn": False, "dynamic_thresholding": False,
            "controlnet_strength": 1, "legacy": False, "add_original_image": False, "uncond_scale": 1,
            "cfg_rescale": 0, "noise_schedule": "native", "legacy_v3_extend": False,
            "reference_information_extracted": 1, "reference_strength": 0.6, "negative_prompt": f"nsfw, {HEAVY}",
        },
    },
    "official page, a `|` mix": {
        **V3, "input": f"cat{QUALITY}|dog{QUALITY}:0.5",
        "parameters": {**SMALL, "qualityToggle": True, "ucPreset": 1, "negative_prompt": f"nsfw, {LIGHT}, hat"},
    },
    "official page, 2026": {
        **V3, "input": "1girl, nsfw" + QUALITY, "use_new_shared_trial": True, "recaptcha_token": "x",
        "parameters": {
            **SMALL, "params_version": 3, "scale": 5, "sampler": "k_euler_ancestral", "steps": 23, "n_samples": 1,
            "ucPreset": 2, "qualityToggle": True, "autoSmea": True, "dynamic_thresholding": False,
            "controlnet_strength": 1, "legacy": False, "add_original_image": True, "cfg_rescale": 0,
            "noise_schedule": "karras", "legacy_v3_extend": False, "skip_cfg_above_sigma": None,
            "use_coords": False, "characterPrompts": [{"prompt": "boy", "uc": "", "center": {"x": 0, "y": 0}}],
            "v4_prompt": {"caption": {"base_caption": "ignored", "char_captions": []}},
            "reference_image_multiple": [], "reference_strength_multiple": [],
            "deliberate_euler_ancestral_bug": False, "prefer_brownian": True,
            "negative_prompt": HEAVY + ", bad anatomy, bad hands, @_@",
        },
    },
    "official page, no undesired content": {
        **V3, "input": "1girl",
        "parameters": {**SMALL, "qualityToggle": False, "ucPreset": 3, "negative_prompt": "lowres"},
    },
    "novelai-api": {
        **V3, "input": "1girl" + QUALITY,
        "parameters": {
            **SMALL, "auto_smea": False, "uc": f"nsfw, {HEAVY}", "negative_prompt": f"nsfw, {HEAVY}", "ucPreset": 4,
            "qualityToggle": True, "strength": 0.7, "noise": 0.0, "controlnet_strength": 1, "steps": 28, "scale": 5.0,
            "sampler": "k_euler_ancestral", "uncond_scale": 1.0,
        },
    },
    "novelai-python": {
        **V3, "input": "1girl" + QUALITY,
        "parameters": {
            **SMALL, "autoSmea": True, "negative_prompt": f"nsfw, {HEAVY}", "ucPreset": 0, "qualityToggle": True,
            "skip_cfg_above_sigma": 19, "extra_noise_seed": 77, "reference_image_multiple": [],
            "normalize_reference_strength_multiple": True, "deliberate_euler_ancestral_bug": False,
            "prefer_brownian": True, "noise_schedule": "karras", "sampler": "k_euler_ancestral",
        },
    },
    "novelai, the older package": {
        **V3, "input": "1girl" + QUALITY,
        "parameters": {
            **SMALL, "negative_prompt": ", " + HEAVY, "ucPreset": 2, "qualityToggle": True, "strength": 0.3, "noise": 0,
            "extra_noise_seed": 4, "scale": 6.0, "sm": True,
        },
    },
    "novelai-sdk": {
        **V3, "input": "1girl", "use_new_shared_trial": True,
        "parameters": {
            **SMALL, "prompt": "1girl, very aesthetic, masterpiece, no text", "negative_prompt": f", {HEAVY} , ",
            "ucPreset": 0, "qualityToggle": True, "strength": 0.7, "skip_cfg_above_sigma": 58,
            "img2img": {"strength": 0.7}, "inpaintImg2ImgStrength": 1,
        },
    },
    "nekoai-api": {
        **V3, "input": "1girl, {smile}" + QUALITY,
        "parameters": {**SMALL, "params_version": 3, "negative_prompt": HEAVY, "ucPreset": 0, "qualityToggle": True,
                       "scale": 6.0, "noise": 0.0, "extra_noise_seed": 9},
    },
    "SillyTavern": {
        "action": "generate", "model": "nai-diffusion-3", "input": "1girl, best quality",
        "parameters": {
            **SMALL, "seed": 9876543210, "negative_prompt": "bad", "sampler": "k_dpmpp_2m", "steps": 28, "scale": 9,
            "n_samples": 1, "ucPreset": 0, "qualityToggle": False, "add_original_image": False,
            "controlnet_strength": 1, "dynamic_thresholding": False, "legacy": False, "sm": False, "sm_dyn": False,
            "uncond_scale": 1,
        },
    },
    "koishi": {
        **V3, "input": "masterpiece, 1girl",
        "parameters": {**SMALL, "ucPreset": 2, "qualityToggle": False, "negative_prompt": "lowres", "sampler": "ddim_v3"},
    },
    "SDStudio": {
        "model": "nai-diffusion-3", "input": "1girl",
        "parameters": {**SMALL, "ucPreset": 3, "qualityToggle": True, "negative_prompt": "worst quality"},
    },
    "ComfyUI": {
        **V3, "input": "1girl",
        "parameters": {**SMALL, "prompt": "1girl", "v4_prompt": {"caption": {"base_caption": "1girl", "char_captions": []}},
                       "ucPreset": 3, "qualityToggle": False, "negative_prompt": "lowres", "skip_cfg_above_sigma": 19.3},
    },
    "NAI-Auto-Generator": {
        **V3, "input": "1girl",
        "parameters": {**SMALL, "model": "NAI Diffusion V3", "prompt": "1girl", "seed": 9999999999, "negative_prompt": "bad"},
    },
    "Kohaku": {**V3, "input": "1girl", "parameters": {**SMALL, "ucPreset": 0, "qualityToggle": True, "params_version": 1}},
    "NAIS2": {
        **V3, "input": "1girl",
        "parameters": {**SMALL, "ucPreset": 0, "extra_noise_seed": 3, "prefer_brownian": True,
                       "reference_image_multiple": [], "director_reference_images": [], "negative_prompt": ""},
    },
    "strings for booleans": {
        **V3, "input": "1girl",
        "parameters": {**SMALL, "qualityToggle": "true", "sm": "false", "sm_dyn": "False", "legacy": "false"},
    },
    "written by hand": {"input": "a cat", "parameters": {**SMALL, "qualityToggle": True, "ucPreset": 0}},
    "the least": {"input": "a cat", "parameters": SMALL},
}  # fmt: skip


def encode_image(pixels):
    """Pixels (height, width) or (height, width, 3 or 4) as a PNG in Base64."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return b64encode(file.getvalue()).decode()


def build_infill_bodies(prompt, pixels, mask):
    """The bodies that clients send to inpaint an image under a mask (height / 8, width / 8), with a strength of 0.7.

    Their masks cover all known formats.
    """
    height, width = pixels.shape[:2]
    small = mask * np.uint8(255)
    full = small.repeat(8, 0).repeat(8, 1)
    opaque = np.full_like(full, 255)
    size = {"width": width, "height": height, "seed": 4, "steps": 28, "scale": 5, "sampler": "k_euler", "ucPreset": 0}  # fmt: skip
    official = {
        **size, "params_version": 1, "n_samples": 1, "qualityToggle": True, "sm": False, "sm_dyn": False,
        "dynamic_thresholding": False, "controlnet_strength": 1, "legacy": False, "uncond_scale": 1, "cfg_rescale": 0,
        "noise_schedule": "native", "strength": 0.7, "noise": 0, "extra_noise_seed": 4,
        "image": encode_image(np.dstack([pixels, opaque])), "mask": encode_image(np.dstack([full] * 3 + [opaque])),
        "negative_prompt": f"nsfw, {HEAVY}",
    }  # fmt: skip
    infill = {"model": "nai-diffusion-3-inpainting", "action": "infill", "input": prompt + QUALITY}
    base = {**size, "image": encode_image(pixels), "negative_prompt": HEAVY, "strength": 0.7}
    return {
        "official page, January 2024": {**infill, "parameters": {**official, "add_original_image": True}},
        "official page, April 2024": {**infill, "parameters": {**official, "add_original_image": False}},
        "novelai-sdk": {
            **infill, "input": prompt, "use_new_shared_trial": True,
            "parameters": {
                **base, "prompt": prompt + ", very aesthetic, masterpiece, no text", "qualityToggle": True, "noise": 0.0,
                "img2img": {"strength": 0.7, "noise": 0.0, "color_correct": False, "extra_noise_seed": 77},
                "inpaintImg2ImgStrength": 1, "add_original_image": False, "skip_cfg_above_sigma": 58,
                "mask": official["mask"],
            },
        },
        "LlmKira": {
            **infill, "parameters": {**base, "noise": 0.0, "color_correct": True, "extra_noise_seed": 4, "mask": encode_image(full)},
        },
        "ComfyUI": {**infill, "parameters": {**base, "qualityToggle": False, "mask": encode_image(np.dstack([small] * 4))}},
        "nkdk": {**infill, "parameters": {**base, "mask": encode_image(small)}},
    }  # fmt: skip
