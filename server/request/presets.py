"""NAI's quality tags and undesired-content presets, and the rule for adding them to a request's prompts.

NAI's web page writes these texts into the prompts itself and sends `qualityToggle` and `ucPreset`, or since 2026
`qualityPresetId` and `ucPresetId`, only for the record; hand-written requests send the flags alone. Hence a text is
added only if the prompt cannot contain it already, and adding is idempotent.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipelines.text.nai4 import split_lettering
from pipelines.text.prompt import split_segments, split_share
from server.config.toml import ConfigError, StrictModel, locate, read_toml, validate
from server.errors import Rejected, shorten

Mode = Literal["auto", "client", "always"]
Quality = Literal["standard", "light"]
MARKUP = re.compile(r"^\s*[-\d.]+::|::\s*$|:[\d.]+[\s)]*$|[{}\[\]()]")
"""Emphasis around a tag in any prompt syntax: a number before `::` or after `:`, and brackets.

No two of its repetitions can match the same characters; otherwise a long text would take hours."""


UNDESIRED_IDS = {name: name for name in ("heavy", "light", "human", "furry", "none")} | {
    "humanFocus": "human",
    "furryFocus": "furry",
}
"""The ids in `ucPresetId`, which two spellings of clients share."""


class UndesiredPreset(StrictModel):
    """An undesired-content preset of a model."""

    id: Literal["heavy", "light", "human", "furry", "none"]
    text: str


def _require_standard(texts: dict[str, str]) -> dict[str, str]:
    if "standard" not in texts:
        raise ValueError("should have a text named standard")
    return texts


class ModelPresets(StrictModel):
    """Quality tags and presets of some model ids.

    `ucPreset` is an index into `undesired`, whose last entry means "none". `quality` has a text for each id but "none",
    and "standard" for all models.
    """

    ids: tuple[str, ...]
    quality: Annotated[dict[Quality, str], AfterValidator(_require_standard)]
    quality_place: Literal["prefix", "suffix"]
    undesired: Annotated[tuple[UndesiredPreset, ...], Field(min_length=1)]


class Presets(StrictModel):
    """The contents of presets.toml."""

    fallback: str
    never_nsfw: tuple[str, ...]
    aliases: dict[str, str]
    models: tuple[ModelPresets, ...]

    def canonical(self, model: str) -> str:
        """Return the model id for a client's spelling of it."""
        return self.aliases.get(model, model)

    def for_model(self, model: str) -> ModelPresets:
        """Return the presets of a model id, or the fallback's if the id is not listed."""
        listed = {name: entry for entry in self.models for name in entry.ids}
        return listed.get(model) or listed[self.fallback]


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """A request's prompt and negative prompt, its preset flags as they were sent, and warnings for the client.

    `captions` are those of characters by place, which no preset is added to.
    """

    positive: str
    negative: str
    quality_toggle: object = None
    uc_preset: object = None
    quality_id: object = None
    uc_id: object = None
    captions: str = ""
    warnings: tuple[str, ...] = ()


def load_presets(file: Path) -> Presets:
    """Read presets.toml.

    Raises:
        ConfigError: an unknown key, an invalid value, or a fallback that no model lists.
    """
    presets = validate(Presets, read_toml(file), file)
    if not any(presets.fallback in entry.ids for entry in presets.models):
        where = locate(file, ["fallback"])
        raise ConfigError(f"{where}: fallback = {presets.fallback!r} is not an id of any of the models")
    return presets


def apply_presets(
    texts: PromptTexts, presets: Presets, model: str, mode: Mode, syntax: str = "nai"
) -> PromptTexts:
    """Return the texts with the quality tags and the preset that the flags ask for.

    Args:
        mode: "auto" adds the quality tags if `qualityToggle` is exactly true or, if it is missing, `qualityPresetId`
            names some, and the preset if there is no negative prompt at all. "always" adds both, except quality tags
            when `qualityToggle` is false. "client" adds nothing.
        syntax: of the prompts; it decides what `|` separates and where lettering begins.

    Raises:
        Rejected: an id that would be used is not one of NAI's.
    """
    if mode == "client":
        return texts
    model_presets, warnings = presets.for_model(model), list[str]()
    positive, negative = texts.positive, texts.negative
    quality = _pick_quality(texts, model_presets, mode, warnings)
    if quality is not None:
        positive = add_quality_tags(positive, model_presets, syntax, quality)
    if mode == "always" or not negative.strip():
        index = _pick_preset(texts, model_presets, mode, warnings)
        allows_nsfw = model not in presets.never_nsfw and "nsfw" not in f"{positive}{texts.captions}".lower()
        if index is not None:
            negative = add_undesired(negative, model_presets, index, allows_nsfw)
    return replace(texts, positive=positive, negative=negative, warnings=(*texts.warnings, *warnings))


def add_quality_tags(text: str, presets: ModelPresets, syntax: str, quality: Quality = "standard") -> str:
    """Add the quality tags to each segment of a prompt that has none of the model's yet.

    In NAI V4's syntax only the first segment, which is not a character's, gets them, in front of its lettering.
    """
    first, *others = segments = split_segments(text, syntax)
    if syntax == "nai4":
        caption, lettering = split_lettering(first)
        tagged = _add_tags_to_segment(caption, presets, is_mix=False, quality=quality)
        if lettering and tagged != caption:
            tagged = f"{tagged.rstrip()}, "
        return "|".join([tagged + lettering, *others])
    return "|".join(
        _add_tags_to_segment(segment, presets, len(segments) > 1, quality) for segment in segments
    )


def _add_tags_to_segment(segment: str, presets: ModelPresets, is_mix: bool, quality: Quality) -> str:
    """Add the quality tags to a segment; in a mix, its weight stays after them and an empty segment stays empty."""
    text, tail = split_share(segment) if is_mix else (segment, "")
    tags, known = presets.quality[quality], fold_tags(",".join(presets.quality.values()))
    if (is_mix and not text.strip()) or known & fold_tags(text):
        return segment
    body = text.strip().strip(",").strip()
    if not body:
        return f"{tags}{tail}"
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    parts = (tags, body) if presets.quality_place == "prefix" else (body, tags)
    return f"{before}{', '.join(part for part in parts if part)}{after}{tail}"


def add_undesired(text: str, presets: ModelPresets, index: int, allows_nsfw: bool) -> str:
    """Put a preset in front of a negative prompt that does not contain it, or "none" in place of an empty one."""
    preset, none = presets.undesired[index].text, presets.undesired[-1].text
    is_none = preset == none
    if (is_none and text.strip()) or (preset and fold_tags(preset) <= fold_tags(text)):
        return text
    prefix = f"nsfw, {preset}" if allows_nsfw and not is_none else preset
    return ", ".join(part for part in (prefix, text.strip()) if part)


def fold_tags(text: str) -> frozenset[str]:
    """Return a text's tags in lower case, without emphasis and extra spaces."""
    tags = (" ".join(MARKUP.sub("", tag).split()).lower() for tag in re.split(r"[,|]", text))
    return frozenset(tag for tag in tags if tag)


def _pick_quality(
    texts: PromptTexts, presets: ModelPresets, mode: Mode, warnings: list[str]
) -> Quality | None:
    """Return the id of the quality tags to add, or None."""
    toggle, sent = texts.quality_toggle, texts.quality_id
    if toggle is not None or sent in (None, ""):
        is_off = str(toggle).lower() == "false"
        return "standard" if toggle is True or (mode == "always" and not is_off) else None
    if sent not in ("standard", "light", "none"):
        raise Rejected("parameters.qualityPresetId", f"{shorten(sent)} is not one of standard, light, none")
    if sent == "none":
        return None
    if sent not in presets.quality:  # NAI's page offers "light" for V5 only
        warnings.append(f"qualityPresetId: this model has no quality tags {sent!r}; 'standard' was used")
        return "standard"
    return sent


def _pick_preset(texts: PromptTexts, presets: ModelPresets, mode: Mode, warnings: list[str]) -> int | None:
    """Return the index of the preset that the flags select, or None if none is to be added.

    Clients also send words in `ucPreset`, and numbers from lists of their own. Mode "always" reads those as NAI's page
    does: a number outside the list means "none", anything else the first preset.
    """
    value, last = texts.uc_preset, len(presets.undesired) - 1
    if value is None and texts.uc_id not in (None, ""):
        return _find_preset(texts.uc_id, presets, warnings)
    if isinstance(value, bool) or not isinstance(value, int):
        return 0 if mode == "always" else None
    if 0 <= value <= last:
        return value
    return last if mode == "always" else None


def _find_preset(sent: object, presets: ModelPresets, warnings: list[str]) -> int | None:
    """Return the index of the preset with this id, or None if the model has none of this id."""
    ids = [preset.id for preset in presets.undesired]
    found = UNDESIRED_IDS.get(sent) if isinstance(sent, str) else None
    if found is None:
        allowed = ", ".join(dict.fromkeys(UNDESIRED_IDS.values()))
        raise Rejected("parameters.ucPresetId", f"{shorten(sent)} is not one of {allowed}")
    if found not in ids:
        warnings.append(
            f"ucPresetId: this model has no preset {sent!r}, only {', '.join(ids)}; none was added"
        )
        return None
    return ids.index(found)
