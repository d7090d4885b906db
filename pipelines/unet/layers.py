"""Convolutional layers: residual blocks, and the change between two resolutions (Rombach et al. 2022)."""

from collections.abc import Iterable
from typing import TypeVar, cast

from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipelines.kernels.group_norm import group_norm_silu


class Resnet(nn.Module):
    """A residual block of two convolutions, conditioned on an embedding between them.

    Args:
        embedding: width of the embedding; None without one, as in a VAE.
    """

    def __init__(self, inner: int, outer: int, embedding: int | None, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inner, eps)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.time_emb_proj = None if embedding is None else nn.Linear(embedding, outer)
        self.norm2 = nn.GroupNorm(groups, outer, eps)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.uses_kernels = False
        self.conv_shortcut = None if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Return features (B, outer, h, w) for features (B, inner, h, w) and an activated embedding (B, width)."""
        features = self.conv1(normalize(x, self.norm1, self.uses_kernels))
        shift = None if self.time_emb_proj is None else self.time_emb_proj(embedding)
        features = self.conv2(normalize(features, self.norm2, self.uses_kernels, shift=shift))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + features


class Downsampler(nn.Module):
    """Halves height and width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsampler(nn.Module):
    """Enlarges features to a size, which is about twice theirs."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(interpolate(x, size=size, mode="nearest"))


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def make_list(modules: Iterable[ModuleT]) -> list[ModuleT]:
    """Return an `nn.ModuleList`, which torch does not type, as a list."""
    return cast("list[ModuleT]", nn.ModuleList(modules))


def normalize(
    x: Tensor, norm: nn.GroupNorm, uses_kernels: bool, *, silu: bool = True, shift: Tensor | None = None
) -> Tensor:
    """Return normalized features (B, width, h, w), and their SiLU if `silu`.

    Args:
        uses_kernels: whether Triton's kernels are used where they run.
        shift: (B, width), is added before.
    """
    groups, weight, bias = norm.num_groups, norm.weight, norm.bias
    return group_norm_silu(x, groups, weight, bias, norm.eps, silu, shift, fused=uses_kernels)
