"""Deep shrink: in the early steps the inner part of a UNet works on half the height and width.

Pictures much larger than a model has learned come out with limbs and people repeated, as its inner layers see only
parts of them. Halving what these see while the composition is decided mends that (kohya-ss, "deep shrink", 2023). The
features are halved behind the first downsampler and brought back before the block that undoes it.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.functional import interpolate


class DeepShrink:
    """Can shrink the inner part of one UNet.

    Args:
        unet: diffusers' UNet2DConditionModel; hooks are put into it, which do nothing unless `shrunk`.
    """

    def __init__(self, unet: nn.Module) -> None:
        blocks = cast("Any", unet)
        downs = [block for block in blocks.down_blocks if block.downsamplers is not None]
        self._multiple = 2 ** (len(downs) - 1)
        self._active = False
        if downs:
            downs[0].downsamplers[0].register_forward_hook(self._halve)
            blocks.up_blocks[-1].register_forward_pre_hook(self._restore, with_kwargs=True)

    @contextmanager
    def shrunk(self) -> Generator[None]:
        """Shrink in the passes meanwhile."""
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def _halve(self, _module: nn.Module, _given: object, features: Tensor) -> Tensor:
        if not self._active:
            return features
        # rounded, as what follows halves it again and must find its way back
        size = [self._multiple * max(1, round(side / 2 / self._multiple)) for side in features.shape[-2:]]
        return interpolate(features, size=size, mode="bicubic", align_corners=False)

    def _restore(
        self, _module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._active:
            size = named["res_hidden_states_tuple"][-1].shape[-2:]
            features = interpolate(named["hidden_states"], size=size, mode="bicubic", align_corners=False)
            named = named | {"hidden_states": features}
        return given, named
