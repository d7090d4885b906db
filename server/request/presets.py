"""NAI's quality tags and undesired-content presets: data, and the rule for adding them to a request's texts.

NAI's own page writes them into the texts and sends `qualityToggle` and `ucPreset` for the record; hand-written
requests send the flags alone. So a text is only added where it cannot be there already, and adding twice is
adding once.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipelines.text.prompt import MIX
from server.config.toml import ConfigError, StrictModel, locate, read_toml, validate

Mode = Literal["auto", "client", "always"]
MARKUP = re.compile(r"^\s*[-\d.]+::|::\s*$|:[\d.]+[\s)]*$|[{}\[\]()]")
"""Emphasis around a tag in any of the grammars: numbers in front of `::`, after `:`, and brackets.

No two of its repetitions can share characters: on a long text they would take hours."""


class UndesiredPreset(StrictModel):
    """One entry of a model's list of undesired-content presets."""

    name: str
    text: str


class ModelPresets(StrictModel):
    """The texts of some model ids; a preset's index is its place in `undesired`, the last one means none."""

    ids: tuple[str, ...]
    quality: str
    quality_place: Literal["prefix", "suffix"]
    every_segment: bool = True
    undesired: Annotated[tuple[UndesiredPreset, ...], Field(min_length=1)]


class Presets(StrictModel):
    """Everything in presets.toml."""

    fallback: str
    never_nsfw: tuple[str, ...]
    aliases: dict[str, str]
    models: tuple[ModelPresets, ...]

    def canonical(self, model: str) -> str:
        """The id that a client's spelling stands for."""
        return self.aliases.get(model, model)

    def for_model(self, model: str) -> ModelPresets:
        """The texts for a model id, the fallback's for one that is not listed."""
        listed = {name: texts for texts in self.models for name in texts.ids}
        return listed.get(model) or listed[self.fallback]


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """A request's two texts, and the flags it came with as they were sent."""

    positive: str
    negative: str
    quality_toggle: object = None
    uc_preset: object = None


def load_presets(file: Path) -> Presets:
    """Read presets.toml.

    Raises:
        ConfigError: an unknown key, a value that is not allowed, or a fallback that is not listed.
    """
    presets = validate(Presets, read_toml(file), file)
    if not any(presets.fallback in texts.ids for texts in presets.models):
        where = locate(file, ["fallback"])
        raise ConfigError(f"{where}: fallback = {presets.fallback!r} is not an id of any of the models")
    return presets


def apply_presets(
    texts: PromptTexts, presets: Presets, model: str, mode: Mode, mixes: bool = True
) -> PromptTexts:
    """The texts with what the flags ask for.

    Args:
        mode: "auto" acts on `qualityToggle` when it is exactly true and on `ucPreset` when there is no negative
            text at all; "always" adds both unless `qualityToggle` is false; "client" changes nothing.
        mixes: whether `|` separates segments in this prompt's grammar.
    """
    if mode == "client":
        return texts
    own = presets.for_model(model)
    is_off = str(texts.quality_toggle).lower() == "false"
    positive, negative = texts.positive, texts.negative
    if texts.quality_toggle is True or (mode == "always" and not is_off):
        positive = add_quality_tags(positive, own, mixes)
    index = _index(texts.uc_preset, own, mode)
    if index is not None and (mode == "always" or not negative.strip()):
        may_nsfw = model not in presets.never_nsfw and "nsfw" not in positive.lower()
        negative = add_undesired(negative, own, index, may_nsfw)
    return PromptTexts(positive, negative, texts.quality_toggle, texts.uc_preset)


def add_quality_tags(text: str, own: ModelPresets, mixes: bool) -> str:
    """A prompt whose segments have the quality tags, those that have one of them already left as they are."""
    segments = text.split("|") if mixes else [text]
    reached = len(segments) if own.every_segment else 1
    several = len(segments) > 1
    return "|".join(
        _qualified(segment, own, several) if number < reached else segment
        for number, segment in enumerate(segments)
    )


def _qualified(segment: str, own: ModelPresets, several: bool) -> str:
    """One segment; the weight it has in a mix stays behind the tags, and an empty one in a mix stays empty."""
    weight = MIX.search(segment) if several else None
    text, tail = (segment[: weight.start()], weight[0]) if weight else (segment, "")
    if (several and not text.strip()) or fold_tags(own.quality) & fold_tags(text):
        return segment
    body = text.strip().strip(",").strip()
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    parts = (own.quality, body) if own.quality_place == "prefix" else (body, own.quality)
    return f"{before if body else ''}{', '.join(part for part in parts if part)}{after if body else ''}{tail}"


def add_undesired(text: str, own: ModelPresets, index: int, may_nsfw: bool) -> str:
    """A negative prompt led by a preset, unless it is in there; "none" gives way to the user's own words."""
    preset, none = own.undesired[index].text, own.undesired[-1].text
    is_none = preset == none
    if (is_none and text.strip()) or (preset and fold_tags(preset) <= fold_tags(text)):
        return text
    led = f"nsfw, {preset}" if may_nsfw and not is_none else preset
    return ", ".join(part for part in (led, text.strip()) if part)


def fold_tags(text: str) -> frozenset[str]:
    """A text's tags without case, emphasis and extra spaces."""
    tags = (" ".join(MARKUP.sub("", tag).split()).lower() for tag in re.split(r"[,|]", text))
    return frozenset(tag for tag in tags if tag)


def _index(value: object, own: ModelPresets, mode: Mode) -> int | None:
    """A flag as an index of the model's list: clients send numbers from lists of their own, and words.

    What "always" makes of them is what NAI's page does: a number beyond the list means "none", no number the first.
    """
    last = len(own.undesired) - 1
    if isinstance(value, bool) or not isinstance(value, int):
        return 0 if mode == "always" else None
    if 0 <= value <= last:
        return value
    return last if mode == "always" else None
