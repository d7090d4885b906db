"""`naiad check FOLDER`: what each file in a folder is, and why it can be served or not."""

from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import WeightsError
from pipelines.weights.header import PICKLE_SUFFIXES
from server.config.catalog import single_model_catalog
from server.config.toml import ConfigError
from server.engine.model import ServedModel, detect_model

SUFFIXES = {".safetensors", ".sft", ".gguf", ".onnx", *PICKLE_SUFFIXES}
"""Suffixes of files that may hold weights; others, such as images and configs, are skipped."""


def is_collection(path: Path) -> bool:
    """Return whether a path is a folder of files, and not a diffusers folder or one component of it."""
    return path.is_dir() and not any(
        (path / name).exists() for name in ("unet", "config.json", "model_index.json")
    )


def check_folder(folder: Path) -> Iterator[str]:
    """Yield a line for each file and diffusers folder of a folder, then how many of them can be served.

    Raises `ConfigError` if the folder holds none.
    """
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES or is_diffusers(path))
    if not paths:
        raise ConfigError(f"{folder}: no safetensors file and no diffusers folder in it")
    count = 0
    for path in paths:
        verdict, is_served = check_file(path)
        count += is_served
        yield f"{path.name}: {verdict}"
    yield f"{count} of {len(paths)} can be served"


def is_diffusers(path: Path) -> bool:
    """Return whether a path is a diffusers folder, or one component of it."""
    return path.is_dir() and not is_collection(path)


def check_file(path: Path) -> tuple[str, bool]:
    """Return what a file or diffusers folder is, with the evidence, and whether it can be served as a model."""
    from server.engine.loading import check_model  # takes seconds

    try:
        model = detect_model(single_model_catalog(path))
        check_model(model)
    except WeightsError as error:
        return error.reason, False
    except ConfigError as error:
        return str(error), False
    return f"OK, {describe_model(model)}", True


def describe_model(model: ServedModel) -> str:
    """Return a model's kind and profile, and the evidence for them."""
    return f"profile {model.profile.name}; {'; '.join(model.detection.evidence)}"
