"""What networks of known prediction types show to the probe that decides about unmarked files.

    python -m benchmarks.probe FOLDER [--steps 900]

Trains a twin of the demo model that predicts noise (FOLDER keeps it), then probes it, the demo model and its inpainting
UNet, each also with random changes to all weights, and the demo's outputs converted to x0 and rectified flow.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import machine
from demo.captions import write_caption
from demo.checkpoint import DEMO
from demo.latents import build_latent_cache
from demo.model import load_model, save_model
from demo.text_encoders import split_captions
from pipelines.sampling.prediction import scaled_linear
from pipelines.unet.attention import Context
from pipelines.weights.load import load_weights
from pipelines.weights.networks import Residuals, UNet
from pipelines.weights.probe import Probe, probe_unet

RESULTS = Path(__file__).parent / "results" / "probe.json"
SIZE, SCENES, BATCH, LEARNING_RATE = (256, 256), 160, 6, 4e-4
CHANGES = (0.0, 0.01, 0.03, 0.1)
"""Standard deviations of the changes to weights, as shares of each tensor's own."""
SIGMAS = torch.tensor(scaled_linear().sigmas)


def train_twin(folder: Path, steps: int) -> Path:
    """Train the demo's UNet to predict noise on Stable Diffusion's own noise table, and return its file."""
    file = folder / "eps-twin.safetensors"
    if file.exists():
        return file
    model, vae = load_model(DEMO)
    cache = build_latent_cache(folder, SIZE, SCENES, vae)
    alphas, rng = (SIGMAS**2 + 1).rsqrt(), np.random.default_rng(1)
    model.requires_grad_(False).unet.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.unet.parameters(), lr=LEARNING_RATE, weight_decay=0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / 30) * (1 - step / steps) + 1e-6
        chosen = rng.integers(0, SCENES, BATCH).tolist()
        times = torch.from_numpy(rng.integers(0, 1000, BATCH))
        times[torch.from_numpy(rng.random(BATCH) < 0.1)] = 999
        alpha, clean = alphas[times][:, None, None, None], cache.select_latents(chosen)
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        captions = split_captions([write_caption(cache.scenes[k], rng) for k in chosen], max_chunks=1)
        noisy = alpha * clean + (1 - alpha**2).sqrt() * noise
        loss = (model(noisy, times, captions, cache.select_size_ids(chosen)) - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.unet.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)
    save_model(model, vae, file)
    return file


class ConvertedUNet:
    """A UNet whose output is `to_output(noise, x0)` of another one's estimates from velocity.

    Its embedding begins with the timestep.
    """

    def __init__(self, unet: UNet, to_output: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._unet, self._to_output = unet, to_output
        self.project, self.project_image = unet.project, unet.project_image
        self.drop_graphs, self.compile_passes = unet.drop_graphs, unet.compile_passes
        self.run_full, self.run_shallow = unet.run_full, unet.run_shallow

    def embed(self, timesteps: Tensor, pooled: Tensor | None, size_ids: Tensor | None) -> Tensor:
        return torch.cat([timesteps[:, None], self._unet.embed(timesteps, pooled, size_ids)], dim=1)

    def __call__(
        self,
        sample: Tensor,
        embedding: Tensor,
        context: Context,
        halvings: int = 0,
        residuals: Residuals | None = None,
    ) -> Tensor:
        velocity = self._unet(sample, embedding[:, 1:], context, halvings, residuals)
        sigma = SIGMAS[embedding[:, 0].long()][:, None, None, None]
        alpha = (sigma**2 + 1).rsqrt()
        noise, x0 = alpha * velocity + sigma * alpha * sample, alpha * sample - sigma * alpha * velocity
        return self._to_output(noise, x0)


@torch.no_grad()
def perturb(module: torch.nn.Module, share: float) -> None:
    """Add normal noise to all weights, in proportion to each tensor's standard deviation."""
    generator = torch.Generator().manual_seed(2)
    for parameter in module.parameters():
        if parameter.numel() > 1:
            parameter += share * parameter.std() * torch.randn(parameter.shape, generator=generator)


def measure(twin: Path) -> Iterator[tuple[str, Probe]]:
    inpainting = DEMO.with_name("naiad-demo-inpainting.safetensors")
    for share in CHANGES:
        suffix = f", weights changed by {share:.0%}" if share else ""
        weights, eps = load_weights(DEMO, inpainting=inpainting), load_weights(twin)
        unets = [("velocity: demo", weights, weights.unet, 4), ("noise: twin", eps, eps.unet, 4)]
        unets.append(("velocity: demo's inpainting UNet", weights, cast("Any", weights.inpainting), 9))
        for name, model, unet, channels in unets:
            perturb(cast("Any", unet).module, share)
            yield name + suffix, probe_unet(model, unet, channels)
    demo = load_weights(DEMO)
    kinds = {
        "noise": lambda noise, x0: noise,
        "x0": lambda noise, x0: x0,
        "rectified flow": lambda noise, x0: noise - x0,
    }
    for name, to_output in kinds.items():
        yield f"{name}: demo, converted", probe_unet(demo, ConvertedUNet(demo.unet, to_output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="keeps the twin and its training data")
    parser.add_argument("--steps", type=int, default=900, help="of the twin's training")
    arguments = parser.parse_args()
    rows = []
    print(f"{'network':<52}{'cosine at 999':>14}{'noise':>8}{'image':>8}  decision")
    for name, probe in measure(train_twin(arguments.folder, arguments.steps)):
        print(f"{name:<52}{probe.cosine:>14.3f}{probe.noise:>8.2f}{probe.image:>8.2f}  {probe.decide()}")
        rows.append({"network": name, "decision": probe.decide(), **asdict(probe)})
    RESULTS.write_text(json.dumps({"machine": machine(), "networks": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
