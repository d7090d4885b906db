"""Runs the UNet on the rows that trajectories request, and returns each row's output.

Under `exact` the rows of each image share a pass with no other image's, so its numbers cannot depend on what else
is being generated. Under `shared` all rows of equal shape share a pass; images then agree to rounding.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import torch
from torch import Tensor

from pipelines.adapters.control_map import sum_residuals
from pipelines.sampling.denoise import Row, RowCoroutine, Rows
from pipelines.sampling.prediction import NoiseTable, input_scale
from pipelines.types import BatchingMode
from pipelines.weights.networks import UNet

OnEvaluation = Callable[[int, float], None]
"""Called with an image's index and sigma before each evaluation; raises Cancelled to stop the run."""


class RowBatcher:
    """Evaluates rows on one UNet.

    Args:
        dtype: the dtype the UNet computes in; outputs are returned in the dtype of the rows' latents.
        max_rows: the most rows in one pass.
    """

    def __init__(
        self,
        unet: UNet,
        table: NoiseTable,
        device: torch.device,
        dtype: torch.dtype,
        batching: BatchingMode = "exact",
        max_rows: int = 8,
    ) -> None:
        self._unet, self._table = unet, table
        self._device, self._dtype = device, dtype
        self._batching, self._max_rows = batching, max_rows

    def run(self, trajectories: Sequence[RowCoroutine], on_evaluation: OnEvaluation) -> list[Tensor]:
        """Run all trajectories, one evaluation of each at a time, and return their final latents in order.

        They are closed however the run ends.
        """
        results: dict[int, Tensor] = {}
        with ExitStack() as stack:
            for trajectory in trajectories:
                stack.enter_context(closing(trajectory))
            requests = _advance(trajectories, dict.fromkeys(range(len(trajectories))), results)
            while requests:
                for index, rows in requests.items():
                    on_evaluation(index, rows[0].sigma)
                requests = _advance(trajectories, self._evaluate_requests(requests), results)
        return [results[index] for index in range(len(trajectories))]

    def _evaluate_requests(self, requests: dict[int, Rows]) -> dict[int, Sequence[Tensor] | None]:
        if self._batching == "exact":
            return {index: self.evaluate(rows) for index, rows in requests.items()}
        outputs = iter(self.evaluate([row for rows in requests.values() for row in rows]))
        return {index: [next(outputs) for _ in rows] for index, rows in requests.items()}

    def evaluate(self, rows: Sequence[Row]) -> list[Tensor]:
        """Return the UNet's raw output for each row, in order; rows of equal shape share a pass."""
        groups: dict[object, list[int]] = {}
        for index, row in enumerate(rows):
            groups.setdefault(_stack_key(row), []).append(index)
        outputs: dict[int, Tensor] = {}
        for indices in groups.values():
            for start in range(0, len(indices), self._max_rows):
                part = indices[start : start + self._max_rows]
                outputs |= zip(part, self._run_unet([rows[index] for index in part]), strict=True)
        return [outputs[index] for index in range(len(rows))]

    def _run_unet(self, rows: Sequence[Row]) -> Sequence[Tensor]:
        """Run one pass. Only the latents are scaled by c_in, the extra channels are not."""
        latents = torch.stack([row.x * input_scale(row.sigma) for row in rows])
        sample = latents
        if rows[0].extra_channels is not None:
            extra = [row.extra_channels for row in rows if row.extra_channels is not None]
            sample = torch.cat([latents, torch.stack(extra).to(latents)], dim=1)
        timesteps = torch.tensor([self._table.timestep(row.sigma) for row in rows], device=self._device)
        context = torch.stack([row.context for row in rows]).to(self._dtype)
        added_cond = self._build_added_cond(rows)
        vibes = [row.vibes for row in rows] if any(row.vibes for row in rows) else ()
        inputs = timesteps, context, added_cond, rows[0].deep_shrink
        controls = [row.controls for row in rows]
        residuals = sum_residuals(controls, latents.to(self._dtype), *inputs)
        output = self._unet(sample.to(self._dtype), *inputs, vibes=vibes, residuals=residuals)
        return output.to(rows[0].x.dtype).unbind()

    def _build_added_cond(self, rows: Sequence[Row]) -> dict[str, Tensor] | None:
        """Return SDXL's pooled text and time ids. The ids stay float32: half precision cannot hold every size."""
        pooled = [row.pooled for row in rows if row.pooled is not None]
        if not pooled:
            return None
        time_ids = torch.tensor([row.time_ids for row in rows], dtype=torch.float32, device=self._device)
        return {"text_embeds": torch.stack(pooled).to(self._dtype), "time_ids": time_ids}


def _stack_key(row: Row) -> object:
    """Return a key that is equal for rows that can be stacked; their images need not be equally many."""
    extra = None if row.extra_channels is None else row.extra_channels.shape
    controls = tuple(control.stack_key for control in row.controls)
    return row.x.shape, row.x.dtype, row.context.shape, row.pooled is None, extra, row.deep_shrink, controls


def _advance(
    trajectories: Sequence[RowCoroutine],
    outputs_by_index: dict[int, Sequence[Tensor] | None],
    results: dict[int, Tensor],
) -> dict[int, Rows]:
    """Send each trajectory its outputs (None starts it); return their next requests and store final latents."""
    requests: dict[int, Rows] = {}
    for index, outputs in outputs_by_index.items():
        try:
            requests[index] = trajectories[index].send(outputs)  # pyright: ignore[reportArgumentType]  # None starts it
        except StopIteration as stop:
            results[index] = stop.value
    return requests
