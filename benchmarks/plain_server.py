"""A server as one writes it around diffusers: a pipeline and a lock, first come, first served. Part of `batching`.

It draws with the weights of the checkpoint that naiad serves, and reads the same requests as far as it needs them.
Run by benchmarks/batching.py: python -m benchmarks.plain_server CHECKPOINT --device cpu --port 8000.
"""

import argparse
import asyncio
import gzip
import io
import os
import zipfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Response
from PIL.Image import Image
from pydantic import BaseModel
from transformers import CLIPTokenizer

from benchmarks.diffusers_pipeline import build_pipeline
from pipelines.text.tokens import clip_tokenizer
from pipelines.weights.load import load_weights

Draw = Callable[["Parameters", str], list[Image]]


class Parameters(BaseModel):
    """What is read of a request's parameters."""

    width: int
    height: int
    steps: int
    scale: float
    seed: int
    n_samples: int = 1
    negative_prompt: str = ""


class GenerateRequest(BaseModel):
    """What is read of a request."""

    input: str
    parameters: Parameters


def build_tokenizer(padding: str) -> CLIPTokenizer:
    """Return a tokenizer of transformers with CLIP's vocabulary."""
    merges = gzip.decompress(files("pipelines.text").joinpath("clip/merges.txt.gz").read_bytes()).decode()
    pairs: Any = [tuple(line.split()) for line in merges.split("\n")]
    return CLIPTokenizer(
        vocab=clip_tokenizer().get_vocab(), merges=pairs, model_max_length=77, pad_token=padding
    )


def load_pipeline(checkpoint: Path, device: str) -> Draw:
    """Return a function that draws a request's images with diffusers' pipeline."""
    weights = load_weights(checkpoint, device=device)
    pipe = build_pipeline(weights, [build_tokenizer("<|endoftext|>"), build_tokenizer("!")])

    @torch.inference_mode()
    def draw(asked: Parameters, prompt: str) -> list[Image]:
        seeds = range(asked.seed, asked.seed + asked.n_samples)
        latents = pipe(
            prompt=prompt, negative_prompt=asked.negative_prompt, width=asked.width, height=asked.height,
            num_inference_steps=asked.steps, guidance_scale=asked.scale, num_images_per_prompt=asked.n_samples,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="latent",
        ).images  # fmt: skip
        latents = (latents / weights.architecture.latent_scale).to(weights.vae_dtype)
        decoded = torch.cat([pipe.vae.decode(each[None]).sample for each in latents])
        return pipe.image_processor.postprocess(decoded.float(), output_type="pil")

    return draw


def build_archive(images: list[Image]) -> bytes:
    """Return a ZIP of PNGs."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for index, image in enumerate(images):
            file = io.BytesIO()
            image.save(file, "PNG")
            archive.writestr(f"image_{index}.png", file.getvalue())
    return content.getvalue()


@asynccontextmanager
async def end_at_once(_app: FastAPI) -> AsyncGenerator[None]:
    """Leave what still waits in threads at the stop."""
    yield
    os._exit(0)


def create_app(draw: Draw) -> FastAPI:
    """Return an application that draws one request after another."""
    app, lock = FastAPI(lifespan=end_at_once), asyncio.Lock()

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/ai/generate-image")
    async def generate(request: GenerateRequest) -> Response:
        async with lock:
            images = await asyncio.to_thread(draw, request.parameters, request.input)
        content = await asyncio.to_thread(build_archive, images)
        return Response(content, media_type="application/zip")

    return app


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    app = create_app(load_pipeline(options.checkpoint, options.device))
    uvicorn.run(app, port=options.port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
