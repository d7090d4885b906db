"""Which checkpoints there are: those of `weights.toml`, one named alone, or the embedded demo model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import PrivateAttr

from server.config.profiles import HighestSigma
from server.config.resources import demo_weights
from server.config.settings import Settings
from server.config.toml import ConfigError, Key, StrictModel, dotted, locate, read_toml, validate


class ModelEntry(StrictModel):
    """One checkpoint: a file or diffusers folder, and whatever overrules or completes it."""

    path: Path
    profile: str | None = None
    prediction: Literal["eps", "v", "edm_v"] | None = None
    zsnr: bool | None = None
    sigma_max: HighestSigma | None = None
    vae: Path | None = None
    text_encoders: tuple[Path, ...] = ()
    inpainting: Path | None = None

    def relative_to(self, folder: Path) -> "ModelEntry":
        """The same entry with relative paths taken from a folder."""
        return self.model_copy(
            update={
                "path": folder / self.path,
                "vae": None if self.vae is None else folder / self.vae,
                "inpainting": None if self.inpainting is None else folder / self.inpainting,
                "text_encoders": tuple(folder / path for path in self.text_encoders),
            }
        )

    def files(self) -> Iterator[tuple[Key, Path]]:
        """Every file or folder it names, and the key that does."""
        yield ("path",), self.path
        if self.vae is not None:
            yield ("vae",), self.vae
        for index, path in enumerate(self.text_encoders):
            yield ("text_encoders", index), path
        if self.inpainting is not None:
            yield ("inpainting",), self.inpainting


class Catalog(StrictModel):
    """NAI model ids and their checkpoints; `default` answers for every id that is not listed.

    `upscaler` is the network that enlarges the pictures of all of them.
    """

    default: str
    models: dict[str, ModelEntry]
    upscaler: Path | None = None
    _file: Path | None = PrivateAttr(None)

    def distinct(self) -> tuple[str, ...]:
        """One model id for each checkpoint, the default's first."""
        names = (self.default, *self.models)
        entries = [self.models[name] for name in names]
        return tuple(name for index, name in enumerate(names) if self.models[name] not in entries[:index])

    def relative_to(self, file: Path) -> "Catalog":
        """The same catalogue as this file's: relative paths are taken from beside it."""
        entries = {name: entry.relative_to(file.parent) for name, entry in self.models.items()}
        upscaler = None if self.upscaler is None else file.parent / self.upscaler
        catalog = self.model_copy(update={"models": entries, "upscaler": upscaler})
        catalog._file = file
        return catalog

    def require_files(self, model: str) -> None:
        """Refuse a listed model with a ConfigError unless all the files it names are there."""
        for key, path in ((("path",), self.models[model].path), *self.auxiliary_files(model)):
            if not path.exists():
                named = key if key == ("upscaler",) else ("models", model, *key)
                where = "" if self._file is None else f"{locate(self._file, named)}: {dotted(named)}: "
                raise ConfigError(f"{where}{path}: no such file")

    def auxiliary_files(self, model: str) -> Iterator[tuple[Key, Path]]:
        """The weights that a model is served with beside its checkpoint, and what the catalogue calls them."""
        yield from ((key, path) for key, path in self.models[model].files() if key != ("path",))
        if self.upscaler is not None:
            yield ("upscaler",), self.upscaler


def load_catalog(file: Path) -> Catalog:
    """Read a catalogue; its relative paths are beside it, and need not lead anywhere yet.

    Raises:
        ConfigError: an unknown key, a value that is not allowed, or a default that is not listed.
    """
    catalog = validate(Catalog, read_toml(file), file)
    if catalog.default not in catalog.models:
        listed = ", ".join(catalog.models) or "the models, of which there are none"
        raise ConfigError(
            f"{locate(file, ['default'])}: default = {catalog.default!r} is not one of {listed}"
        )
    return catalog.relative_to(file)


def single_model_catalog(path: Path) -> Catalog:
    """A catalogue of one checkpoint, which answers for every model id."""
    return Catalog(default="nai-diffusion-3", models={"nai-diffusion-3": ModelEntry(path=path)})


def choose_catalog(settings: Settings, checkpoint: Path | None, demo: bool, weights: Path | None) -> Catalog:
    """The catalogue a command is about: what its arguments name, else what the settings do.

    Raises:
        ConfigError: the arguments name more than one, nothing names any, or the catalogue is wrong.
    """
    asked = {"a checkpoint": checkpoint is not None, "--demo": demo, "--weights": weights is not None}
    given = [name for name, is_given in asked.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} contradict each other; name one of them")
    if demo:
        return _demo()
    if checkpoint is not None:
        return single_model_catalog(checkpoint)
    file = weights or settings.weights
    if file is None:
        raise ConfigError("no model: name a checkpoint, a catalogue with --weights, or --demo")
    return load_catalog(file)


def _demo() -> Catalog:
    """The embedded demo model."""
    folder = demo_weights()
    inpainting = folder / "naiad-demo-inpainting.safetensors"
    entry = ModelEntry(
        path=folder / "naiad-demo.safetensors", inpainting=inpainting if inpainting.exists() else None
    )
    return Catalog(default="nai-diffusion-3", models={"nai-diffusion-3": entry})
