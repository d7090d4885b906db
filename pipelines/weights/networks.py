"""The one typed door to diffusers and transformers: networks built empty, and the little we ask of them.

What is untyped or differs between their versions is met here and nowhere else.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pipelines.errors import PipelineError
from pipelines.sampling.deep_shrink import DeepShrink
from pipelines.text.tokens import EOS
from pipelines.types import AttentionBackend
from pipelines.weights.architecture import Architecture, Config, TextEncoderConfig


class UNet(Protocol):
    """Predicts from noisy latents."""

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None,
        halvings: int = 0,
    ) -> Tensor:
        """(B, 4 | 9, h, w), (B,), (B, tokens, width) and SDXL's pooled text and size ids to (B, 4, h, w).

        Args:
            halvings: how often the inner part halves the height and width, see deep_shrink.py.
        """
        ...


class Vae(Protocol):
    """A VAE; latents here are the network's own, not yet scaled."""

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 4, h, w) to a picture (B, 3, 8h, 8w) in about [-1, 1]."""
        ...

    def encode(self, picture: Tensor) -> Tensor:
        """The mean of the posterior: the same picture gives the same latents."""
        ...

    def to(self, dtype: torch.dtype) -> object:
        """Change what it computes in, in place."""
        ...


class TextEncoder(Protocol):
    """A CLIP text encoder; `pad` is the id that fills its 77 places behind the end of the text."""

    pad: int

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """77 ids (1, 77) to the penultimate hidden states (1, 77, width) and the pooled vector (1, width).

        The vector is the projected last state at the first end of text, None without a projection.
        """
        ...


class DiffusersUNet:
    """A diffusers UNet that returns its output bare."""

    def __init__(self, config: Config) -> None:
        from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]

        self.module = _empty(cast("Callable[..., nn.Module]", UNet2DConditionModel), config)
        self._shrink = DeepShrink(self.module)

    def __call__(
        self,
        sample: Tensor,
        timestep: Tensor,
        context: Tensor,
        added_cond_kwargs: Mapping[str, Tensor] | None,
        halvings: int = 0,
    ) -> Tensor:
        """See UNet."""
        with self._shrink.shrink(halvings):
            output = self.module(
                sample, timestep, context, added_cond_kwargs=added_cond_kwargs, return_dict=False
            )
        return cast("Tensor", output[0])


class DiffusersVae:
    """A diffusers AutoencoderKL without randomness or wrappers."""

    def __init__(self, config: Config) -> None:
        from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

        self.module = _empty(cast("Callable[..., nn.Module]", AutoencoderKL), config)

    def decode(self, latents: Tensor) -> Tensor:
        """See Decoder."""
        return cast("Any", self.module).decode(latents, return_dict=False)[0]

    def encode(self, picture: Tensor) -> Tensor:
        """See Decoder."""
        return cast("Any", self.module).encode(picture).latent_dist.mode()

    def to(self, dtype: torch.dtype) -> object:
        """See Decoder."""
        return nn.Module.to(self.module, dtype)


class ClipTextEncoder:
    """transformers' CLIP, seen as a TextEncoder."""

    def __init__(self, tower: TextEncoderConfig) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        self.pad = tower.pad
        self._final_norm, self._projects = tower.final_norm, tower.projection
        kind = CLIPTextModelWithProjection if tower.projection else CLIPTextModel
        settings = cast("Any", CLIPTextConfig)(**tower.config)
        self.module = _empty(cast("Callable[..., nn.Module]", kind), {"config": settings})

    @property
    def core(self) -> nn.Module:
        """The module under `text_model`, a level that newer transformers dropped where there is no projection."""
        return cast("nn.Module", getattr(self.module, "text_model", self.module))

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """See TextEncoder."""
        output = cast("Any", self.module)(ids, output_hidden_states=True)
        hidden = cast("Tensor", output.hidden_states[-2])
        if self._final_norm:
            hidden = cast("Any", self.core).final_layer_norm(hidden)
        if not self._projects:
            return hidden, None
        end = int((ids[0] == EOS).int().argmax())
        return hidden, cast("Any", self.module).text_projection(output.last_hidden_state[:, end])


def _empty(build: Callable[..., nn.Module], config: Config) -> nn.Module:
    """A network without memory for its weights, in evaluation mode and out of autograd's sight."""
    with torch.device("meta"):
        return build(**config).eval().requires_grad_(False)


def build_networks(
    architecture: Architecture,
) -> tuple[DiffusersUNet, DiffusersVae, tuple[ClipTextEncoder, ...]]:
    """All the networks of an architecture, on the meta device."""
    towers = tuple(ClipTextEncoder(tower) for tower in architecture.text_encoders)
    return DiffusersUNet(architecture.unet), DiffusersVae(architecture.vae), towers


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give an empty network its weights without copying them; buffers that files do not hold are made anew.

    Args:
        tensors: exactly the keys of the module's state dict.
    """
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    module.requires_grad_(False)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            assert name.endswith("position_ids"), name
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer("position_ids", torch.arange(buffer.shape[-1])[None], persistent=False)


def set_attention(unet: DiffusersUNet, kind: AttentionBackend) -> None:
    """Choose the attention kernels; torch's own are in place already.

    Raises:
        PipelineError: xformers is asked for and not installed, or does not fit this torch.
    """
    if kind == "sdpa":
        return
    try:
        import xformers.ops  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except (ImportError, OSError):
        raise PipelineError(
            "attention is set to xformers, which is not installed: pip install naiad[xformers]"
        ) from None
    from diffusers.models.attention_processor import XFormersAttnProcessor

    cast("Any", unet.module).set_attn_processor(XFormersAttnProcessor())
