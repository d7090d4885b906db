"""The loaded models of a catalog: which one runs, and where the others are kept until they are requested again.

The device has the models that were used last, within a budget; those before them wait in CPU memory, within another
budget; the rest is loaded from disk. Needs no torch: a model is moved by an object that knows its networks.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from time import perf_counter
from typing import Literal, Protocol

from pipelines.errors import DeviceLost, OutOfMemory, PipelineError, UnknownName
from pipelines.job import UpscaleJob, Work
from pipelines.steps import Run
from pipelines.types import OnPreview
from pipelines.weights.checkpoint import checkpoint_files, open_checkpoint
from server.engine.model import Place, ServedModel
from server.errors import Unavailable

log = logging.getLogger("naiad")


class MovableModel(Protocol):
    """A loaded model that can be moved between the device and CPU memory without changing a bit of it."""

    @property
    def model(self) -> ServedModel: ...

    @property
    def size(self) -> int:
        """Bytes of its weights."""
        ...

    def move(self, place: Literal["device", "memory"], /) -> None: ...

    def free_memory(self) -> None:
        """Free what is kept for later jobs on the device."""
        ...

    def warm_up(self) -> None:
        """Make what its first requests are likely to need, which takes a while."""
        ...

    def prepare(self, work: Work, /) -> None: ...

    def is_active(self, work: Work, /) -> bool: ...

    def activate(self, work: Work, /) -> None: ...

    def begin(self, work: Work, on_preview: OnPreview | None, /) -> Run: ...


class ResidentModels:
    """Runs each job with the model that it names, which is loaded or moved to the device first.

    Args:
        models: those of the catalog; the first is loaded at once.
        load: loads a model onto the device.
        device_budget, memory_budget: bytes of models on the device and in CPU memory. The model that runs is always on
            the device, and what it replaces is dropped only once it is loaded.
        is_shared: whether the device's memory is the CPU's.
        read_memory: returns bytes of the device's memory by what they are.

    Attributes:
        switches: how often a job needed another model than the one before it.
    """

    def __init__(
        self,
        models: Sequence[ServedModel],
        load: Callable[[ServedModel], MovableModel],
        device_budget: int,
        memory_budget: int,
        is_shared: bool = True,
        read_memory: Callable[[], Mapping[str, int]] = dict[str, int],
    ) -> None:
        self._load, self._budgets = load, (device_budget, memory_budget)
        self._is_shared, self._read_memory = is_shared, read_memory
        first = load(models[0])
        self._models = {model.id: model for model in (first.model, *models[1:])}
        self._default = self._current = first.model.id
        self._device = OrderedDict({self._current: first})  # least recently used first, as in the other one
        self._memory: OrderedDict[str, MovableModel] = OrderedDict()
        self.switches = 0

    def warm_up(self) -> None:
        """Warm up the model that is in use: before the server is ready, because no request may wait for it later."""
        self._device[self._current].warm_up()

    @property
    def model(self) -> ServedModel:
        """What is known about the default model since it was loaded."""
        return self._models[self._default]

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """All models by id, as known by now."""
        return dict(self._models)

    def find_place(self, name: str) -> Place:
        """Return where a model is now. On any thread."""
        return "device" if name in self._device else "memory" if name in self._memory else "disk"

    @property
    def device_memory(self) -> Mapping[str, int]:
        """Bytes of the device's memory by what they are; nothing on a device that does not count them."""
        return self._read_memory()

    def prepare(self, work: Work, /) -> None:
        """Begin what the next job needs, if its model is loaded."""
        if not isinstance(work, UpscaleJob):
            loaded = self._device.get(work.model) or self._memory.get(work.model)
            if loaded is not None:
                loaded.prepare(work)

    def is_active(self, work: Work, /) -> bool:
        """Return whether a job's steps can be taken now."""
        loaded = self._device.get(self._find_model(work))
        return loaded is not None and loaded.is_active(work)

    def activate(self, work: Work, others: Collection[Work] = (), /) -> None:
        """Bring a job's model to the device, and the weights into the state that it needs.

        Args:
            others: jobs that have begun and go on later, whose models stay loaded.

        Raises:
            PipelineError: the model could not be loaded; the others can still run.
            Unavailable: what the model predicts was found out only now, and its defaults are others than assumed.
        """
        name = self._find_model(work)
        if name not in self._models:
            raise UnknownName("model", name, self._models)
        if name != self._current or name not in self._device:
            self._switch(name, {self._find_model(other) for other in others})
        self._device[name].activate(work)

    def begin(self, work: Work, on_preview: OnPreview | None = None, /) -> Run:
        """Begin an active job."""
        return self._device[self._find_model(work)].begin(work, on_preview)

    def free_memory(self, work: Work, others: Collection[Work] = (), /) -> None:
        """Free what a job does not need; the models of `others`, which have begun, stay loaded."""
        needed = self._find_model(work)
        for name in [name for name in self._device if name != needed]:
            self._park(name)
        kept = {needed, *map(self._find_model, others)}
        self._limit_memory(kept, 0 if self._is_shared else None)
        for loaded in self._device.values():
            loaded.free_memory()

    def _find_model(self, work: Work) -> str:
        return self._current if isinstance(work, UpscaleJob) else work.model

    def _switch(self, name: str, kept: Collection[str]) -> None:
        started, place = perf_counter(), self.find_place(name)
        try:
            loaded = self._fetch(name)
        except DeviceLost:
            raise
        except Exception as error:
            log.exception("model %r could not be loaded", name)
            subject = f"model: {name!r} could not be loaded"
            if isinstance(error, OutOfMemory):
                raise OutOfMemory(subject) from error
            raise PipelineError(f"{subject}: {_describe_failure(error)}") from error
        self._device[name] = loaded
        self._device.move_to_end(name)
        self._current = name
        self.switches += 1
        self._limit_device(0)
        self._limit_memory(kept)
        log.info("model %r is in use, from %s, after %.2f s", name, place, perf_counter() - started)
        assumed, self._models[name] = self._models[name], loaded.model
        if loaded.model.profile != assumed.profile:
            raise Unavailable(f"model: what {name!r} predicts is known only now; send the request again")

    def _fetch(self, name: str) -> MovableModel:
        """Return a model that is on the device."""
        if name in self._device:
            return self._device[name]
        if name not in self._memory:
            self._limit_device(_estimate_size(self._models[name]))
            return self._load(self._models[name])
        loaded = self._memory[name]
        self._limit_device(loaded.size)
        try:
            loaded.move("device")
        except BaseException:
            loaded.move("memory")  # what was moved by then
            raise
        del self._memory[name]
        return loaded

    def _limit_device(self, needed: int) -> None:
        """Move models to CPU memory until `needed` bytes more fit; without need of any, the current one stays."""
        while sum(loaded.size for loaded in self._device.values()) + needed > self._budgets[0]:
            name = next(iter(self._device), None)
            if name is None or (not needed and name == self._current):
                return
            self._park(name)

    def _park(self, name: str) -> None:
        """Move a model from the device to CPU memory."""
        self._device[name].move("memory")
        self._memory[name] = self._device.pop(name)

    def _limit_memory(self, kept: Collection[str], budget: int | None = None) -> None:
        """Drop models that are not kept until the rest fits into the budget, by default that of the settings."""
        budget = self._budgets[1] if budget is None else budget
        for name in [name for name in self._memory if name not in kept]:
            if sum(loaded.size for loaded in self._memory.values()) <= budget:
                return
            del self._memory[name]
            log.info("model %r was dropped from memory; its next request loads it again", name)


def _estimate_size(model: ServedModel) -> int:
    """Return the size of a model's checkpoint in bytes; raise `WeightsError` if it is damaged or not there."""
    return sum(file.stat().st_size for file in checkpoint_files(open_checkpoint(model.entry.path)))


def _describe_failure(error: Exception) -> str:
    """Return a reason for clients: no path, no library's text."""
    return str(error) if isinstance(error, PipelineError) else "the server's log has the details"
