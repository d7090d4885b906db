"""`weights.toml`: which model a server loads, and what to know about it that its file does not say."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from server.settings import ConfigError, Strict, checked, read_toml


class Entry(Strict):
    """One checkpoint: a file or diffusers folder, and whatever overrules or completes it."""

    path: Path
    profile: str | None = None
    prediction: Literal["eps", "v", "edm_v"] | None = None
    zsnr: bool | None = None
    sigma_max: Annotated[float, Field(gt=0)] | None = None
    vae: Path | None = None
    text_encoders: tuple[Path, ...] = ()

    def beside(self, folder: Path) -> "Entry":
        """The same entry with relative paths taken from a folder."""
        return self.model_copy(
            update={
                "path": folder / self.path,
                "vae": None if self.vae is None else folder / self.vae,
                "text_encoders": tuple(folder / path for path in self.text_encoders),
            }
        )


class Catalog(Strict):
    """NAI model ids and their checkpoints; `default` answers for every id that is not listed."""

    default: str
    models: dict[str, Entry]

    def entry(self, model: str) -> Entry:
        """The checkpoint for a model id."""
        return self.models.get(model, self.models[self.default])


def load_catalog(file: Path) -> Catalog:
    """Read a catalogue; its relative paths are beside it.

    Raises:
        ConfigError: an unknown key, or a default that is not listed.
    """
    catalog = checked(Catalog, read_toml(file), str(file))
    if catalog.default not in catalog.models:
        raise ConfigError(f"{file}: default = {catalog.default!r} is not one of {', '.join(catalog.models)}")
    entries = {name: entry.beside(file.parent) for name, entry in catalog.models.items()}
    return catalog.model_copy(update={"models": entries})


def single(path: Path) -> Catalog:
    """A catalogue of one checkpoint, which answers for every model id."""
    return Catalog(default="nai-diffusion-3", models={"nai-diffusion-3": Entry(path=path)})
