"""`naiad` with a model without networks in which a fault happens: python tests/faulty_server.py FAULT ARGUMENTS

FAULT is where something goes wrong: load-hangs, load-fails, step-hangs or device-lost.
"""

import sys
from threading import Event

from fake_model import FakeModel

from pipelines.errors import DeviceLost, WeightsError
from server.cli import bootstrap
from server.cli.main import main


class FaultyModel(FakeModel):
    """A model whose first evaluation hangs or fails, if that is the fault."""

    def __init__(self, fault):
        super().__init__()
        self._fault = fault

    def _evaluate(self, steps):
        if self._fault == "step-hangs":
            Event().wait()
        if self._fault == "device-lost":
            raise DeviceLost("cuda:0: an illegal memory access was encountered")
        return super()._evaluate(steps)


def build_load(fault):
    """Return what replaces the loading of models."""

    def load(models, settings, warms_up):
        if fault == "load-hangs":
            Event().wait()
        if fault == "load-fails":
            raise WeightsError("a.safetensors", "truncated")
        return FaultyModel(fault)

    return load


if __name__ == "__main__":
    bootstrap._load_models = build_load(sys.argv.pop(1))
    main()
