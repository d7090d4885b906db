"""Errors of this package."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

LONGEST_NAME = 200


def abbreviate(name: str) -> str:
    """Return a name from a file for a message: on one line, and cut in the middle if it is long."""
    return escape(name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 63]}...{name[-60:]}")


def escape(text: str) -> str:
    """Return a text on one line, with line breaks and control characters as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class PipelineError(Exception):
    """Base of all errors that this package raises on purpose."""


class InvalidPrompt(PipelineError):
    """The prompt cannot be turned into conditioning."""


class UnknownName(PipelineError):
    """A sampler, schedule or option that is not in its registry; the message suggests the closest and lists all."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        matches = get_close_matches(name, self.known, n=1)
        hint = f" (did you mean {matches[0]!r}?)" if matches else ""
        super().__init__(f"{name!r} is not a {kind}{hint}; known: {', '.join(self.known)}")


class WeightsError(PipelineError):
    """A weights file that cannot be used; the message is one line with the file's name and the reason."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(f"{abbreviate(self.path.name)}: {reason}")


class UnusableSetting(PipelineError):
    """A setting that cannot be used here: with this device, its memory or the packages that are installed."""


class UnusableFile(PipelineError):
    """Files that a request names cannot be used: for another kind of model, damaged, or too strong.

    Args:
        kind: what they are: "LoRA", "textual inversion" or "ControlNet".
    """

    def __init__(self, kind: str, names: str, reason: str) -> None:
        super().__init__(f"{kind} {names}: {reason}")


class NotFinite(PipelineError):
    """The network or the VAE returned NaN or infinity."""


class OutOfMemory(PipelineError):
    """An operation needs more memory than there is, on the device or for the CPU; others can still succeed.

    Args:
        subject: what it was for.
    """

    def __init__(self, subject: str = "") -> None:
        super().__init__(f"{subject}: not enough memory" if subject else "not enough memory")


class DeviceLost(PipelineError):
    """The device fails every operation; only a new process can use it again."""


class Cancelled(PipelineError):
    """The run was stopped between two evaluations because the client no longer waits."""
