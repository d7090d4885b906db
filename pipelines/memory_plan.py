"""Which weights stay on the device and how large VAE tiles are, so that a picture of a megapixel fits into its memory.

The plan is made when a model is loaded and holds as long as it is. It costs time, not quality: weights that do not fit
wait in CPU memory. Only tiles change pictures a little, as group normalization sees one tile at a time.
"""

from dataclasses import dataclass, replace

from pipelines.image.vae import SMALL_TILES, TILES, Tiling
from pipelines.sampling.batching import MEGAPIXEL

RESERVE = 256 << 20
"""Bytes for what libraries and the allocator need besides tensors."""
PASS_ROWS = 2
"""Rows of a pass with guidance."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes that a model needs on the device.

    Attributes:
        projections: the part of the UNet's weights that projects prompts, once for an image.
        blocks: the part in transformer blocks besides these.
        largest: of a transformer block.
        keys: of a row's prompt, of three chunks.
        row_latent, decoded_latent: for each latent of a row of the UNet, and of the VAE's decoder.
    """

    unet: int
    projections: int
    blocks: int
    largest: int
    encoders: int
    vae: int
    keys: int
    row_latent: int
    decoded_latent: int

    def count_rest(self, tiling: Tiling) -> int:
        """Return the bytes besides the weights at the peak of a picture of a megapixel."""
        decoded = MEGAPIXEL if tiling.untiled >= MEGAPIXEL else tiling.tile**2
        drawn = PASS_ROWS * (MEGAPIXEL * self.row_latent + 2 * self.keys)
        return self.vae + max(drawn, decoded * self.decoded_latent) + RESERVE


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What is where.

    Attributes:
        offloads_encoders, offloads_projections: whether these weights wait in CPU memory.
        streamed: bytes of transformer blocks that do, and are copied to the device in every pass.
        peak: bytes on the device that a picture of a megapixel takes.
    """

    offloads_encoders: bool = False
    offloads_projections: bool = False
    streamed: int = 0
    tiling: Tiling = TILES
    peak: int = 0

    @property
    def offloads_unet(self) -> bool:
        """Whether a part of the UNet's weights waits in CPU memory."""
        return self.offloads_projections or self.streamed > 0

    def __str__(self) -> str:
        waiting = ["text encoders"] if self.offloads_encoders else []
        waiting += ["prompt projections"] if self.offloads_projections else []
        waiting += [f"{self.streamed / 1e9:.1f} GB of the UNet"] if self.streamed else []
        tiles = "" if self.tiling == TILES else f"; the VAE in tiles of {8 * self.tiling.tile} pixels"
        where = f"in CPU memory: {', '.join(waiting)}" if waiting else "all weights on the device"
        return f"{where}{tiles}; about {self.peak / 1e9:.1f} GB for a picture of a megapixel"


EVERYTHING_RESIDENT = MemoryPlan()


def plan_memory(sizes: Sizes, budget: int | None) -> MemoryPlan:
    """Return the fastest plan that fits into a budget in bytes, or the smallest one; None is any memory."""
    plans = [
        MemoryPlan(),
        MemoryPlan(offloads_encoders=True),
        MemoryPlan(offloads_encoders=True, tiling=SMALL_TILES),
        MemoryPlan(offloads_encoders=True, offloads_projections=True, tiling=SMALL_TILES),
    ]
    for plan in plans:
        peak = count_peak(sizes, plan)
        if budget is None or peak <= budget:
            return _with_peak(sizes, plan)
    missing = count_peak(sizes, plans[-1]) - (budget or 0) + 2 * sizes.largest  # two are copied at a time
    streamed = min(missing, sizes.blocks)
    return _with_peak(sizes, MemoryPlan(True, True, streamed, SMALL_TILES))


def count_peak(sizes: Sizes, plan: MemoryPlan) -> int:
    """Return the bytes on the device that a picture of a megapixel takes."""
    unet = sizes.unet - plan.streamed - (sizes.projections if plan.offloads_projections else 0)
    streams = 2 * sizes.largest if plan.streamed else 0
    drawing = unet + streams + sizes.count_rest(plan.tiling)
    # text encoders that wait in CPU memory are on the device layer by layer, and before anything is drawn
    return drawing if plan.offloads_encoders else drawing + sizes.encoders


def _with_peak(sizes: Sizes, plan: MemoryPlan) -> MemoryPlan:
    return replace(plan, peak=count_peak(sizes, plan))
