"""UNets for tests: wrapped ones that record or change passes, and a pass over inputs as diffusers takes them."""

from dataclasses import replace

import torch

from demo.architecture import demo_architecture
from pipelines.adapters.attention import group_images
from pipelines.unet.attention import Context

SMALL = {
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 1],
    "attention_head_dim": [2, 4],
}


def shrink_demo(channels=4):
    """Return SDXL's architecture with two levels: half as many operations as the demo model's."""
    full = demo_architecture(channels)
    return replace(full, unet={**full.unet, **SMALL})


class Tape:
    """A capture of passes that calls them again into their first outputs, as a GPU's graph does.

    Attributes:
        captured: the outputs of each captured pass.
        replays: number of passes that were repeated.
    """

    def __init__(self):
        self.captured, self.replays = [], 0

    def capture(self, function):
        outputs = function()
        self.captured.append(outputs)

        def replay():
            self.replays += 1
            for output, repeated in zip(outputs, function(), strict=True):
                output.copy_(repeated)

        return replay, outputs


class WrappedUNet:
    """A UNet whose passes are those of `call(unet, sample, embedding, context, halvings, residuals)`."""

    def __init__(self, unet, call):
        self._unet, self._call = unet, call
        self.project, self.project_image = unet.project, unet.project_image
        self.drop_graphs, self.compile_passes = unet.drop_graphs, unet.compile_passes
        self.run_full, self.run_shallow = unet.run_full, unet.run_shallow

    def embed(self, timesteps, pooled, size_ids):
        return self._unet.embed(timesteps, pooled, size_ids)

    def __call__(self, sample, embedding, context, halvings=0, residuals=None):
        return self._call(self._unet, sample, embedding, context, halvings, residuals)


class TimedUNet(WrappedUNet):
    """Likewise, with the timesteps (B,) in place of the embedding, which is passed on to the UNet by `run`."""

    def __init__(self, unet, call):
        super().__init__(unet, lambda unet, sample, embedding, *inputs: call(
            lambda: unet(sample, embedding[:, 1:], *inputs), sample, embedding[:, 0]
        ))  # fmt: skip

    def embed(self, timesteps, pooled, size_ids):
        return torch.cat([timesteps[:, None], self._unet.embed(timesteps, pooled, size_ids)], dim=1)


def run_unet(unet, sample, timesteps, context, added=None, halvings=0, vibes=(), residuals=None):
    """Return a UNet's output for rows of inputs as diffusers takes them; `vibes` has the images of each row."""
    rows = range(len(sample))
    pooled, ids = ([None] * len(sample),) * 2 if added is None else (added["text_embeds"], added["time_ids"])
    embeddings = [unet.embed(timesteps[k : k + 1], pooled[k], ids[k])[0] for k in rows]
    keys_values = torch.stack([unet.project(context[k]) for k in rows])
    images = group_images([[unet.project_image(vibe) for vibe in row] for row in vibes])
    return unet(sample, torch.stack(embeddings), Context(keys_values, images), halvings, residuals)


def run_random(unet):
    """Return the output of a small UNet for random inputs."""
    generator = torch.Generator().manual_seed(9)
    context = torch.randn(2, 77, unet.module.shape.context, generator=generator)
    added = {"text_embeds": torch.randn(2, 24, generator=generator), "time_ids": torch.full((2, 6), 64.0)}
    sample = torch.randn(2, 4, 16, 8, generator=generator)
    added = added if unet.module.add_embedding else None
    with torch.inference_mode():
        return run_unet(unet, sample, torch.tensor([500, 20]), context, added)


def close(found, expected):
    """Assert that outputs are the same but for other kernels for the same sums in float32."""
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)


def list_scales(context):
    """Return the scales of each row's images in a pass; no rows if none has images."""
    if not context.images:
        return []
    rows = [()] * len(context.keys_values)
    for group in context.images:
        indices = range(len(rows)) if group.rows is None else group.rows.tolist()
        for row, scales in zip(indices, group.scales.flatten(1).tolist(), strict=True):
            rows[row] = tuple(round(scale, 6) for scale in scales)
    return rows
