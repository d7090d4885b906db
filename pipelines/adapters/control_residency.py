"""The ControlNets that are loaded for a model: those that were used last, as many as fit into a budget of memory."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from pipelines.adapters.control_file import detect_control
from pipelines.adapters.control_network import DiffusersControlNet
from pipelines.adapters.controlnet import ControlPlan, plan_control
from pipelines.device import is_out_of_memory
from pipelines.errors import OutOfMemory, UnusableFile, WeightsError
from pipelines.job import Control
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.load import Weights

Key: TypeAlias = tuple[Path, str]
"""A file and its fingerprint."""


class ControlResidency:
    """Loads ControlNets for a model, and frees those that were not used for longest. On the thread of the device.

    Args:
        weights: the model.
        budget: bytes that networks may keep which the current job does not use.
    """

    def __init__(self, weights: Weights, budget: int) -> None:
        self._architecture, self._budget = weights.architecture, budget
        self._device, self._dtype = weights.device, weights.dtype
        self._plans: OrderedDict[Key, ControlPlan] = OrderedDict()  # filled; least recently used first
        self._used: set[Key] = set()

    @property
    def size(self) -> int:
        """Bytes of the weights that are loaded."""
        return sum(plan.measure(self._dtype) for plan in self._plans.values())

    def drop(self) -> None:
        """Free all networks; they are read again when a job needs them."""
        self._plans.clear()

    def free_unused(self) -> None:
        """Free the networks that the pass begun last does not use."""
        for key in self._plans.keys() - self._used:
            del self._plans[key]

    def activate(self, controls: Sequence[Control]) -> tuple[DiffusersControlNet, ...]:
        """Return the network of each control, and load those that are not.

        Raises:
            UnusableFile: a file is no ControlNet for the model, is damaged, or has changed.
            OutOfMemory: there is not enough memory.
        """
        self._used = used = {(control.path, control.fingerprint) for control in controls}
        self._free(0, used)
        return tuple(self._find(control, used) for control in controls)

    def _find(self, control: Control, used: set[Key]) -> DiffusersControlNet:
        key = control.path, control.fingerprint
        try:
            if key not in self._plans:
                self._plans[key] = self._load(control, used)
            self._plans[key].file.check_mode(control.mode)
        except WeightsError as error:
            raise UnusableFile("ControlNet", repr(control.name), error.reason) from error
        self._plans.move_to_end(key)
        return self._plans[key].network

    def _load(self, control: Control, used: set[Key]) -> ControlPlan:
        if fingerprint(control.path) != control.fingerprint:
            raise WeightsError(control.path, "it has changed since the server was started; restart it")
        file = detect_control(control.path)
        file.check_family(self._architecture.family)
        plan = plan_control(file, self._architecture.unet)
        self._free(plan.measure(self._dtype), used)
        try:
            plan.fill(self._device, self._dtype)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.drop()
            raise OutOfMemory(f"ControlNet {control.name!r}") from error
        return plan

    def _free(self, needed: int, used: set[Key]) -> None:
        """Free networks that are not used until `needed` bytes more fit into the budget."""
        for key in [key for key in self._plans if key not in used]:
            if self.size + needed <= self._budget:
                return
            del self._plans[key]
