"""The served model as known from its files, and for some only after loading: detection, profile, fingerprints."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.detect import Detection, detect, detect_inpainting
from server.config.catalog import Catalog, ModelEntry, ToolFiles
from server.config.profiles import Profile, find_profile, load_profiles, match_profile
from server.config.resources import configs
from server.config.toml import ConfigError, join_key


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A checkpoint of the catalog that is not loaded yet."""

    model: str  # id in the catalog
    ids: tuple[str, ...]  # all ids of the same checkpoint
    other_ids: tuple[str, ...]  # the ids of other checkpoints
    entry: ModelEntry
    detection: Detection
    profile: Profile
    reason: str  # why this profile was chosen
    fingerprint: str  # 8 hex digits of the checkpoint, which images carry as Source
    upscaler: Path | None = None  # file of the upscaling network
    files: Mapping[str, str] = field(default_factory=dict[str, str])  # fingerprints of auxiliary files by key
    tools: ToolFiles = field(default_factory=ToolFiles)  # networks of the director tools and annotators

    @property
    def has_upscaler(self) -> bool:
        """Whether there is an upscaling network."""
        return self.upscaler is not None

    @property
    def inpainting(self) -> str:
        """Inpainting method: a "network" with 9 channels, or a "blend" of latents with the base model."""
        return "blend" if self.entry.inpainting is None else "network"

    def with_detection(self, detection: Detection) -> "ServedModel":
        """Return the model as known after loading, with the profile for it; raise `ConfigError` if there is none."""
        profile, reason = _choose_profile(self.entry, detection)
        return replace(self, detection=detection, profile=profile, reason=reason)

    def card(self) -> dict[str, object]:
        """Entry of `/models`: what the model is, and the evidence for it. Paths are left out."""
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
            "preview_decoder": None
            if self.entry.preview_decoder is None
            else self.entry.preview_decoder.name,
            "evidence": list(self.detection.evidence),
            "profile": self.profile.name,
            "profile_reason": self.reason,
        }


def detect_model(catalog: Catalog, model: str | None = None) -> ServedModel:
    """Detect what a listed checkpoint is, without loading it; by default the catalog's default model.

    Raises `WeightsError` if it cannot be served, and `ConfigError` if a listed file or its profile does not exist.
    """
    name = model or catalog.default
    entry = catalog.models[name]
    catalog.require_files(name)
    detection = detect(entry.path, entry.prediction, entry.zsnr)
    if detection.channels != 4:
        reason = "an inpainting model, which needs an init image; name a model with 4 input channels"
        raise WeightsError(entry.path, reason)
    if entry.inpainting is not None:
        detect_inpainting(entry.inpainting, detection)
    profile, reason = _choose_profile(entry, detection)
    ids = tuple(other for other in catalog.models if catalog.models[other] == entry)
    return ServedModel(
        model=name,
        ids=ids,
        other_ids=tuple(other for other in catalog.models if other not in ids),
        entry=entry,
        detection=detection,
        profile=profile,
        reason=reason,
        fingerprint=fingerprint(entry.path),
        upscaler=catalog.upscaler,
        files={join_key(key): fingerprint(path) for key, path in catalog.iter_auxiliary_files(name)},
        tools=catalog.tools,
    )


def _choose_profile(entry: ModelEntry, detection: Detection) -> tuple[Profile, str]:
    profiles = load_profiles(configs() / "profiles")
    if entry.profile is not None:
        return find_profile(profiles, entry.profile), "named in the catalog"
    return match_profile(profiles, entry.path.name, detection)


def build_model_cards(catalog: Catalog) -> list[Mapping[str, object]]:
    """Return the card of every checkpoint in a catalog; one that cannot be served has `id` and `problem` only."""
    return [_build_card(catalog, model) for model in catalog.distinct_models()]


def _build_card(catalog: Catalog, model: str) -> Mapping[str, object]:
    try:
        return detect_model(catalog, model).card()
    except (WeightsError, ConfigError) as error:
        return {"id": model, "problem": str(error)}


def format_card(card: Mapping[str, object]) -> str:
    """Return a model's card as text for a terminal."""
    if "problem" in card:
        return f"{card['id']}: {card['problem']}"
    lines = [f"{card['id']}: {card['file']}, {card['family']}, hash {card['hash']}"]
    if card["preview_decoder"] is not None:
        lines.append(f"  preview decoder: {card['preview_decoder']}")
    lines += [f"  {fact}" for fact in cast("list[str]", card["evidence"])]
    return "\n".join([*lines, f"  profile {card['profile']}: {card['profile_reason']}"])
