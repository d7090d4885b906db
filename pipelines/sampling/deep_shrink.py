"""Deep shrink: in the early steps the inner part of a UNet works on half the height and width, or a quarter.

On images much larger than a model was trained on, its inner layers see only parts of the image, and limbs and people
are repeated. Downscaling their features while the composition is decided prevents that (kohya-ss, "deep shrink", 2023).
The features are downscaled behind the first downsampler, repeatedly until they reach an area the model was trained
on, and upscaled before the up block that undoes that downsampler. plan.choose_downscales gives the number.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import interpolate


def shrink(features: Tensor, times: int, multiple: int) -> Tensor:
    """Return features (B, width, h, w) downscaled `times` times by 2, to a height and width that `multiple` divides."""
    for _ in range(times):
        size = [multiple * max(1, round(side / 2 / multiple)) for side in features.shape[-2:]]
        features = interpolate(features, size=size, mode="bicubic", align_corners=False)
    return features


def unshrink(features: Tensor, like: Tensor) -> Tensor:
    """Return features upscaled to the height and width of others."""
    return interpolate(features, size=like.shape[-2:], mode="bicubic", align_corners=False)


class DeepShrink:
    """Hooks that downscale the inner features of a UNet or ControlNet of diffusers in the context of `shrink`."""

    def __init__(self, unet: nn.Module) -> None:
        blocks = cast("Any", unet)
        down_blocks = [block for block in blocks.down_blocks if block.downsamplers is not None]
        # so that the later downsamplers divide the features evenly, and upsampling restores their size
        self._multiple = 2 ** (len(down_blocks) - 1)
        self._times = 0
        if down_blocks:
            down_blocks[0].downsamplers[0].register_forward_hook(self._downscale)
            if hasattr(
                unet, "up_blocks"
            ):  # a ControlNet's features stay downscaled, as those they are added to
                blocks.up_blocks[-1].register_forward_pre_hook(self._upscale, with_kwargs=True)

    @contextmanager
    def shrink(self, times: int) -> Generator[None]:
        """Downscale `times` times by 2 in the passes inside the context."""
        self._times = times
        try:
            yield
        finally:
            self._times = 0

    def _downscale(self, _module: nn.Module, _args: object, features: Tensor) -> Tensor:
        return shrink(features, self._times, self._multiple)

    def _upscale(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._times:
            features = unshrink(kwargs["hidden_states"], kwargs["res_hidden_states_tuple"][-1])
            kwargs = kwargs | {"hidden_states": features}
        return args, kwargs
