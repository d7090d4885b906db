"""A folder of forty files as users have them, with what `naiad check` has to say about each.

Files are headers over holes in the disk, except where their bytes matter. `python tests/assorted_files.py FOLDER`
writes them.
"""

import json
import pickle
import shutil
import struct
import sys
from pathlib import Path

from checkpoint_files import CONV_IN, CONV_OUT, MARKERS, SD1, SDXL, hollow

from demo.checkpoint import DEMO, INPAINTING, VIBE
from pipelines.weights.checkpoint import UNET_PREFIX
from pipelines.weights.header import read_header

LORA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
DOWN, UP = f"{LORA}.lora_down.weight", f"{LORA}.lora_up.weight"
LAYER = "text_model.encoder.layers.0.self_attn.q_proj.weight"
TENTH = f"{UNET_PREFIX}middle_block.1.transformer_blocks.9.norm1.weight"
INCOMPLETE = "missing"
"""A hollow file has the shapes by which its kind is found, but not all weights; detection comes first."""


def without(shapes, *keys):
    return {key: shape for key, shape in shapes.items() if key not in keys}


HOLLOW = {
    "sdxl-eps": (SDXL, None, INCOMPLETE),
    "sdxl-v-markers": (SDXL | MARKERS, None, INCOMPLETE),
    "sd15": (SD1, None, INCOMPLETE),
    "sd2": (SD1 | {f"{UNET_PREFIX}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 1024)}, None, "Stable Diffusion 2 (text width 1024)"),
    "sdxl-inpainting": (SDXL | {CONV_IN: (320, 9, 3, 3)}, None, "an inpainting model"),
    "cosxl-edit": (SDXL | {CONV_IN: (320, 8, 3, 3)}, None, "a UNet with 8 input channels"),
    "refiner": (SDXL | {CONV_IN: (384, 4, 3, 3)}, None, "the SDXL refiner"),
    "ssd-1b": (without(SDXL, TENTH), None, "a cut-down SDXL (SSD-1B or Vega)"),
    "playground": (SDXL | {"edm_mean": (4,), "edm_std": (4,)}, None, "Playground v2.5"),
    "noobaiRF_v01": (SDXL, None, "a rectified-flow model"),
    "metadata-flow": (SDXL, {"modelspec.prediction_type": "rectified_flow"}, "a rectified-flow model"),
    "markers-overrule": (SDXL | MARKERS, {"modelspec.prediction_type": "epsilon"}, INCOMPLETE),
    "wide-vae": (SDXL | {"first_stage_model.decoder.conv_in.weight": (512, 32, 3, 3)}, None, "32 latent channels"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": (9, 9)}, None, "a Flux model"),
    "sd3": ({"joint_blocks.0.x_block.attn.qkv.weight": (9, 9)}, None, "a Stable Diffusion 3 model"),
    "lcm": (SDXL | {f"{UNET_PREFIX}time_embedding.cond_proj.weight": (320, 256)}, None, "takes the guidance scale as an input"),
    "nf4": (SDXL | {f"{UNET_PREFIX}out.2.weight.quant_state.bitsandbytes__nf4": (9,)}, None, "bitsandbytes (nf4 or fp4)"),
    "gptq": (SDXL | {f"{UNET_PREFIX}out.2.qweight": (9,)}, None, "GPTQ or AWQ"),
    "vae": ({"decoder.conv_in.weight": (512, 4, 3, 3)}, None, "a VAE alone"),
    "clip-l": ({LAYER: (768, 768)}, None, "a text encoder alone"),
    "clip-vision-h": ({"vision_model.encoder.layers.0.mlp.fc1.weight": (9, 9)}, None, "an image encoder alone"),
    "lora-kohya": ({DOWN: (8, 640), UP: (640, 8)}, None, "a LoRA"),
    "lora-peft": ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": (8, 9)}, None, "a LoRA"),
    "lokr": ({f"{LORA}.lokr_w1": (4, 4), f"{LORA}.lokr_w2": (160, 160)}, None, "a LoRA"),
    "controlnet": ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, None, "a ControlNet"),
    "t2i-adapter": ({"adapter.body.0.resnets.0.block1.weight": (9, 9, 3, 3)}, None, "a T2I-Adapter"),
    "4x-anime": ({"model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)}, None, "an upscaling network"),
    "taesdxl_decoder": ({"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}, None, "a decoder of previews"),
    "negative-xl": ({"clip_l": (4, 768), "clip_g": (4, 1280)}, None, "a textual inversion"),
    "easynegative": ({"emb_params": (8, 768)}, None, "a textual inversion"),
    "unknown": ({"weights.0": (9, 9)}, None, "it contains no UNet of Stable Diffusion"),
}  # fmt: skip
"""Shapes, metadata, and a part of the line."""
BYTES = {
    "empty.safetensors": (b"", "an empty file"),
    "pointer.safetensors": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "a git-LFS pointer",
    ),
    "page.safetensors": (b"<!DOCTYPE html><html>", "a web page"),
    "gguf.safetensors": (b"GGUF\3\0\0\0" + bytes(64), "a GGUF file"),
    "renamed-pickle.safetensors": (pickle.dumps({"state_dict": list(range(99))}), "a pickle can run code"),
    "animefull.ckpt": (b"PK\3\4", "a pickle can run code"),
    "header.safetensors": (struct.pack("<Q", 9) + b"{not json", "its header is not JSON"),
}
"""Contents, and a part of the line."""
OWN = {
    "naiad-demo.safetensors": "OK, profile demo",
    "inpainting.safetensors": "an inpainting model",
    "adapter.safetensors": "an IP-Adapter",
    "truncated.safetensors": "truncated",
    "lost-markers.safetensors": "OK, profile sdxl-eps",
}
"""Files that are made of the demo's, and a part of the line."""
VERDICTS = (
    {f"{name}.safetensors": line for name, (_, _, line) in HOLLOW.items()}
    | {name: line for name, (_, line) in BYTES.items()}
    | OWN
)


def write_files(folder):
    """Write all files."""
    for name, (shapes, metadata, _) in HOLLOW.items():
        hollow(
            folder / f"{name}.safetensors",
            shapes | ({CONV_OUT: (4, 320, 3, 3)} if CONV_IN in shapes else {}),
            metadata,
        )
    for name, (content, _) in BYTES.items():
        (folder / name).write_bytes(content)
    sources = (DEMO, INPAINTING, VIBE)
    for name, source in zip(OWN, sources, strict=False):
        shutil.copyfile(source, folder / name)
    (folder / "truncated.safetensors").write_bytes(DEMO.read_bytes()[:-1000])
    _drop_markers(folder / "lost-markers.safetensors")
    (folder / "preview.png").write_bytes(b"")  # is passed over


def _drop_markers(path):
    """Copy the demo's file without the tensors that say what it predicts."""
    header, content = read_header(DEMO), DEMO.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    fields = json.loads(content[8:start])
    kept = {key: value for key, value in fields.items() if key not in MARKERS}
    kept["__metadata__"] = {"naiad.architecture": header.metadata["naiad.architecture"]}
    text = json.dumps(kept).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[start:])


if __name__ == "__main__":
    write_files(Path(sys.argv[1]))
