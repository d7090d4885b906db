"""The served model as known from its files, and for some only after loading: detection, profile, fingerprints."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeAlias, cast

from pipelines.adapters.ip_adapter import detect_ip_adapter, find_encoder
from pipelines.errors import WeightsError
from pipelines.weights.checkpoint import Checkpoint, fingerprint, open_checkpoint
from pipelines.weights.detect import Detection, detect_checkpoint, detect_inpainting
from pipelines.weights.embedded import choose_architecture
from server.config.catalog import Catalog, ModelEntry, ToolFiles, VibeFiles
from server.config.profiles import Profile, find_profile, load_profiles, match_profile
from server.config.resources import configs
from server.config.toml import ConfigError, join_key
from server.engine.controlnets import ServedControls, detect_controls
from server.engine.loras import UnknownLora, find_lora

log = logging.getLogger("naiad")
DECODER = "preview_decoder"
"""Key of the tiny decoder in the catalog."""
Place: TypeAlias = Literal["device", "memory", "disk"]
"""Where a model is: ready to run, waiting in CPU memory, or not loaded."""


@dataclass(frozen=True, slots=True)
class ServedVibe:
    """An image adapter for vibe transfer, not loaded yet.

    Attributes:
        file: its name.
        kind: "base" or "plus".
        count, width: number of tokens for an image, and their width.
        files: fingerprints of the adapter and its image encoder by their keys in the catalog.
    """

    file: str
    kind: str
    count: int
    width: int
    files: Mapping[str, str]

    @property
    def hash(self) -> str:
        """8 hex digits that identify what images are encoded by."""
        return sha256("".join(self.files.values()).encode()).hexdigest()[:8].upper()

    def card(self) -> dict[str, object]:
        """Part of the model's entry of `/models`."""
        return {"file": self.file, "kind": self.kind, "tokens": self.count, "hash": self.hash}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A checkpoint of the catalog that is not loaded yet."""

    id: str  # id in the catalog
    ids: tuple[str, ...]  # all ids of the same checkpoint
    other_ids: tuple[str, ...]  # the ids of other checkpoints
    entry: ModelEntry
    detection: Detection
    profile: Profile
    reason: str  # why this profile was chosen
    fingerprint: str  # 8 hex digits of the checkpoint, which images carry as Source
    upscaler: Path | None = None  # file of the upscaling network
    files: Mapping[str, str] = field(default_factory=dict[str, str])  # fingerprints of auxiliary files by key
    lora_folder: Path | None = None  # of the LoRAs that requests may name
    inversion_folder: Path | None = None  # of the textual inversions that prompts may name
    text_widths: tuple[int, ...] = ()  # of the text encoders' token embeddings
    tools: ToolFiles = field(default_factory=ToolFiles)  # networks of the director tools and annotators
    vibe: ServedVibe | None = None
    decoder_files: Mapping[str, str] = field(default_factory=dict[str, str])  # those of the preview decoder
    controls: ServedControls = field(default_factory=ServedControls)

    @property
    def has_upscaler(self) -> bool:
        """Whether there is an upscaling network."""
        return self.upscaler is not None

    @property
    def inpainting(self) -> str:
        """Inpainting method: a "network" with 9 channels, or a "blend" of latents with the base model."""
        return "blend" if self.entry.inpainting is None else "network"

    @property
    def file_fingerprints(self) -> Mapping[Path, str]:
        """Fingerprints of the files and folders that loading reads, by path, as they were when the server started."""
        known = {self.entry.path: self.fingerprint}
        known |= {path: self.files[join_key(key)] for key, path in self.entry.iter_auxiliary_files()}
        if self.entry.preview_decoder is not None:
            known |= {self.entry.preview_decoder: self.decoder_files[DECODER]}
        if self.vibe is None or self.entry.vibe is None:
            return known
        paths = (path for path in (self.entry.vibe.path, self.entry.vibe.image_encoder) if path is not None)
        return known | dict(zip(paths, self.vibe.files.values(), strict=True))

    def with_detection(self, detection: Detection) -> "ServedModel":
        """Return the model as known after loading, with the profile for it; raise `ConfigError` if there is none."""
        profile, reason = _choose_profile(self.entry, detection)
        return replace(self, detection=detection, profile=profile, reason=reason)

    def card(self) -> dict[str, object]:
        """Entry of `/models`: what the model is, and the evidence for it. Paths are left out."""
        return {
            "id": self.id,
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
            "vibe": None if self.vibe is None else self.vibe.card(),
            "evidence": list(self.detection.evidence),
            "loras": [entry.name for entry in self.entry.loras],
            "controlnets": [control.card() for control in self.controls.usable.values()],
            "profile": self.profile.name,
            "profile_reason": self.reason,
            "dialect": None if self.profile.dialect is None else self.profile.dialect.model_dump(),
        }


def detect_model(catalog: Catalog, model: str | None = None) -> ServedModel:
    """Detect what a listed checkpoint is, without loading it; by default the catalog's default model.

    Raises `WeightsError` if it cannot be served, and `ConfigError` if a listed file or its profile does not exist.
    """
    name = model or catalog.default
    entry = catalog.models[name]
    catalog.require_files(name)
    checkpoint = open_checkpoint(entry.path)
    detection = detect_checkpoint(checkpoint, entry.prediction, entry.zsnr)
    if detection.channels != 4:
        reason = "an inpainting model, which needs an init image; name a model with 4 input channels"
        raise WeightsError(entry.path, reason)
    if entry.inpainting is not None:
        detect_inpainting(entry.inpainting, detection)
    _check_loras(catalog, name, detection)
    profile, reason = _choose_profile(entry, detection)
    ids = tuple(other for other in catalog.models if catalog.models[other] == entry)
    return ServedModel(
        id=name,
        ids=ids,
        other_ids=tuple(other for other in catalog.models if other not in ids),
        entry=entry,
        detection=detection,
        profile=profile,
        reason=reason,
        fingerprint=fingerprint(entry.path),
        upscaler=catalog.upscaler,
        files={join_key(key): fingerprint(path) for key, path in catalog.iter_auxiliary_files(name)},
        lora_folder=catalog.lora_folder,
        inversion_folder=catalog.inversion_folder,
        text_widths=_read_text_widths(checkpoint, detection),
        tools=catalog.tools,
        vibe=None if entry.vibe is None else _detect_vibe(entry.vibe),
        decoder_files={} if entry.preview_decoder is None else {DECODER: fingerprint(entry.preview_decoder)},
        controls=detect_controls(catalog, detection.family),
    )


def detect_others(catalog: Catalog) -> tuple[tuple[ServedModel, ...], Mapping[str, str]]:
    """Detect the checkpoints besides the default one; of those that cannot be served, return the reason by id."""
    found: list[ServedModel] = []
    problems: dict[str, str] = {}
    for name in catalog.distinct_models()[1:]:
        try:
            found.append(detect_model(catalog, name))
        except (WeightsError, ConfigError) as error:
            # a ConfigError may name a path, which is for the operator only
            reason = (
                str(error)
                if isinstance(error, WeightsError)
                else "a file or profile that the catalog names does not exist"
            )
            log.warning("model %r cannot be served: %s", name, error)
            entry = catalog.models[name]
            problems |= {other: reason for other in catalog.models if catalog.models[other] == entry}
    return tuple(found), problems


def _read_text_widths(checkpoint: Checkpoint, detection: Detection) -> tuple[int, ...]:
    architecture = choose_architecture(checkpoint, detection.family, detection.channels)
    return tuple(config.width for config in architecture.text_encoders)


def _check_loras(catalog: Catalog, model: str, detection: Detection) -> None:
    """Raise `ConfigError` or `WeightsError` if a LoRA that is always applied does not exist or is for other models."""
    for index, entry in enumerate(catalog.models[model].loras):
        try:
            find_lora(catalog.lora_folder, entry.name).file.check_family(detection.family)
        except UnknownLora as error:
            where = catalog.describe_key(("models", model, "loras", index))
            raise ConfigError(f"{where}: {entry.name!r} {error}") from None


def _detect_vibe(files: VibeFiles) -> ServedVibe:
    adapter = detect_ip_adapter(files.path)
    find_encoder(adapter, files.image_encoder)
    fingerprints = {"vibe": fingerprint(files.path)}
    if files.image_encoder is not None:
        fingerprints["vibe.image_encoder"] = fingerprint(files.image_encoder)
    return ServedVibe(files.path.name, adapter.kind, adapter.count, adapter.width, fingerprints)


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
    controls = cast("list[dict[str, object]]", card["controlnets"])
    lines += [f"  controlnet {control['name']}: {control['file']}" for control in controls]
    lines += [f"  {fact}" for fact in cast("list[str]", card["evidence"])]
    lines.append(f"  profile {card['profile']}: {card['profile_reason']}")
    if card["dialect"] is not None:
        lines.append(f"  dialect {_format_dialect(cast('Mapping[str, object]', card['dialect']))}")
    return "\n".join(lines)


def _format_dialect(dialect: Mapping[str, object]) -> str:
    """Return what a dialect does, in one line; its tags are only counted."""
    names = {"nai": "renamed tags by NAI's names", "danbooru": "renamed tags by Danbooru's names"}
    facts = [f"artist:name as {str(dialect['artist']).format(name='name')!r}"] if dialect["artist"] else []
    facts += [names[str(dialect["renamed_tags"])]] if dialect["renamed_tags"] else []
    facts.append(f"other tags: {len(cast('dict[str, str]', dialect['tags']))}, which --json lists")
    return f"{'on' if dialect['default'] else 'off'} by default: {', '.join(facts)}"
