"""The one who knows the network: gathers the rows every trajectory asks for, evaluates them, hands outputs back.

Under `exact` the rows of each image run on their own, so that its numbers cannot depend on what else is
being drawn. Under `shared` all rows of equal shape share a pass; images then agree to rounding.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import torch
from torch import Tensor

from pipelines.sampling.denoise import Denoising, Row, Rows
from pipelines.sampling.prediction import NoiseTable, input_scale
from pipelines.types import BatchingMode
from pipelines.weights.networks import UNet

OnEvaluation = Callable[[int, float], None]
"""Told, before each evaluation, which image asks and at which sigma; raises Cancelled to stop the run."""


class RowBatcher:
    """Evaluates rows on one network.

    Args:
        dtype: what the network computes in; rows and outputs keep the sampler's own.
        most_rows: the largest stack in one pass under `shared`.
    """

    def __init__(
        self,
        unet: UNet,
        table: NoiseTable,
        device: torch.device,
        dtype: torch.dtype,
        batching: BatchingMode = "exact",
        most_rows: int = 8,
    ) -> None:
        self._unet, self._table = unet, table
        self._device, self._dtype = device, dtype
        self._batching, self._most_rows = batching, most_rows

    def run(self, trajectories: Sequence[Denoising], watch: OnEvaluation) -> list[Tensor]:
        """Drive trajectories to their ends, a step of each at a time; their latents in the same order."""
        finished: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for trajectory in trajectories:
                stack.enter_context(closing(trajectory))
            asked = _advance(trajectories, dict.fromkeys(range(len(trajectories))), finished)
            while asked:
                for index, rows in asked.items():
                    watch(index, rows[0].sigma)
                asked = _advance(trajectories, self._answers(asked), finished)
        return [finished[index] for index in range(len(trajectories))]

    def _answers(self, asked: dict[int, Rows]) -> dict[int, Sequence[Tensor] | None]:
        if self._batching == "exact":
            return {index: self.evaluate(rows) for index, rows in asked.items()}
        outputs = iter(self.evaluate([row for rows in asked.values() for row in rows]))
        return {index: [next(outputs) for _ in rows] for index, rows in asked.items()}

    def evaluate(self, rows: Sequence[Row]) -> list[Tensor]:
        """The network's raw outputs, one for each row and of its shape; rows of equal shape share a pass."""
        groups: dict[object, list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(_shape(row), []).append(place)
        outputs: dict[int, Tensor] = {}
        for places in groups.values():
            for start in range(0, len(places), self._most_rows):
                part = places[start : start + self._most_rows]
                outputs |= zip(part, self._forward([rows[place] for place in part]), strict=True)
        return [outputs[place] for place in range(len(rows))]

    def _forward(self, rows: Sequence[Row]) -> Sequence[Tensor]:
        """One pass. Only the latents are scaled; extra channels go in as they are."""
        sample = torch.stack([row.x * input_scale(row.sigma) for row in rows])
        if rows[0].extra_channels is not None:
            extra = [row.extra_channels for row in rows if row.extra_channels is not None]
            sample = torch.cat([sample, torch.stack(extra).to(sample)], dim=1)
        times = torch.tensor([self._table.time(row.sigma) for row in rows], device=self._device)
        context = torch.stack([row.context for row in rows])
        output = self._unet(
            sample.to(self._dtype), times, context.to(self._dtype), self._added(rows), rows[0].deep_shrink
        )
        return output.to(rows[0].x.dtype).unbind()

    def _added(self, rows: Sequence[Row]) -> dict[str, Tensor] | None:
        """SDXL's pooled text and size ids; the ids stay float32, half precision cannot hold every size."""
        pooled = [row.pooled for row in rows if row.pooled is not None]
        if not pooled:
            return None
        ids = torch.tensor([row.ids for row in rows], dtype=torch.float32, device=self._device)
        return {"text_embeds": torch.stack(pooled).to(self._dtype), "time_ids": ids}


def _shape(row: Row) -> object:
    """What rows must have in common to be stacked."""
    extra = None if row.extra_channels is None else row.extra_channels.shape
    return (
        row.x.shape,
        row.x.dtype,
        row.context.shape,
        row.pooled is None,
        extra,
        row.deep_shrink,
        row.adapters,
    )


def _advance(
    trajectories: Sequence[Denoising],
    answers: dict[int, Sequence[Tensor] | None],
    finished: dict[int, Tensor],
) -> dict[int, Rows]:
    """Hand each trajectory its outputs (None to start it) and collect what it asks for next."""
    asked: dict[int, Rows] = {}
    for index, outputs in answers.items():
        try:
            asked[index] = trajectories[index].send(outputs)  # pyright: ignore[reportArgumentType]  # None starts it
        except StopIteration as stop:
            finished[index] = stop.value
    return asked
