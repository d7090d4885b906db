"""What replicas serve and how many there are, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass

from server.config.settings import Settings
from server.engine.model import ServedModel


@dataclass(frozen=True, slots=True)
class Service:
    """What every replica serves. It is sent to them, so files must have the same paths on all machines."""

    model: ServedModel
    settings: Settings
    others: tuple[ServedModel, ...]
    problems: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas there are, and what each takes of a machine.

    Attributes:
        replicas, most: smallest and largest number; in between, it follows the number of open requests.
        cpus, gpus: what Ray reserves for each.
        has_spare: whether another one fits, which then starts before an old one is stopped.
    """

    replicas: int
    most: int
    cpus: int = 1
    gpus: int = 0
    has_spare: bool = False
