"""Types that several modules share. Importing them needs neither torch nor NumPy."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from pipelines.job import EncodedVibe

Sigmas: TypeAlias = tuple[float, ...]
"""Noise levels of a run, falling, with a final 0. The first may be `inf` under zero terminal SNR."""
Noise: TypeAlias = Callable[[float, float], "Tensor"]
"""`noise(sigma, target)` returns unit-variance noise for the step between two sigmas, shaped like the latents."""
NoisyLatents: TypeAlias = tuple["Tensor", float]
"""Latents under noise and their sigma."""
SamplerCoroutine: TypeAlias = Generator[NoisyLatents, "Tensor", "Tensor"]
"""A running sampler: yields noisy latents, is sent their denoised estimates and returns the final latents."""
Pixels: TypeAlias = "np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]"
"""An image with 8 bits per channel, (height, width, channels); RGB unless stated otherwise."""
Size: TypeAlias = tuple[int, int]
"""Width and height in pixels."""
Family: TypeAlias = str
"""Name of a model family, a key of `pipelines.weights.families.FAMILIES`."""
PredictionType = Literal["eps", "v", "edm_v"]
BatchingMode = Literal["exact", "shared"]
AttentionBackend = Literal["sdpa", "xformers"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Step `step` (from 1) of `steps` of image `image` is about to be evaluated, at `sigma`.

    Attributes:
        before, share: the shares of the image's work that earlier passes were, and that this one is.
    """

    image: int
    step: int
    steps: int
    sigma: float
    before: float = 0.0
    share: float = 1.0

    @property
    def done(self) -> float:
        """The share of the image's work that is done."""
        return self.before + self.share * (self.step - 1) / self.steps


OnStep: TypeAlias = Callable[[Progress], None]
"""Called before each evaluation; an exception it raises (Cancelled) ends the run."""


@dataclass(frozen=True, slots=True)
class Preview:
    """Image `image` as estimated in step `step` (from 1, counted over all passes) at `sigma`, as a small JPEG."""

    image: int
    step: int
    sigma: float
    jpeg: bytes


OnPreview: TypeAlias = Callable[[Preview], None]
"""Called with each preview, on a thread of its own; it must return at once."""


@dataclass(frozen=True, slots=True)
class Output:
    """What running a job gives: its images, and the sigmas of its last pass (none for an upscale), or a vibe."""

    images: "Sequence[Pixels]"
    sigmas: Sigmas
    vibe: "EncodedVibe | None" = None
