"""Catalogs of checkpoints and of tools: read from `weights.toml`, or made for one checkpoint or the demo model."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, PrivateAttr

from pipelines.errors import abbreviate
from pipelines.types import PredictionType
from server.config.controlnets import ControlNetFiles, list_control_files, resolve_control_paths
from server.config.profiles import SigmaMax
from server.config.resources import demo_weights
from server.config.settings import Settings
from server.config.toml import (
    SPECIAL_FILE,
    ConfigError,
    Key,
    StrictModel,
    expand_path,
    is_special,
    join_key,
    locate,
    read_toml,
    validate,
)

Strength = Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)]


class LoraEntry(StrictModel):
    """A LoRA that is always applied, and its strength; `unet` and `text` are strengths of its parts instead."""

    name: str
    strength: Strength = 1.0
    unet_strength: Strength | None = None
    text_strength: Strength | None = None

    @property
    def unet(self) -> float:
        """Strength for the UNet."""
        return self.strength if self.unet_strength is None else self.unet_strength

    @property
    def text(self) -> float:
        """Strength for the text encoders."""
        return self.strength if self.text_strength is None else self.text_strength


Triple = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class VibeFiles(StrictModel):
    """An image adapter for vibe transfer, its image encoder if that is another file, and a factor of all strengths."""

    path: Path
    image_encoder: Path | None = None
    strength: Positive = 1.0

    def resolve_paths(self, folder: Path) -> "VibeFiles":
        """Return the same with relative paths resolved against a folder."""
        encoder = None if self.image_encoder is None else folder / self.image_encoder
        return self.model_copy(update={"path": folder / self.path, "image_encoder": encoder})


VibeEntry = Annotated[VibeFiles | None, BeforeValidator(expand_path)]
"""A table, or the adapter's path alone."""


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
    vibe: VibeEntry = None
    loras: tuple[LoraEntry, ...] = ()

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
        update["vibe"] = None if self.vibe is None else self.vibe.resolve_paths(folder)
        return self.model_copy(update=update)

    def iter_auxiliary_files(self) -> Iterator[tuple[Key, Path]]:
        """Yield the key and path of each file or folder on which the images depend besides the checkpoint."""
        if self.vae is not None:
            yield ("vae",), self.vae
        for index, path in enumerate(self.text_encoders):
            yield ("text_encoders", index), path
        if self.inpainting is not None:
            yield ("inpainting",), self.inpainting


class ToolFile(StrictModel):
    """An ONNX network, and how its input is made: its side in pixels, and what is taken from red, green and blue of
    0 to 1, and what they are divided by. What is None is known from the file.
    """

    path: Path
    size: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] | None = None
    mean: Triple | None = None
    std: tuple[Positive, Positive, Positive] | None = None


ToolEntry = Annotated[ToolFile | None, BeforeValidator(expand_path)]
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
    those of the director tools and annotators. `lora_folder` is the folder of the LoRAs that requests may name,
    `inversion_folder` that of the textual inversions. `controlnets` are those of all models, by the names that
    requests have for them.
    """

    default: str
    models: dict[str, ModelEntry]
    upscaler: Path | None = None
    lora_folder: Path | None = None
    inversion_folder: Path | None = None
    tools: ToolFiles = ToolFiles()
    controlnets: dict[str, ControlNetFiles] = Field(default_factory=dict[str, ControlNetFiles])
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
        folders = {name: file.parent / folder for name, folder in self._folders().items()}
        files = {
            "models": entries,
            "upscaler": upscaler,
            "tools": self.tools.resolve_paths(file.parent),
            "controlnets": resolve_control_paths(self.controlnets, file.parent),
        }
        catalog = self.model_copy(update=files | folders)
        catalog._file = file
        return catalog

    def require_files(self, model: str) -> None:
        """Raise `ConfigError` with the line in the catalog if a file of a listed model is missing or not regular."""
        entry = self.models[model]
        tools = [(("tools", tool), file.path) for tool, file in self.tools.list_files().items()]
        controls = [(key, file.path) for key, file in list_control_files(self.controlnets)]
        others = [(("preview_decoder",), entry.preview_decoder), *_list_vibe_files(entry.vibe)]
        optional = ((key, path) for key, path in others if path is not None)
        for key, path in (
            (("path",), entry.path),
            *self.iter_auxiliary_files(model),
            *optional,
            *tools,
            *controls,
        ):
            exists = os.path.exists(path)  # noqa: PTH110 -- False, not an error, if the name is too long
            if not exists or is_special(path):
                full_key = key if key[0] in ("upscaler", "tools", "controlnets") else ("models", model, *key)
                where = f"{self.describe_key(full_key)}: " if self._file else ""
                reason = SPECIAL_FILE if exists else "no such file"
                raise ConfigError(f"{where}{abbreviate(str(path))}: {reason}")
        for name, folder in self._folders().items():
            if not folder.is_dir():
                raise ConfigError(f"{self.describe_key((name,))}: {abbreviate(str(folder))}: no such folder")

    def _folders(self) -> dict[str, Path]:
        """Return the folders of files that requests may name, by their keys."""
        folders = {"lora_folder": self.lora_folder, "inversion_folder": self.inversion_folder}
        return {name: folder for name, folder in folders.items() if folder is not None}

    def describe_key(self, key: Key) -> str:
        """Return where a key is, for messages: file, line and key."""
        return f"{locate(self._file, key)}: {join_key(key)}" if self._file else join_key(key)

    def with_default(self, model: str | None) -> "Catalog":
        """Return the catalog with another default model, or raise `ConfigError` if it does not list that."""
        if model is None:
            return self
        if model not in self.models:
            raise ConfigError(f"--model {model!r} is not in the catalog; it has {', '.join(self.models)}")
        return self.model_copy(update={"default": model})

    def iter_auxiliary_files(self, model: str) -> Iterator[tuple[Key, Path]]:
        """Yield the key and path of each file or folder on which a model's images depend besides its checkpoint."""
        yield from self.models[model].iter_auxiliary_files()
        if self.upscaler is not None:
            yield ("upscaler",), self.upscaler


def _list_vibe_files(vibe: VibeFiles | None) -> list[tuple[Key, Path | None]]:
    if vibe is None:
        return []
    return [(("vibe", "path"), vibe.path), (("vibe", "image_encoder"), vibe.image_encoder)]


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
    vibe: Path | None = None,
) -> Catalog:
    """A catalog of one checkpoint, which serves all model ids."""
    adapter = None if vibe is None else VibeFiles(path=vibe)
    entry = ModelEntry(path=path, inpainting=inpainting, prediction=prediction, zsnr=zsnr, vibe=adapter)
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
        files = (folder / f"naiad-demo-{name}.safetensors" for name in ("inpainting", "vibe"))
        inpainting, vibe = (file if file.exists() else None for file in files)
        catalog = single_model_catalog(folder / "naiad-demo.safetensors", inpainting, prediction, zsnr, vibe)
        return catalog.model_copy(update={"lora_folder": folder / "loras"})
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
