"""The model a server answers with, known from its file alone: what it is, and the profile that fits it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.detect import Detection, detect, detect_inpainting
from server.config.catalog import Catalog, ModelEntry
from server.config.profiles import Profile, find_profile, load_profiles, match_profile
from server.config.resources import configs
from server.config.toml import ConfigError


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A checkpoint before it is loaded.

    `model` is its id in the catalogue, `ids` all that name the same checkpoint, `elsewhere` those that name another;
    `fingerprint` is the 8 hex digits its pictures carry as Source; `upscaler` the file of what enlarges them;
    `files` the hashes of all weights from beside the checkpoint, by their keys in the catalogue.
    """

    model: str
    ids: tuple[str, ...]
    elsewhere: tuple[str, ...]
    entry: ModelEntry
    detection: Detection
    profile: Profile
    reason: str
    fingerprint: str
    upscaler: Path | None = None
    files: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def upscales(self) -> bool:
        """Whether there is a network that enlarges pictures."""
        return self.upscaler is not None

    @property
    def inpainting(self) -> str:
        """What draws a part of a picture anew: a "network" made for it, or a "blend" with the picture."""
        return "blend" if self.entry.inpainting is None else "network"

    def card(self) -> dict[str, object]:
        """What `/models` tells: facts and how they are known, never a path."""
        return {
            "id": self.model,
            "file": self.entry.path.name,
            "hash": self.fingerprint,
            "family": self.detection.family,
            "channels": self.detection.channels,
            "prediction": self.detection.prediction,
            "zero_terminal_snr": self.detection.zsnr,
            "inpainting": self.inpainting,
            "upscaler": "lanczos" if self.upscaler is None else self.upscaler.name,
            "evidence": list(self.detection.evidence),
            "profile": self.profile.name,
            "profile_reason": self.reason,
        }


def detect_model(catalog: Catalog, model: str | None = None) -> ServedModel:
    """Look at a listed checkpoint, the default unless another is named, without loading it.

    Raises:
        WeightsError: it cannot serve.
        ConfigError: a file or profile that the catalogue names does not exist.
    """
    name = model or catalog.default
    entry = catalog.models[name]
    catalog.require_files(name)
    identity = detect(entry.path, entry.prediction, entry.zsnr)
    if identity.channels != 4:
        raise WeightsError(
            entry.path, "an inpainting model, which draws only into a picture; name one with 4 channels"
        )
    if entry.inpainting is not None:
        detect_inpainting(entry.inpainting, identity)
    profiles = load_profiles(configs() / "profiles")
    if entry.profile is not None:
        profile, reason = find_profile(profiles, entry.profile), "the catalogue says so"
    else:
        profile, reason = match_profile(profiles, entry.path.name, identity)
    same = tuple(other for other in catalog.models if catalog.models[other] == entry)
    elsewhere = tuple(other for other in catalog.models if other not in same)
    files = {".".join(map(str, key)): fingerprint(path) for key, path in catalog.auxiliary_files(name)}
    return ServedModel(
        name,
        same,
        elsewhere,
        entry,
        identity,
        profile,
        reason,
        fingerprint(entry.path),
        catalog.upscaler,
        files,
    )


def model_cards(catalog: Catalog) -> list[Mapping[str, object]]:
    """A card for every checkpoint of a catalogue; one that cannot serve says why."""
    return [_card(catalog, model) for model in catalog.distinct()]


def _card(catalog: Catalog, model: str) -> Mapping[str, object]:
    try:
        return detect_model(catalog, model).card()
    except (WeightsError, ConfigError) as error:
        return {"id": model, "problem": str(error)}


def format_card(card: Mapping[str, object]) -> str:
    """A model's card for a person to read."""
    if "problem" in card:
        return f"{card['id']}: {card['problem']}"
    lines = [f"{card['id']}: {card['file']}, {card['family']}, hash {card['hash']}"]
    lines += [f"  {fact}" for fact in cast("list[str]", card["evidence"])]
    return "\n".join([*lines, f"  profile {card['profile']}: {card['profile_reason']}"])
