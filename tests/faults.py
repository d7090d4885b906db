"""Faults for tests: what can go wrong in a call, and a way to make it happen in a given call of a function."""

from dataclasses import replace
from threading import Event

from waiting import LIMIT


class Faulty:
    """A function in which faults happen.

    Args:
        faults: by the number of the call, from 1, in which each happens. A fault is called with a function that
            completes the call, and its result is the call's.

    Attributes:
        calls: how often it was called.
    """

    def __init__(self, function, faults):
        self._function, self._faults = function, faults
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self._function, name)

    def __call__(self, *args, **options):
        self.calls += 1
        fault = self._faults.get(self.calls, complete)
        return fault(lambda: self._function(*args, **options))


class Part:
    """A network with one method replaced; all else is the network's."""

    def __init__(self, network, **methods):
        self._network = network
        self.__dict__ |= methods

    def __getattr__(self, name):
        return getattr(self._network, name)


def inject(weights, part, faults):
    """Return weights with faults in one part, and its calls: unet, text_encoder, vae_encode or vae_decode."""
    if part == "unet":
        calls = Faulty(weights.unet, faults)
        return replace(weights, unet=calls), calls
    if part == "text_encoder":
        first, *others = weights.text_encoders
        calls = Faulty(first.encode, faults)
        return replace(weights, text_encoders=(Part(first, encode=calls), *others)), calls
    method = part.removeprefix("vae_")
    calls = Faulty(getattr(weights.vae, method), faults)
    return replace(weights, vae=Part(weights.vae, **{method: calls})), calls


def complete(call):
    return call()


def fail(error):
    """Return a fault that raises an error."""

    def fault(call):
        raise error

    return fault


def run_out_of_memory(call):
    """The error that torch raises on CUDA."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")


def run_out_of_cpu_memory(call):
    """The error that torch raises on a CPU, from an allocation that no machine has memory for."""
    import torch

    torch.empty(1 << 60, dtype=torch.uint8)


def return_nan(call):
    """The call's tensor, with NaN for every number."""
    return call() * float("nan")


class Hang:
    """A fault that waits until it is released, and then completes the call.

    Attributes:
        begun: set once the call hangs.
    """

    def __init__(self):
        self.begun, self._released = Event(), Event()

    def __call__(self, call):
        self.begun.set()
        assert self._released.wait(LIMIT)
        return call()

    def release(self):
        self._released.set()


def lose_device(monkeypatch):
    """Return a fault after which every use of the device fails, like after an illegal memory access on CUDA."""
    text = (
        "CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA` for details."
    )

    def raise_again(*_, **__):
        raise RuntimeError(text)

    def fault(call):
        monkeypatch.setattr("torch.zeros", raise_again)
        raise_again()

    return fault
