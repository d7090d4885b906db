"""Vibe transfer: encodes reference images to tokens, which a UNet attends to (see attention.py)."""

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pipelines.adapters.attention import RowVibe, RowVibes
from pipelines.adapters.vibe_plan import VibePlan, plan_vibe
from pipelines.errors import NotFinite, PipelineError
from pipelines.job import EncodedVibe, RgbImage, Vibe
from pipelines.weights.networks import TorchUNet

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""CLIP's normalization of red, green and blue."""
CACHE_SIZE = 64
"""Number of encoded images that are kept; the tokens of one have at most some 100 KB."""


def load_vibe(
    path: Path,
    image_encoder: Path | None,
    unets: Sequence[TorchUNet],
    device: torch.device,
    dtype: torch.dtype,
    strength: float = 1.0,
) -> "VibeEncoder":
    """Load an adapter and install it in UNets of the same shape; the arguments are those of `plan_vibe`.

    Args:
        strength: factor of all strengths.
    """
    plan = plan_vibe(path, image_encoder, unets[0].attention_shapes)
    for part in plan.parts:
        part.fill(device, dtype)
    for unet in unets:
        unet.image_layers = plan.layers
    return VibeEncoder(plan, device, dtype, strength)


class VibeEncoder:
    """Encodes reference images to tokens, and caches these by the images' content."""

    def __init__(
        self, plan: VibePlan, device: torch.device, dtype: torch.dtype, strength: float = 1.0
    ) -> None:
        self._adapter, self._encoder, self._projection = plan.adapter, plan.encoder, plan.projection
        self._device, self._dtype, self._strength = device, dtype, strength
        self._cache: OrderedDict[tuple[bytes, float], Tensor] = OrderedDict()
        self._uncond: Tensor | None = None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The networks besides those in the UNet."""
        return self._encoder.module, self._projection

    def prepare(self, vibes: Sequence[Vibe]) -> tuple[RowVibes, RowVibes]:
        """Return the vibes of a row with the prompt, and of a row without it; images of strength 0 are left out.

        The row without the prompt attends, at the same scales, to the tokens that stood for no image in training.
        """
        used = [vibe for vibe in vibes if vibe.strength]
        scales = [vibe.strength * self._strength for vibe in used]
        cond = (self._read_tokens(vibe) for vibe in used)
        uncond = self._encode_nothing() if used else torch.empty(0)
        return (
            tuple(RowVibe(tokens, scale) for tokens, scale in zip(cond, scales, strict=True)),
            tuple(RowVibe(uncond, scale) for scale in scales),
        )

    def encode(self, image: RgbImage, information_extracted: float = 1.0) -> EncodedVibe:
        """Return the tokens of a square image."""
        tokens = self._encode_cached(image, information_extracted)
        values = tokens.float().cpu().numpy().astype("<f4").tobytes()
        return EncodedVibe(self._adapter.count, self._adapter.width, values, information_extracted)

    def _read_tokens(self, vibe: Vibe) -> Tensor:
        source = vibe.source
        if isinstance(source, RgbImage):
            return self._encode_cached(source, vibe.information_extracted)
        if (source.count, source.width) != (self._adapter.count, self._adapter.width):
            raise PipelineError("the vibe was encoded by another image adapter")
        values = torch.tensor(np.frombuffer(source.values, "<f4"))
        return values.reshape(self._adapter.count, self._adapter.width).to(self._device, self._dtype)

    def _encode_cached(self, image: RgbImage, information_extracted: float) -> Tensor:
        key = sha256(image.rgb).digest(), information_extracted
        if key not in self._cache:
            tokens = self._encode(self._normalize(image, information_extracted))
            if not tokens.isfinite().all():
                raise NotFinite("the image encoder returned NaN or infinity")
            self._cache[key] = tokens
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _encode(self, pixels: Tensor) -> Tensor:
        embedding, states = self._encoder.encode(pixels)
        return self._projection(embedding if self._adapter.kind == "base" else states)[0]

    def _encode_nothing(self) -> Tensor:
        """Return the tokens for no image: of an embedding of zeros, and for "plus" of an image of zeros."""
        if self._uncond is None:
            self._uncond = self._project_zeros()
        return self._uncond

    def _project_zeros(self) -> Tensor:
        config = self._encoder.config
        if self._adapter.kind == "base":
            embedding = torch.zeros(1, config.projection_dim, device=self._device, dtype=self._dtype)
            return self._projection(embedding)[0]
        shape = 1, 3, config.image_size, config.image_size
        return self._encode(torch.zeros(shape, device=self._device, dtype=self._dtype))

    def _normalize(self, image: RgbImage, information_extracted: float) -> Tensor:
        """Return an image as the encoder takes it: (1, 3, side, side)."""
        side = self._encoder.config.image_size
        picture = Image.frombytes("RGB", (image.width, image.height), image.rgb)
        picture = reduce_detail(picture.resize((side, side), Image.Resampling.BICUBIC), information_extracted)
        values = torch.tensor(np.array(picture), dtype=torch.float32, device=self._device) / 255
        mean, std = (torch.tensor(statistic, device=self._device) for statistic in (MEAN, STD))
        return ((values - mean) / std).permute(2, 0, 1)[None].to(self._dtype)


def reduce_detail(picture: Image.Image, share: float) -> Image.Image:
    """Return a square image with a share of its resolution, at its own size: fine content goes first, colors last."""
    if share >= 1:
        return picture
    side = max(1, round(picture.width * share))
    small = picture.resize((side, side), Image.Resampling.BOX)
    return small.resize(picture.size, Image.Resampling.BICUBIC)
