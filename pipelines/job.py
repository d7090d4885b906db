"""What to generate: a job is decided once, complete, and never changed. Needs neither torch nor a model."""

from dataclasses import dataclass
from math import inf
from pathlib import Path

SEED_MODULUS = 2**32


@dataclass(frozen=True, slots=True)
class Threshold:
    """Dynamic thresholding: the share of values kept unclipped, and the guidance scale whose range is imitated."""

    percentile: float = 0.999
    mimic_scale: float = 5.0


@dataclass(frozen=True, slots=True)
class UncondZero:
    """Guidance without a negative prompt: the size of the estimates, and how far each is led away from the last."""

    scale: float = 0.75
    sharpness: float = 1.0


@dataclass(frozen=True, slots=True)
class Guidance:
    """How the estimates with and without the prompt are combined (see sampling/guidance.py).

    `uncond_zero` replaces `scale`, `uncond_scale` and `threshold`.
    """

    scale: float = 5.0
    rescale: float = 0.0
    uncond_scale: float = 1.0
    threshold: Threshold | None = None
    skip_above: float = inf
    skip_below: float = 0.0
    uncond_zero: UncondZero | None = None


@dataclass(frozen=True, slots=True)
class Character:
    """A character with a region of its own: what is added to both prompts there, and the region's center.

    `x` and `y` are shares of the width and the height, from the upper left corner.
    """

    positive: str
    negative: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Inversion:
    """A textual inversion: the word for it, its file, and the number of its vectors.

    Attributes:
        fingerprint: of the file when the request was read; see weights/checkpoint.py.
        is_bundled: whether it is one of those in a LoRA's file, under its name.
    """

    name: str
    path: Path
    fingerprint: str
    count: int
    is_bundled: bool = False


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompt and negative prompt as they are encoded, and the grammar to parse them with.

    Attributes:
        characters: those with a region; their captions are not in `positive` and `negative`.
        inversions: the textual inversions that any of the texts names.
        written: the prompts as the user wrote them, if they were translated; for the metadata only.
    """

    positive: str
    negative: str = ""
    syntax: str = "nai"
    drop_seam_tokens: bool = False
    characters: tuple[Character, ...] = ()
    inversions: tuple[Inversion, ...] = ()
    written: "Prompts | None" = None


@dataclass(frozen=True, slots=True)
class RgbImage:
    """An image as RGB bytes, row by row."""

    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class EncodedVibe:
    """A reference image as an adapter's image tokens.

    Attributes:
        count, width: number of tokens, and values in each.
        values: the tokens one after another, little-endian float32.
        information_extracted: the share of the image's information that is in them.
    """

    count: int
    width: int
    values: bytes
    information_extracted: float = 1.0


@dataclass(frozen=True, slots=True)
class Vibe:
    """A reference image for vibe transfer, encoded before or not.

    Attributes:
        strength: factor of its influence; a negative one moves away from the image.
        information_extracted: the share of the image's information that is encoded; an encoded one has its own.
    """

    source: RgbImage | EncodedVibe
    strength: float = 0.6
    information_extracted: float = 1.0


@dataclass(frozen=True, slots=True)
class InitImage:
    """An image that a pass starts from, of the pass's own size.

    Attributes:
        mask: one byte per latent, row by row: 0 keeps the image, 255 repaints it, values between change late in the
            run. None for img2img.
        overlay: how the image is pasted over the result where the mask keeps it: "none", "soft" or "hard".
        color_correct: whether the result is matched to the image's colors.
    """

    image: RgbImage
    mask: bytes | None = None
    overlay: str = "none"
    color_correct: bool = False


@dataclass(frozen=True, slots=True)
class PreviousPass:
    """Start from the previous pass's images, upscaled: by the loaded network if `network`, else by Lanczos."""

    network: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """One run down the noise schedule for each of a job's images.

    Attributes:
        seeds: one per image.
        init: what the images start from; None for noise alone.
        strength: share of the schedule that is run, for a pass with `init`.
        noise: how much noise is added to the initial latents first; image i draws it from seed `noise_seed + i`.
        smea: "off", "smea" or "dyn".
        pyramid, deep_shrink: 2x downscales, see plan.Downscales.
    """

    width: int
    height: int
    seeds: tuple[int, ...]
    init: InitImage | PreviousPass | None = None
    strength: float = 1.0
    noise: float = 0.0
    noise_seed: int = 0
    smea: str = "off"
    pyramid: int = 0
    deep_shrink: int = 0

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents, an eighth of the image's."""
        return self.height // 8, self.width // 8


@dataclass(frozen=True, slots=True)
class Lora:
    """A file that changes the model's weights, with its strengths for the UNet and for the text encoders.

    Attributes:
        name: what requests and metadata call it.
        fingerprint: of the file when the request was read; see weights/checkpoint.py.
    """

    name: str
    path: Path
    fingerprint: str
    unet: float = 1.0
    text: float = 1.0


@dataclass(frozen=True, slots=True)
class Control:
    """An image that a ControlNet conditions a run on.

    Attributes:
        name: what requests and metadata call the network.
        path: its file or diffusers folder.
        fingerprint: of the file when it was detected; see weights/checkpoint.py.
        image: the control map, of any size; fitted to the pass's.
        strength: factor of the network's residuals.
        start, end: shares of the pass's steps; the network has no effect in steps that begin before `start` or end
            after `end`.
        mode: a union network's control type; None for networks of one type.
    """

    name: str
    path: Path
    fingerprint: str
    image: RgbImage
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One request: images that share everything but their seeds.

    Attributes:
        sampler, schedule: keys of SAMPLERS and SCHEDULES.
        passes: run in this order; the last one's images are the result.
        sigma_start: where karras and the other range schedules begin after the step at infinite noise.
        brownian: whether ancestral steps take their noise from a Brownian tree instead of independent draws.
        vibes: the reference images of all passes.
        controls: likewise what ControlNets condition them on; the networks' residuals are added up.
    """

    model: str
    prompts: Prompts
    steps: int
    sampler: str
    schedule: str
    guidance: Guidance
    passes: tuple[Pass, ...]
    sigma_start: float = 56.0
    brownian: bool = False
    vibes: tuple[Vibe, ...] = ()
    loras: tuple[Lora, ...] = ()
    controls: tuple[Control, ...] = ()


@dataclass(frozen=True, slots=True)
class UpscaleJob:
    """An image to resize: by the upscaling network that is loaded, else by Lanczos."""

    image: RgbImage
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class VibeJob:
    """A reference image to encode, by a model's image adapter."""

    model: str
    image: RgbImage
    information_extracted: float = 1.0


Work = Job | UpscaleJob | VibeJob
