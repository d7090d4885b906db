"""Evaluates rows with the UNet: rows of equal shape share a pass.

Which rows are evaluated together is decided elsewhere: an image's own always are, those of several images only where
the operator allows it, because their numbers then depend on each other's presence by rounding.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from pipelines.adapters.control_map import sum_residuals
from pipelines.device import translate_device_errors
from pipelines.sampling.denoise import Row, Rows
from pipelines.sampling.prediction import NoiseTable, input_scale
from pipelines.sampling.prepared import PreparedPrompts, make_vector
from pipelines.unet.unet import Residuals
from pipelines.weights.networks import UNet

MEGAPIXEL = 128 * 128
"""Latents of an image of 1024x1024 pixels."""
MOST_LATENTS = 8 * MEGAPIXEL
"""Latents in a pass, over all rows; with more, SDXL's UNet takes longer in proportion on any GPU."""


class RowBatcher:
    """Evaluates rows on one UNet.

    Args:
        dtype: the dtype the UNet computes in; outputs are returned in the dtype of the rows' latents.
        shared_latents: the most latents, over all rows, in a pass that several images share.
    """

    def __init__(
        self,
        unet: UNet,
        table: NoiseTable,
        device: torch.device,
        dtype: torch.dtype,
        shared_latents: float = MOST_LATENTS,
    ) -> None:
        self._unet, self._table = unet, table
        self._device, self._dtype, self._shared_latents = device, dtype, shared_latents
        # the free memory must not decide how one image's rows are divided: their number changes the last bits
        self._most_latents = max(shared_latents, MOST_LATENTS)
        self._prepared = PreparedPrompts(unet, table, device)

    def free_memory(self) -> None:
        """Free what can be computed again."""
        self._prepared.clear()

    def make_key(self, rows: Rows) -> Hashable:
        """Return a key that is equal for images whose rows can share passes."""
        return id(self), frozenset(map(_stack_key, rows))

    def find_share(self, rows: Rows) -> float:
        """Return how much of a pass that images share the rows of one image fill; 1 if it has to be alone."""
        return min(1.0, sum(map(_count_latents, rows)) / self._shared_latents)

    @torch.inference_mode()
    def evaluate_images(self, images: Sequence[Rows]) -> list[Sequence[Tensor]]:
        """Return the outputs for the rows of several images."""
        with translate_device_errors(self._device):
            outputs = iter(self.evaluate([row for rows in images for row in rows]))
        return [[next(outputs) for _ in rows] for rows in images]

    def evaluate(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return the UNet's raw output for each row, in order; rows of equal shape share a pass."""
        groups: dict[Hashable, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(_stack_key(row), []).append(index)
        outputs: dict[int, Tensor] = {}
        for indices in groups.values():
            count = max(1, int(self._most_latents / _count_latents(rows[indices[0]])))
            for start in range(0, len(indices), count):
                part = indices[start : start + count]
                outputs |= zip(part, self._run_unet([rows[index] for index in part]), strict=True)
        return [outputs[index] for index in range(len(rows))]

    def _run_unet(self, rows: Sequence[Row]) -> Sequence[Tensor]:
        """Run one pass. Only the latents are scaled by c_in, the extra channels are not."""
        latents = torch.stack([row.x * input_scale(row.sigma) for row in rows])
        sample = latents
        if rows[0].extra_channels is not None:
            extra = [row.extra_channels for row in rows if row.extra_channels is not None]
            sample = torch.cat([latents, torch.stack(extra).to(latents)], dim=1)
        sample = sample.to(self._dtype)
        inputs = sample, self._prepared.stack_embeddings(rows), self._prepared.stack_contexts(rows)
        if rows[0].deep is not None:
            output = self._unet.run_shallow(
                *inputs, torch.cat([row.deep for row in rows if row.deep is not None])
            )
        elif rows[0].keep_deep is not None:
            output, deep = self._unet.run_full(*inputs)
            _keep_deep(rows, deep)
        else:
            residuals = self._run_controls(rows, latents.to(self._dtype)) if rows[0].controls else None
            output = self._unet(*inputs, rows[0].deep_shrink, residuals)
        return output.to(rows[0].x.dtype).unbind()

    def _run_controls(self, rows: Sequence[Row], latents: Tensor) -> Residuals | None:
        """Run the rows' ControlNets, which take the conditionings themselves."""
        timesteps = make_vector([self._table.timestep(row.sigma) for row in rows], self._device)
        context = torch.stack([row.conditioning.context for row in rows]).to(self._dtype)
        inputs = timesteps, context, self._build_added_cond(rows), rows[0].deep_shrink
        return sum_residuals([row.controls for row in rows], latents, *inputs)

    def _build_added_cond(self, rows: Sequence[Row]) -> dict[str, Tensor] | None:
        """Return SDXL's pooled text and time ids. The ids stay float32: half precision cannot hold every size."""
        pooled = [row.conditioning.pooled for row in rows]
        pooled = [vector for vector in pooled if vector is not None]
        if not pooled:
            return None
        time_ids = torch.stack([make_vector(row.time_ids or (), self._device) for row in rows])
        return {"text_embeds": torch.stack(pooled).to(self._dtype), "time_ids": time_ids}


def _keep_deep(rows: Sequence[Row], deep: Tensor) -> None:
    """Let each row keep its deep features, as a copy: a view would hold the memory of those of all rows."""
    for index, row in enumerate(rows):
        if row.keep_deep is not None:
            row.keep_deep(deep[index : index + 1].clone())  # a slice, whose channels stay last


def _count_latents(row: Row) -> int:
    return row.x.shape[-2] * row.x.shape[-1]


def _stack_key(row: Row) -> Hashable:
    """Return a key that is equal for rows that can be stacked; their images need not be equally many."""
    extra = None if row.extra_channels is None else row.extra_channels.shape
    controls = tuple(control.stack_key for control in row.controls)
    kind = row.deep is None, row.keep_deep is None
    return row.x.shape, row.x.dtype, row.conditioning.context.shape, extra, row.deep_shrink, controls, kind
