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


class DeepShrink:
    """Hooks that downscale the inner features of a UNet or ControlNet of diffusers in the context of `shrink`."""

    def __init__(self, unet: nn.Module) -> None:
        blocks = cast("Any", unet)
        down_blocks = [block for block in blocks.down_blocks if block.downsamplers is not None]
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
        for _ in range(self._times):
            # rounded to a size that the later downsamplers divide evenly, so that upsampling restores it
            size = [self._multiple * max(1, round(side / 2 / self._multiple)) for side in features.shape[-2:]]
            features = interpolate(features, size=size, mode="bicubic", align_corners=False)
        return features

    def _upscale(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._times:
            size = kwargs["res_hidden_states_tuple"][-1].shape[-2:]
            features = interpolate(kwargs["hidden_states"], size=size, mode="bicubic", align_corners=False)
            kwargs = kwargs | {"hidden_states": features}
        return args, kwargs
