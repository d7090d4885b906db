"""The VAE. Its weights have the names that they have in diffusers' AutoencoderKL, whose output it returns."""

from torch import Tensor, nn

from pipelines.unet.layers import Resnet, make_list, normalize
from pipelines.vae.blocks import EPS, AttentionBlock, DecoderBlock, EncoderBlock, PositionAttention
from pipelines.vae.shape import VaeShape, read_vae_shape
from pipelines.weights.architecture import Config


class VaeModel(nn.Module):
    """A VAE, without randomness; its latents are the means of their distributions.

    Args:
        config: arguments of diffusers' class.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        shape = self.shape = read_vae_shape(config)
        self.encoder = VaeEncoder(shape)
        self.decoder = VaeDecoder(shape)
        self.quant_conv = nn.Conv2d(2 * shape.latents, 2 * shape.latents, 1)
        self.post_quant_conv = nn.Conv2d(shape.latents, shape.latents, 1)

    def encode(self, image: Tensor) -> Tensor:
        """Return latents (B, latents, h, w) for images (B, 3, 8h, 8w) with values in [-1, 1]."""
        means, _log_variances = self.quant_conv(self.encoder(image)).chunk(2, dim=1)
        return means

    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, 8h, 8w), with values in about [-1, 1], for latents (B, latents, h, w)."""
        return self.decoder(self.post_quant_conv(latents))

    def set_kernels(self, uses_kernels: bool) -> None:
        """Set whether Triton's kernels are used where they run."""
        for layer in self.modules():
            if isinstance(layer, VaeEncoder | VaeDecoder | Resnet | PositionAttention):
                layer.uses_kernels = uses_kernels


class VaeEncoder(nn.Module):
    """From images to the means and logarithms of variances of latents."""

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        widths, last = shape.widths, len(shape.widths) - 1
        inner = [widths[0], *widths]
        self.conv_in = nn.Conv2d(shape.inputs, widths[0], 3, padding=1)
        self.down_blocks = make_list(
            EncoderBlock(shape, inner[number], width, number == last) for number, width in enumerate(widths)
        )
        self.mid_block = AttentionBlock(shape)
        self.conv_norm_out = nn.GroupNorm(shape.groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * shape.latents, 3, padding=1)
        self.uses_kernels = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(normalize(self.mid_block(x), self.conv_norm_out, self.uses_kernels))


class VaeDecoder(nn.Module):
    """From latents to images."""

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        widths, last = shape.widths[::-1], len(shape.widths) - 1
        inner = [widths[0], *widths]
        self.conv_in = nn.Conv2d(shape.latents, widths[0], 3, padding=1)
        self.up_blocks = make_list(
            DecoderBlock(shape, inner[number], width, number == last) for number, width in enumerate(widths)
        )
        self.mid_block = AttentionBlock(shape)
        self.conv_norm_out = nn.GroupNorm(shape.groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], shape.outputs, 3, padding=1)
        self.uses_kernels = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(normalize(x, self.conv_norm_out, self.uses_kernels))
