"""What can go wrong below the server.

PipelineError
├── InvalidPrompt      the text cannot be used as it stands
├── UnknownName        a sampler, schedule or option that is not in its registry
├── WeightsError       a file that cannot be loaded, with the reason
├── NotFinite          the network or the decoder produced NaN or infinity
├── DeviceLost         the device fails every operation until the process ends
└── Cancelled          whoever asked has gone
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class PipelineError(Exception):
    """Base of everything this package raises on purpose."""


class InvalidPrompt(PipelineError):
    """The prompt's text cannot be turned into conditioning."""


class UnknownName(PipelineError):
    """A name that its registry does not hold; the message offers the nearest and lists all."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        near = get_close_matches(name, self.known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        super().__init__(f"{name!r} is not a {kind}{hint}; known: {', '.join(self.known)}")


class WeightsError(PipelineError):
    """A weights file that cannot serve; one line naming the file and the reason."""

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path, self.reason = Path(path), reason
        super().__init__(f"{self.path.name}: {reason}")


class NotFinite(PipelineError):
    """NaN or infinity where a picture should be."""


class Cancelled(PipelineError):
    """The run was stopped between two steps because nobody waits for it any more."""


class DeviceLost(PipelineError):
    """The device fails every operation; only a new process can use it again."""
