"""The ControlNets of a catalog: files, and how strong each is, when, and for what kind of map."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, cast

from pydantic import AfterValidator, BeforeValidator, Field

from server.config.toml import Key, StrictModel, expand_path

MODES = {
    "openpose": 0,
    "depth": 1,
    **dict.fromkeys(("hed", "pidi", "scribble", "ted"), 2),
    **dict.fromkeys(("canny", "lineart", "anime_lineart", "mlsd"), 3),
    "normal": 4,
    "segment": 5,
    "tile": 6,
    "repaint": 7,
}
"""Control types of xinsir's union networks, by the names of the maps."""
Share = Annotated[float, Field(ge=0, le=1)]


def find_mode(value: object) -> object:
    """Return the number of a control type; raise ValueError for a name that no union network has."""
    if not isinstance(value, str):
        return value
    if value not in MODES:
        raise ValueError(f"is not a control type; use a number or one of {', '.join(MODES)}")
    return MODES[value]


class ControlNetFile(StrictModel):
    """A ControlNet's file or diffusers folder.

    `mode` is a union network's control type. `strength` is a factor of all strengths, `start` and `end` are the share
    of the steps before which, and after which, the network has no effect.
    """

    path: Path
    mode: Annotated[int, Field(ge=0), BeforeValidator(find_mode)] | None = None
    strength: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    start: Share = 0.0
    end: Share = 1.0


def _to_tables(value: object) -> object:
    values = cast("Sequence[object]", value if isinstance(value, list | tuple) else [value])
    return tuple(map(expand_path, values))


def _check_files(files: tuple[ControlNetFile, ...]) -> tuple[ControlNetFile, ...]:
    if not files:
        raise ValueError("no file; name one, or remove the key")
    late = next((file for file in files if file.start >= file.end), None)
    if late is not None:
        raise ValueError(f"start = {late.start:g} is not below end = {late.end:g}")
    return files


ControlNetFiles = Annotated[
    tuple[ControlNetFile, ...], BeforeValidator(_to_tables), AfterValidator(_check_files)
]
"""A table, a path alone, or a list of these, one for each family of models."""


def resolve_control_paths(
    controlnets: Mapping[str, ControlNetFiles], folder: Path
) -> dict[str, ControlNetFiles]:
    """Return the same ControlNets with relative paths resolved against a folder."""
    return {
        name: tuple(file.model_copy(update={"path": folder / file.path}) for file in files)
        for name, files in controlnets.items()
    }


def list_control_files(controlnets: Mapping[str, ControlNetFiles]) -> Iterator[tuple[Key, ControlNetFile]]:
    """Yield the key and the table of each file."""
    for name, files in controlnets.items():
        for index, file in enumerate(files):
            yield ("controlnets", name) if len(files) == 1 else ("controlnets", name, index), file
