"""Networks built empty, behind typed interfaces; the encoders of text and images are those of transformers.

What is untyped in other libraries, or differs between their versions, is handled here and in the adapters' modules.
"""

from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pipelines.adapters.attention import ImageKeys, ImageProjections, RowVibe, project_image
from pipelines.compiled import CompiledShapes
from pipelines.errors import UnusableSetting
from pipelines.speed import Speed
from pipelines.text.tokens import EOS
from pipelines.types import AttentionBackend
from pipelines.unet.attention import Context
from pipelines.unet.graphs import CudaCapture, Outputs, UNetGraphs, UNetInputs, run_pass
from pipelines.unet.quantized_linear import QuantizedFormat
from pipelines.unet.unet import Residuals, UNetModel
from pipelines.vae.vae import VaeModel
from pipelines.weights.architecture import Architecture, Config, TextEncoderConfig

PENULTIMATE = 2
"""The layer of a text encoder that is used, counted from the last; users' interfaces call this CLIP skip 2."""


class UNet(Protocol):
    """A UNet, which predicts noise or velocity from noisy latents.

    What depends on the prompt alone, or on time and sizes, is computed apart from the pass over the latents.
    """

    def embed(self, timesteps: Tensor, pooled: Tensor | None, size_ids: Tensor | None) -> Tensor:
        """Return the embeddings (T, width) of timesteps (T,) for SDXL's pooled prompt (width,) and size ids (6,)."""
        ...

    def project(self, context: Tensor) -> Tensor:
        """Return the keys and values of all cross-attentions (tokens, width) for prompt embeddings (tokens, width)."""
        ...

    def project_image(self, vibe: RowVibe) -> ImageKeys:
        """Return the keys and values of all cross-attentions for a reference image."""
        ...

    def drop_graphs(self) -> None:
        """Free what was captured of passes; to be called before weights move."""
        ...

    def compile_passes(self) -> AbstractContextManager[None]:
        """Compile the passes that are run meanwhile for the shapes of their inputs, if that was chosen."""
        ...

    def __call__(
        self,
        sample: Tensor,
        embedding: Tensor,
        context: Context,
        halvings: int = 0,
        residuals: Residuals | None = None,
    ) -> Tensor:
        """Return the prediction, (B, 4, h, w).

        Args:
            sample: noisy latents, (B, 4, h, w), or (B, 9, h, w) for inpainting.
            embedding: of the time, the sizes and the pooled prompt of each row, (B, width).
            context: the keys and values of each row's prompt and images.
            halvings: 2x downscales of the inner features, see sampling/deep_shrink.py.
            residuals: of ControlNets for each row, None without any.
        """
        ...

    def run_full(self, sample: Tensor, embedding: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Return the prediction, and the deep features (B, width, h / 2, w / 2), for later passes of these rows."""
        ...

    def run_shallow(self, sample: Tensor, embedding: Tensor, context: Context, deep: Tensor) -> Tensor:
        """Return the prediction of the outermost level alone, with the deep features of an earlier pass."""
        ...


class Vae(Protocol):
    """A VAE; its latents are those of the network, before `latent_scale`."""

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents (B, 4, h, w) to images (B, 3, 8h, 8w), with values in about [-1, 1]."""
        ...

    def encode(self, image: Tensor) -> Tensor:
        """Return the mean of the posterior, so that the same image always gives the same latents."""
        ...

    def to(self, dtype: torch.dtype) -> object:
        """Change the dtype, in place."""
        ...

    def compile_decoder(self, sizes: Iterable[tuple[int, int]]) -> None:
        """Compile the decoder for one image of each size (h, w), in latents, if that was chosen; takes minutes."""
        ...


class TextEncoder(Protocol):
    """A CLIP text encoder.

    Attributes:
        pad: the token id that fills its 77 positions after the end of the text.
        width: of its token embeddings.
    """

    pad: int
    width: int

    def encode(
        self, ids: Tensor, vectors: Mapping[int, Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return a layer's hidden states (1, 77, width) for token ids (1, 77), and the pooled vector (1, width).

        The pooled vector is the projected last hidden state at the first end of text, None without a projection.

        Args:
            vectors: replace the token embeddings (width,) at these positions; the ids there have no effect.
        """
        ...


class TorchUNet:
    """A UNet on one device, as a `UNet`.

    Attributes:
        image_layers: the matrices of each cross-attention for image tokens, in the order of `attention_shapes`; none
            until an adapter is installed.
    """

    def __init__(self, config: Config) -> None:
        self.module = cast("UNetModel", build_empty(UNetModel, {"config": config}))
        self.image_layers: Sequence[ImageProjections] = ()
        self._graphs: UNetGraphs | None = None
        self._compiled: CompiledShapes | None = None
        self._compiles = False

    def optimize(self, speed: Speed, device: torch.device) -> None:
        """Set how the network runs; its weights must be on the device."""
        if speed.channels_last:
            cast("Any", self.module).to(memory_format=torch.channels_last)
        if speed.fused_projections:
            self.module.fuse()
        self.module.set_kernels(speed.kernels)
        if speed.graphs:
            self._graphs = UNetGraphs(self._run, CudaCapture(device))
        self._compiled = CompiledShapes("the UNet") if speed.compile_unet else None

    def quantize(self, name: QuantizedFormat, device: torch.device) -> None:
        """Quantize the layers that can be, on a device to which only they are moved; to be called before `optimize`."""
        self.module.quantize(name, device)

    def drop_graphs(self) -> None:
        """Free the graphs, which are captured again; to be called before weights move."""
        if self._graphs is not None:
            self._graphs.drop()

    @contextmanager
    def compile_passes(self) -> Generator[None]:
        try:
            self._compiles = True
            yield
        finally:
            self._compiles = False

    def _run(self, inputs: UNetInputs) -> Outputs:
        outputs = None if self._compiled is None else self._run_compiled(self._compiled, inputs)
        return run_pass(self.module, inputs) if outputs is None else outputs

    def _run_compiled(self, compiled: CompiledShapes, inputs: UNetInputs) -> Outputs | None:
        key, tensors = inputs.make_key(), inputs.list_tensors()
        if self._compiles and not compiled.is_known(key):
            # without the tensors, which what is compiled would keep
            structure = inputs.replace_tensors([tensor.to("meta") for tensor in tensors])
            module = self.module
            compiled.compile(key, lambda *new: run_pass(module, structure.replace_tensors(new)), tensors)
        return compiled.run(key, tensors)

    def _run_graph(self, inputs: UNetInputs) -> Outputs:
        return self._run(inputs) if self._graphs is None else self._graphs.run(inputs)

    @property
    def attention_shapes(self) -> tuple[tuple[int, int], ...]:
        """The shape of each cross-attention's matrix of keys, in the order in which image adapters number them."""
        layers = self.module.cross_attentions
        return tuple((layer.to_k.out_features, layer.to_k.in_features) for layer in layers)

    def embed(self, timesteps: Tensor, pooled: Tensor | None, size_ids: Tensor | None) -> Tensor:
        return self.module.embed(timesteps, pooled, size_ids)

    def project(self, context: Tensor) -> Tensor:
        return self.module.project(context)

    def project_image(self, vibe: RowVibe) -> ImageKeys:
        return project_image(vibe, self.image_layers)

    def __call__(
        self,
        sample: Tensor,
        embedding: Tensor,
        context: Context,
        halvings: int = 0,
        residuals: Residuals | None = None,
    ) -> Tensor:
        if residuals is not None:
            return self.module(sample, embedding, context, halvings, residuals)
        return self._run_graph(UNetInputs(sample, embedding, context, halvings))[0]

    def run_full(self, sample: Tensor, embedding: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        first, second = self._run_graph(UNetInputs(sample, embedding, context, returns_deep=True))
        return first, second

    def run_shallow(self, sample: Tensor, embedding: Tensor, context: Context, deep: Tensor) -> Tensor:
        if not self.module.shape.levels[0].depth:  # without attention, one graph serves all prompts
            context = Context(context.keys_values[:, :0])
        return self._run_graph(UNetInputs(sample, embedding, context, deep=deep))[0]


class TorchVae:
    """A VAE on one device, as a `Vae`."""

    def __init__(self, config: Config) -> None:
        self.module = cast("VaeModel", build_empty(VaeModel, {"config": config}))
        self._compiled: CompiledShapes | None = None

    def optimize(self, speed: Speed) -> None:
        """Set how the network runs; its weights must be on the device."""
        if speed.channels_last:
            cast("Any", self.module).to(memory_format=torch.channels_last)
        self.module.set_kernels(speed.kernels)
        self._compiled = CompiledShapes("the VAE's decoder") if speed.compile_vae else None

    def compile_decoder(self, sizes: Iterable[tuple[int, int]]) -> None:
        if self._compiled is not None:
            weight, generator = self.module.post_quant_conv.weight, torch.Generator().manual_seed(0)
            for size in sizes:
                noise = torch.randn(1, self.module.shape.latents, *size, generator=generator)
                self._compile_for(self._compiled, noise.to(weight.device, weight.dtype))

    def _compile_for(self, compiled: CompiledShapes, latents: Tensor) -> bool:
        def decode(latents: Tensor) -> tuple[Tensor]:
            return (self.module.decode(latents),)

        return compiled.compile(_make_key(latents), decode, [latents])

    def decode(self, latents: Tensor) -> Tensor:
        outputs = None if self._compiled is None else self._compiled.run(_make_key(latents), [latents])
        return self.module.decode(latents) if outputs is None else outputs[0]

    def encode(self, image: Tensor) -> Tensor:
        return self.module.encode(image)

    def to(self, dtype: torch.dtype) -> object:
        # else the weights became tensors of another kind, which code that was compiled refuses
        with torch.inference_mode(False):
            return nn.Module.to(self.module, dtype)


def _make_key(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.dtype


class ClipTextEncoder:
    """transformers' CLIP text model as a `TextEncoder`."""

    def __init__(self, config: TextEncoderConfig, clip_skip: int | None = None) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        self.pad = config.pad
        self.width = config.width
        self._layer = -(clip_skip or PENULTIMATE)
        self._final_norm, self._projection = config.final_norm, config.projection
        model = CLIPTextModelWithProjection if config.projection else CLIPTextModel
        clip_config = cast("Any", CLIPTextConfig)(**config.config)
        self.module = build_empty(cast("Callable[..., nn.Module]", model), {"config": clip_config})
        self._vectors: Mapping[int, Tensor] = {}
        self.core.get_submodule("embeddings.token_embedding").register_forward_hook(self._replace_embeddings)

    @property
    def core(self) -> nn.Module:
        """The module under `text_model`, a level that newer transformers dropped in models without a projection."""
        return cast("nn.Module", getattr(self.module, "text_model", self.module))

    def encode(
        self, ids: Tensor, vectors: Mapping[int, Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        self._vectors = vectors or {}
        try:
            output = cast("Any", self.module)(ids, output_hidden_states=True)
        finally:
            self._vectors = {}
        hidden = cast("Tensor", output.hidden_states[self._layer])
        if self._final_norm:
            hidden = cast("Any", self.core).final_layer_norm(hidden)
        if not self._projection:
            return hidden, None
        end_of_text = (ids[0] == EOS).int().argmax()[None]  # stays on the device: reading it would wait
        last = cast("Tensor", output.last_hidden_state).index_select(1, end_of_text)[:, 0]
        return hidden, cast("Any", self.module).text_projection(last)

    def _replace_embeddings(self, _module: nn.Module, _args: object, embeddings: Tensor) -> Tensor:
        """Put the vectors of textual inversions in place of token embeddings (1, 77, width)."""
        if not self._vectors:
            return embeddings
        replaced = embeddings.clone()
        for position, vector in self._vectors.items():
            replaced[0, position] = vector.to(replaced)
        return replaced


class ClipImageEncoder:
    """transformers' CLIP image model with a projection.

    Args:
        config: arguments of `CLIPVisionConfig`.
    """

    def __init__(self, config: Config) -> None:
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        self.config = cast("Any", CLIPVisionConfig)(**config)
        build = cast("Callable[..., nn.Module]", CLIPVisionModelWithProjection)
        self.module = build_empty(build, {"config": self.config})

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, width) of normalized images, and the penultimate layer's states."""
        output = cast("Any", self.module)(pixel_values=pixels, output_hidden_states=True)
        return output.image_embeds, output.hidden_states[-PENULTIMATE]


def build_empty(build: Callable[..., nn.Module], config: Config) -> nn.Module:
    """Build a network on the meta device, in evaluation mode and without gradients."""
    with torch.device("meta"):
        return build(**config).eval().requires_grad_(False)


def build_networks(
    architecture: Architecture, clip_skip: int | None = None
) -> tuple[TorchUNet, TorchVae, tuple[ClipTextEncoder, ...]]:
    """Build all networks of an architecture on the meta device, without memory for their weights.

    The text encoders return the hidden states of their penultimate layer, or of layer `clip_skip` from the end.
    """
    text_encoders = tuple(ClipTextEncoder(config, clip_skip) for config in architecture.text_encoders)
    return TorchUNet(architecture.unet), TorchVae(architecture.vae), text_encoders


def build_tiny_decoder(width: int) -> nn.Module:
    """Build the decoder of diffusers' AutoencoderTiny with `width` features on the meta device."""
    from diffusers import AutoencoderTiny  # pyright: ignore[reportPrivateImportUsage]

    config = {"decoder_block_out_channels": (width,) * 4}
    return cast("Any", build_empty(cast("Callable[..., nn.Module]", AutoencoderTiny), config)).decoder


def load_state(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Assign weights to an empty network without copying them, and create the buffers that files do not contain.

    The keys of `tensors` must be those of the module's state dict.
    """
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    module.requires_grad_(False)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            assert name.endswith("position_ids"), name
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer("position_ids", torch.arange(buffer.shape[-1])[None], persistent=False)


def set_attention(unet: TorchUNet, backend: AttentionBackend) -> None:
    """Set the attention kernels; raise UnusableSetting if xformers is not installed or does not fit torch."""
    if backend == "sdpa":
        return
    try:
        import xformers.ops as xformers  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError):
        reason = "attention is set to xformers, which is not installed: pip install naiad[xformers]"
        raise UnusableSetting(reason) from None
    unet.module.set_attention(partial(_attend_with, cast("Any", xformers).memory_efficient_attention))


def _attend_with(attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Call xformers' function, whose heads follow the positions."""
    return attend(*(part.transpose(1, 2) for part in (query, key, value))).transpose(1, 2)
