"""The ControlNets of a catalog: which of them a model can use, and what their files are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pipelines.adapters.control_file import ControlFile, detect_control
from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.families import FAMILIES
from server.config.catalog import Catalog
from server.config.controlnets import ControlNetFile, list_control_files
from server.config.toml import ConfigError


@dataclass(frozen=True, slots=True)
class ServedControl:
    """A ControlNet that a model can use, not loaded yet; `modes` is the number of a union network's control types."""

    name: str
    settings: ControlNetFile
    modes: int | None
    fingerprint: str

    def card(self) -> dict[str, object]:
        """Part of the model's entry of `/models`."""
        return {
            "name": self.name,
            "file": self.settings.path.name,
            "hash": self.fingerprint,
            "modes": self.modes,
            "mode": self.settings.mode,
        }


@dataclass(frozen=True, slots=True)
class ServedControls:
    """The ControlNets of the catalog by name: those that a model can use, and why it cannot use the others."""

    usable: Mapping[str, ServedControl] = field(default_factory=dict[str, ServedControl])
    problems: Mapping[str, str] = field(default_factory=dict[str, str])


def detect_controls(catalog: Catalog, family: str) -> ServedControls:
    """Detect which ControlNets of a catalog are for a family of models.

    Raises `WeightsError` if a file is no ControlNet, and `ConfigError` if a `mode` does not suit one, or if two of one
    name are for the family.
    """
    usable: dict[str, ServedControl] = {}
    problems: dict[str, str] = {}
    for key, settings in list_control_files(catalog.controlnets):
        name, file = str(key[1]), detect_control(settings.path)
        try:
            if settings.mode is not None:
                file.check_mode(settings.mode)
        except WeightsError as error:
            raise ConfigError(f"{catalog.describe_key((*key, 'mode'))}: {error}") from None
        try:
            file.check_family(family)
        except WeightsError as error:
            problems[name] = error.reason
            continue
        if name in usable:
            reason = f"{usable[name].settings.path.name!r} is for the same models; remove one of the two"
            raise ConfigError(f"{catalog.describe_key(key)}: {reason}")
        usable[name] = ServedControl(name, settings, file.modes, fingerprint(settings.path))
    return ServedControls(usable, {name: problems[name] for name in problems if name not in usable})


def describe_controls(catalog: Catalog) -> Iterator[str]:
    """Yield a line about each ControlNet's file."""
    for key, settings in list_control_files(catalog.controlnets):
        yield f"controlnet {key[1]}: {settings.path.name}, {_describe_file(detect_control(settings.path))}"


def _describe_file(file: ControlFile) -> str:
    types = "" if file.modes is None else f", a union of {file.modes} control types"
    return f"for {FAMILIES[file.family].title}{types}"
