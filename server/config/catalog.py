"""Catalogs of checkpoints and of tools: read from `weights.toml`, or made for one checkpoint or the demo model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, PrivateAttr

from pipelines.errors import abbreviate
from pipelines.types import PredictionType
from server.config.profiles import SigmaMax
from server.config.resources import demo_weights
from server.config.settings import Settings
from server.config.toml import (
    SPECIAL_FILE,
    ConfigError,
    Key,
    StrictModel,
    is_special,
    join_key,
    locate,
    read_toml,
    validate,
)


class ModelEntry(StrictModel):
    """A checkpoint, either a file or a diffusers folder, with overrides and auxiliary weights."""

    path: Path
    profile: str | None = None
    prediction: PredictionType | None = None
    zsnr: bool | None = None
    sigma_max: SigmaMax | None = None
    vae: Path | None = None
    text_encoders: tuple[Path, ...] = ()
    inpainting: Path | None = None
    preview_decoder: Path | None = None
    clip_skip: Annotated[int, Field(ge=1, le=12)] | None = None

    def resolve_paths(self, folder: Path) -> "ModelEntry":
        """Return the entry with its relative paths resolved against a folder."""
        files = {
            "path": self.path,
            "vae": self.vae,
            "inpainting": self.inpainting,
            "preview_decoder": self.preview_decoder,
        }
        update: dict[str, object] = {key: folder / file for key, file in files.items() if file is not None}
        update["text_encoders"] = tuple(folder / file for file in self.text_encoders)
        return self.model_copy(update=update)


Triple = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ToolFile(StrictModel):
    """An ONNX network, and how its input is made: its side in pixels, and what is taken from red, green and blue of
    0 to 1, and what they are divided by. What is None is known from the file.
    """

    path: Path
    size: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] | None = None
    mean: Triple | None = None
    std: tuple[Positive, Positive, Positive] | None = None


def _to_table(value: object) -> object:
    return {"path": value} if isinstance(value, str) else value


ToolEntry = Annotated[ToolFile | None, BeforeValidator(_to_table)]
"""A table, or the path alone."""


class ToolFiles(StrictModel):
    """The networks of the director tools and annotators; a tool without one uses a filter, or is not offered."""

    matting: ToolEntry = None
    lineart: ToolEntry = None
    sketch: ToolEntry = None
    hed: ToolEntry = None
    midas: ToolEntry = None
    normal: ToolEntry = None
    mlsd: ToolEntry = None
    openpose: ToolEntry = None
    uniformer: ToolEntry = None

    def list_files(self) -> dict[str, ToolFile]:
        """Return the networks that are configured, by tool."""
        return {tool: file for tool in ToolFiles.model_fields if (file := getattr(self, tool)) is not None}

    def resolve_paths(self, folder: Path) -> "ToolFiles":
        """Return the same with relative paths resolved against a folder."""
        files = self.list_files()
        return self.model_copy(
            update={
                tool: file.model_copy(update={"path": folder / file.path}) for tool, file in files.items()
            }
        )


class Catalog(StrictModel):
    """NAI model ids and their checkpoints.

    `default` serves all ids that are not listed; `upscaler` is the upscaling network for all models, and `tools` are
    those of the director tools and annotators.
    """

    default: str
    models: dict[str, ModelEntry]
    upscaler: Path | None = None
    tools: ToolFiles = ToolFiles()
    _file: Path | None = PrivateAttr(None)

    def distinct_models(self) -> tuple[str, ...]:
        """Return one model id per checkpoint, starting with the default."""
        names = (self.default, *self.models)
        entries = [self.models[name] for name in names]
        return tuple(name for index, name in enumerate(names) if self.models[name] not in entries[:index])

    def resolve_paths(self, file: Path) -> "Catalog":
        """Return the catalog as read from a file: relative paths are resolved against the file's folder."""
        entries = {name: entry.resolve_paths(file.parent) for name, entry in self.models.items()}
        upscaler = None if self.upscaler is None else file.parent / self.upscaler
        tools = self.tools.resolve_paths(file.parent)
        catalog = self.model_copy(update={"models": entries, "upscaler": upscaler, "tools": tools})
        catalog._file = file
        return catalog

    def require_files(self, model: str) -> None:
        """Raise `ConfigError` with the line in the catalog if a file of a listed model is missing or not regular."""
        entry = self.models[model]
        tools = ((("tools", tool), file.path) for tool, file in self.tools.list_files().items())
        previews = [] if entry.preview_decoder is None else [(("preview_decoder",), entry.preview_decoder)]
        for key, path in ((("path",), entry.path), *self.iter_auxiliary_files(model), *previews, *tools):
            exists = os.path.exists(path)  # noqa: PTH110 -- False, not an error, if the name is too long
            if not exists or is_special(path):
                full_key = key if key[0] in ("upscaler", "tools") else ("models", model, *key)
                where = f"{locate(self._file, full_key)}: {join_key(full_key)}: " if self._file else ""
                reason = SPECIAL_FILE if exists else "no such file"
                raise ConfigError(f"{where}{abbreviate(str(path))}: {reason}")

    def iter_auxiliary_files(self, model: str) -> Iterator[tuple[Key, Path]]:
        """Yield the key and path of each file or folder on which a model's images depend besides its checkpoint."""
        entry = self.models[model]
        if entry.vae is not None:
            yield ("vae",), entry.vae
        for index, path in enumerate(entry.text_encoders):
            yield ("text_encoders", index), path
        if entry.inpainting is not None:
            yield ("inpainting",), entry.inpainting
        if self.upscaler is not None:
            yield ("upscaler",), self.upscaler


def load_catalog(file: Path) -> Catalog:
    """Read a catalog; relative paths are resolved against its folder. The files need not exist.

    Raises `ConfigError` for an unknown key, an invalid value, or a default that is not listed.
    """
    catalog = validate(Catalog, read_toml(file), file)
    if catalog.default not in catalog.models:
        line, names = locate(file, ["default"]), ", ".join(catalog.models)
        reason = f"is not one of {names}" if names else "is not listed; the catalog has no models"
        raise ConfigError(f"{line}: default = {catalog.default!r} {reason}")
    return catalog.resolve_paths(file)


def single_model_catalog(
    path: Path,
    inpainting: Path | None = None,
    prediction: PredictionType | None = None,
    zsnr: bool | None = None,
) -> Catalog:
    """A catalog of one checkpoint, which serves all model ids."""
    entry = ModelEntry(path=path, inpainting=inpainting, prediction=prediction, zsnr=zsnr)
    return Catalog(default="nai-diffusion-3", models={"nai-diffusion-3": entry})


def choose_catalog(
    settings: Settings,
    checkpoint: Path | None,
    demo: bool,
    weights: Path | None,
    prediction: PredictionType | None = None,
    zsnr: bool | None = None,
) -> Catalog:
    """Return the catalog that a command's arguments name, or else the settings.

    Raises `ConfigError` if the arguments name more than one catalog, or say what the network of a catalog's model
    predicts; if there is no catalog, or it is invalid.
    """
    options = {"a checkpoint": checkpoint is not None, "--demo": demo, "--weights": weights is not None}
    used = [name for name, is_used in options.items() if is_used]
    if len(used) > 1:
        raise ConfigError(f"{' and '.join(used)} cannot be combined; use one of them")
    if demo:
        folder = demo_weights()
        inpainting = folder / "naiad-demo-inpainting.safetensors"
        existing = inpainting if inpainting.exists() else None
        return single_model_catalog(folder / "naiad-demo.safetensors", existing, prediction, zsnr)
    if checkpoint is not None:
        return single_model_catalog(checkpoint, None, prediction, zsnr)
    file = weights or settings.weights
    if file is None:
        raise ConfigError("no model: name a checkpoint, a catalog with --weights, or --demo")
    for key, flag in (("prediction", prediction), ("zsnr", zsnr)):
        if flag is not None:
            reason = f"is for a checkpoint on the command line; set {key} of the model in {file}"
            raise ConfigError(f"--{key} = {str(flag).lower()!r} {reason}")
    return load_catalog(file)
