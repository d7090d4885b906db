"""What is to be drawn, decided once and never changed: nothing here is optional or unresolved."""

from dataclasses import dataclass, replace
from math import inf

SEED_MODULUS = 2**32
"""How many there are: all others are taken modulo this."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """Dynamic thresholding: the share of pixels kept unclipped, and the scale whose range is imitated."""

    percentile: float = 0.999
    mimic_scale: float = 5.0


@dataclass(frozen=True, slots=True)
class Guidance:
    """How the predictions with and without the prompt combine (see guidance.py)."""

    scale: float = 5.0
    rescale: float = 0.0
    uncond_scale: float = 1.0
    threshold: Threshold | None = None
    skip_above: float = inf
    skip_below: float = 0.0


@dataclass(frozen=True, slots=True)
class Prompts:
    """The two texts as the user wrote them, and the grammar they are written in."""

    positive: str
    negative: str = ""
    syntax: str = "nai"
    drop_seam_tokens: bool = False


@dataclass(frozen=True, slots=True)
class RgbImage:
    """RGB bytes, row by row."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class InitImage:
    """The picture a job starts from, of the job's own size.

    `strength` is the share of the ladder that is run; `noise` is how much of the noise of `noise_seed` is added to
    the picture's latents before (image i has the seed `noise_seed + i`). `mask` has a byte for each latent, row by
    row: 0 keeps the picture there, 255 draws it anew, values between begin to change later. `overlay` says how the
    picture is laid over the result where the mask keeps it: "none", "soft" or "hard"; `color_correct` gives the result
    the picture's colours first.
    """

    picture: RgbImage
    strength: float = 0.7
    noise: float = 0.0
    noise_seed: int = 0
    mask: bytes | None = None
    overlay: str = "none"
    color_correct: bool = False


@dataclass(frozen=True, slots=True)
class Enhance:
    """A second pass: the drawn picture enlarged to this size, and drawn on from there with the same prompts.

    `strength` and `noise` are a Source's. Image i has the seeds `seed + i` and `noise_seed + i`; `network` enlarges by
    the upscaling network that is loaded, else by Lanczos.
    """

    width: int
    height: int
    strength: float
    noise: float
    seed: int
    noise_seed: int
    network: bool = False
    deep_shrink: int = 0
    pyramid: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """One request: `len(seeds)` pictures that differ in their seed alone.

    `width` and `height` are pixels; `sampler` is a key of SAMPLERS, `schedule` of SCHEDULES;
    `sigma_start` is where karras and its kin begin after the step at infinite noise;
    `brownian` draws the noise of ancestral steps from a Brownian tree instead of afresh;
    `smea` is "off", "smea" or "dyn"; `pyramid` is how often the smallest copy of a picture is halved that
    it begins with, and `deep_shrink` how often the features of that; `source` is the picture it starts from, if any;
    `enhance` a second pass.
    """

    model: str
    prompts: Prompts
    width: int
    height: int
    steps: int
    sampler: str
    schedule: str
    guidance: Guidance
    seeds: tuple[int, ...]
    sigma_start: float = 56.0
    brownian: bool = False
    smea: str = "off"
    deep_shrink: int = 0
    pyramid: int = 0
    source: InitImage | None = None
    enhance: Enhance | None = None

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents, an eighth of the picture's."""
        return self.height // 8, self.width // 8


def second_pass(job: Job, enhance: Enhance, index: int, enlarged: RgbImage) -> Job:
    """The job that finishes image `index` of another, from its picture at the new size; without SMEA, as in img2img."""
    source = InitImage(enlarged, enhance.strength, enhance.noise, (enhance.noise_seed + index) % SEED_MODULUS)
    return replace(
        job,
        width=enhance.width,
        height=enhance.height,
        seeds=((enhance.seed + index) % SEED_MODULUS,),
        smea="off",
        deep_shrink=enhance.deep_shrink,
        pyramid=enhance.pyramid,
        source=source,
        enhance=None,
    )


@dataclass(frozen=True, slots=True)
class UpscaleJob:
    """A picture to be enlarged to another size: by the upscaling network that is loaded, else by Lanczos."""

    picture: RgbImage
    width: int
    height: int
