"""Tiny decoders of the TAESD family (madebyollin, 2023), which turn latents into previews better than a fitted map.

They can decode final images too, faster than the VAE and with less detail.

They decode the UNet's latents, without a scale. Two layouts are read: that of diffusers' AutoencoderTiny, a file or a
folder, and TAESD's own, a list of layers with one more at its head; an encoder next to the decoder is ignored.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from pipelines.errors import WeightsError
from pipelines.image.preview import DecodePreview
from pipelines.image.vae import to_bytes
from pipelines.weights.checkpoint import Checkpoint, open_checkpoint
from pipelines.weights.key_map import MappedKey
from pipelines.weights.naming import Naming
from pipelines.weights.networks import Vae, build_tiny_decoder, load_state
from pipelines.weights.reader import check_finite, read_tensors
from pipelines.weights.sources import Component, FoundWeights, find_weights

NOT_TINY = "not a TAESD-type decoder"
LATENT_CHANNELS = 4
DIFFUSERS_PREFIX = "decoder.layers."
LIST_PREFIXES = ("", "decoder.", "taesd_decoder.")
"""Before the number of a layer in TAESD's own layout: in a file of its own, and in files of more."""
ENCODERS = ("encoder.", "taesd_encoder.")
FIRST = "0.weight"
"""The first convolution; its shape (width, latent channels, 3, 3) shows both."""


class TinyVae:
    """A VAE whose images are decoded by a tiny decoder, as a `Vae`.

    Args:
        vae: encodes images.
        decoder: what `load_tiny_decoder` returns.
        scale: the factor between the VAE's latents and the UNet's.
    """

    def __init__(self, vae: Vae, decoder: nn.Module, scale: float) -> None:
        self._vae, self._decoder, self._scale = vae, decoder, scale
        self._dtype = _find_dtype(decoder)

    def decode(self, latents: Tensor) -> Tensor:
        return cast("Any", self._decoder)((latents.float() * self._scale).to(_find_dtype(self._decoder)))

    def encode(self, image: Tensor) -> Tensor:
        return self._vae.encode(image)

    def to(self, dtype: torch.dtype) -> object:
        self._vae.to(dtype)
        return nn.Module.to(self._decoder, torch.float32 if dtype == torch.float32 else self._dtype)

    def compile_decoder(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Do nothing: a tiny decoder is fast without."""


def load_tiny_decoder(path: Path, device: torch.device) -> nn.Module:
    """Load a decoder of latents (B, 4, h, w); raise WeightsError if a file is something else."""
    source, module, weights = plan_tiny_decoder(path)
    dtype = choose_decoder_dtype(device)
    load_state(module, read_tensors(source, weights, dtype))
    module.to(device, dtype)
    check_finite(source, weights, module)
    return module


def make_preview_decoder(decoder: nn.Module) -> DecodePreview:
    """Return what decodes previews with half the image's sides."""

    def decode_preview(latents: Tensor) -> Tensor:
        latents = latents[None].to(_find_dtype(decoder))
        image = cast("Tensor", cast("Any", decoder)(latents))[0].float()
        return to_bytes(avg_pool2d(image, 2))

    return decode_preview


def _find_dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def choose_decoder_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of tiny decoders: float16 on CUDA, else float32."""
    return torch.float16 if device.type == "cuda" else torch.float32


def plan_tiny_decoder(path: Path) -> tuple[Checkpoint, nn.Module, FoundWeights]:
    """Return a file, the empty network for it and where its weights are, from the header alone.

    Raises:
        WeightsError: it is no such decoder, is one for latents with other channels, or is incomplete.
    """
    source = open_checkpoint(path)
    tensors = {key: ref for key, ref in source.tensors.items() if not key.startswith(ENCODERS)}
    source = Checkpoint(path, source.layout, tensors, source.metadata)
    firsts = [DIFFUSERS_PREFIX + FIRST, *(prefix + _shift(FIRST) for prefix in LIST_PREFIXES)]
    first = source.find(tuple(firsts))
    if first is None:
        raise WeightsError(path, f"{NOT_TINY}: no {firsts[0]} or {firsts[1]}")
    if len(first.shape) != 4 or first.shape[2:] != (3, 3) or not first.shape[0]:
        raise WeightsError(path, f"{NOT_TINY}: its first layer has the shape {first.shape}")
    width, channels, *_ = first.shape
    if channels != LATENT_CHANNELS:
        reason = f"it decodes latents with {channels} channels; the model's have {LATENT_CHANNELS}"
        raise WeightsError(path, reason)
    module = build_tiny_decoder(width)
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    names = {name: name.removeprefix("layers.") for name in shapes}
    namings = [_name(DIFFUSERS_PREFIX, names)]
    namings += [_name(prefix, {name: _shift(key) for name, key in names.items()}) for prefix in LIST_PREFIXES]
    found = find_weights(source, [Component("preview decoder", shapes, namings)])
    return source, module, found["preview decoder"]


def _name(prefix: str, keys: dict[str, str]) -> Naming:
    return Naming(prefix, {name: (MappedKey(prefix + key),) for name, key in keys.items()})


def _shift(key: str) -> str:
    """Return a key in TAESD's own layout, whose list begins with a clamp."""
    number, _, rest = key.partition(".")
    return f"{int(number) + 1}.{rest}"
