"""Group normalization with what SDXL's networks do before and after it: a vector added to each image, and SiLU.

In eager torch these are up to three operations that each read and write the tensor, and CUDA's group norm answers a
channels-last tensor with a channels-first one, which the next convolution copies back (pytorch issue 111824).
"""

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.kernels.group_norm_plan import MAX_GROUP_SIZE, plan_group_norm
from pipelines.kernels.launch import Launch, run_launch
from pipelines.kernels.triton_support import can_launch

FUSED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
MAX_IMAGES = 65535
"""CUDA's limit for the third axis of a grid."""


def group_norm_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    silu: bool,
    shift: Tensor | None = None,
    *,
    fused: bool = True,
) -> Tensor:
    """Return x (B, C, H, W) normalized in groups of channels, in its dtype.

    With `fused`, GPUs with Triton read a channels-last x twice, write once, compute in float32 and return a
    channels-last tensor without a gradient. An image's result does not depend on the other images. Which of the two
    is used depends on the device, shape, dtype and layout of x alone; code that torch compiles has torch's own.

    Args:
        groups: a divisor of C.
        weight, bias: (C,).
        eps: is added to the variance.
        silu: whether SiLU follows.
        shift: (B, C), is added to all positions of x before; a resnet's time embedding.
    """
    if fused and can_launch(x.device) and is_group_norm_fusable(x, groups):
        return compute_fused_group_norm(x, groups, weight, bias, eps, silu, shift)
    return compute_eager_group_norm(x, groups, weight, bias, eps, silu, shift)


def is_group_norm_fusable(x: Tensor, groups: int) -> bool:
    """Return whether the kernels can read x: (B, C, H, W), channels-last, not empty, in a known dtype."""
    if x.dim() != 4 or x.dtype not in FUSED_DTYPES or x.numel() == 0 or x.shape[0] > MAX_IMAGES:
        return False
    if groups < 1 or x.shape[1] % groups or x.shape[1] // groups > MAX_GROUP_SIZE:
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def compute_eager_group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, shift: Tensor | None = None
) -> Tensor:
    """Return the same as `group_norm_silu` with torch's own operations, each of which rounds to the dtype of x."""
    if shift is not None:
        x = x + shift[:, :, None, None]
    x = functional.group_norm(x, groups, weight, bias, eps)
    return functional.silu(x) if silu else x


def compute_fused_group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, shift: Tensor | None = None
) -> Tensor:
    """Return the same as `group_norm_silu` with Triton's kernels. x is fusable.

    Raises:
        RuntimeError: weight, bias or shift does not have the size that x asks for.
    """
    images, channels = x.shape[:2]
    output = torch.empty_like(x, memory_format=torch.channels_last)
    # views cost nothing; without them a wrong size would be a read beyond the end
    vectors = (
        weight.view(channels).contiguous(),
        bias.view(channels).contiguous(),
        None if shift is None else shift.view(images, channels).contiguous(),
    )
    for launch in plan_fused_group_norm(x, groups, vectors, eps, silu, output):
        run_launch(launch, x.device)
    return output


def plan_fused_group_norm(
    x: Tensor,
    groups: int,
    vectors: tuple[Tensor, Tensor, Tensor | None],
    eps: float,
    silu: bool,
    output: Tensor,
) -> tuple[Launch, ...]:
    """Return the launches, in order, that write the result for a fusable x to `output`.

    `vectors` are weight, bias and shift, contiguous.
    """
    from pipelines.kernels.group_norm_kernels import plan_launches

    images, channels, height, width = x.shape
    plan = plan_group_norm(channels, height * width, groups)
    means, squares = torch.empty((2, images, plan.parts, groups), dtype=torch.float32, device=x.device)
    return plan_launches(plan, x, vectors, eps, silu, (means, squares, output))
