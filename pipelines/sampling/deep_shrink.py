"""Deep shrink: in the early steps the inner part of a UNet works on half the height and width, or a quarter.

Pictures much larger than a model has learned come out with limbs and people repeated, as its inner layers see only
parts of them. Halving what these see while the composition is decided mends that (kohya-ss, "deep shrink", 2023). The
features are halved behind the first downsampler, as often as it takes to come down to an area that the model knows, and
brought back before the block that undoes it. How often is told in halving.py.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import interpolate


class DeepShrink:
    """Can shrink the inner part of one UNet.

    Args:
        unet: diffusers' UNet2DConditionModel; hooks are put into it, which do nothing unless `halved`.
    """

    def __init__(self, unet: nn.Module) -> None:
        blocks = cast("Any", unet)
        downs = [block for block in blocks.down_blocks if block.downsamplers is not None]
        self._multiple = 2 ** (len(downs) - 1)
        self._times = 0
        if downs:
            downs[0].downsamplers[0].register_forward_hook(self._halve)
            blocks.up_blocks[-1].register_forward_pre_hook(self._restore, with_kwargs=True)

    @contextmanager
    def shrink(self, times: int) -> Generator[None]:
        """Halve so many times in the passes meanwhile."""
        self._times = times
        try:
            yield
        finally:
            self._times = 0

    def _halve(self, _module: nn.Module, _given: object, features: Tensor) -> Tensor:
        for _ in range(self._times):
            # rounded, as what follows halves it again and must find its way back
            size = [self._multiple * max(1, round(side / 2 / self._multiple)) for side in features.shape[-2:]]
            features = interpolate(features, size=size, mode="bicubic", align_corners=False)
        return features

    def _restore(
        self, _module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._times:
            size = named["res_hidden_states_tuple"][-1].shape[-2:]
            features = interpolate(named["hidden_states"], size=size, mode="bicubic", align_corners=False)
            named = named | {"hidden_states": features}
        return given, named
