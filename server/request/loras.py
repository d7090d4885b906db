"""LoRAs of a request: from `parameters.loras`, from `<lora:name:0.8>` in the prompt, and from the catalog."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import cast

from pipelines.errors import WeightsError
from pipelines.job import Lora
from pipelines.weights.trainer_metadata import read_metadata
from server.engine.loras import StoredLora, UnknownLora, find_lora
from server.engine.model import ServedModel
from server.errors import Rejected, shorten
from server.request.characters import PlacedPrompts
from server.request.schema import to_number

MOST_LORAS = 8
STRONGEST = 10.0
LONGEST_NAME = 200
TAG = re.compile(r"<lora:([^<>]*)>")
BASES = ("pony", "animagine", "illustrious", "noob")
"""Words in the names of models; a LoRA that was trained on a model with one suits no model with another."""
FIELD = "parameters.loras"
ITEM_KEYS = ("name", "strength", "unet_strength", "text_strength")
STRENGTH_KEYS = ("unet", "text")
EXAMPLE = '[{"name": "style", "strength": 0.8}]'


@dataclass(frozen=True, slots=True)
class RequestedLora:
    """A LoRA as a request names it; `field` is the field that does, for messages."""

    field: str
    name: str
    unet: float = 1.0
    text: float = 1.0


def read_loras(value: object) -> tuple[RequestedLora, ...]:
    """Return the LoRAs of `parameters.loras`.

    Raises:
        Rejected: it is not a list of names and strengths.
    """
    if value is None:
        return ()
    if not isinstance(value, list):
        raise Rejected(FIELD, f"{shorten(value)} is not an array like {EXAMPLE}")
    items = cast("list[object]", value)
    if len(items) > MOST_LORAS:
        raise Rejected(FIELD, f"{len(items)} LoRAs; at most {MOST_LORAS}")
    return tuple(_read_item(item, f"{FIELD}.{index}") for index, item in enumerate(items))


def _read_item(item: object, field: str) -> RequestedLora:
    if isinstance(item, str):
        return RequestedLora(field, _read_name(item, field))
    if not isinstance(item, dict):
        raise Rejected(field, f"{shorten(item)} is not an object like {EXAMPLE[1:-1]}")
    fields = cast("dict[str, object]", item)
    _check_keys(fields, ITEM_KEYS, field)
    name = _read_name(fields.get("name"), f"{field}.name")
    strength = fields.get("strength")
    if isinstance(strength, dict):
        parts = cast("dict[str, object]", strength)
        _check_keys(parts, STRENGTH_KEYS, f"{field}.strength")
        unet = _read_strength(parts.get("unet"), f"{field}.strength.unet")
        text = _read_strength(parts.get("text"), f"{field}.strength.text")
    else:
        unet = text = _read_strength(strength, f"{field}.strength")
    unet = _read_strength(fields.get("unet_strength"), f"{field}.unet_strength", unet)
    text = _read_strength(fields.get("text_strength"), f"{field}.text_strength", text)
    return RequestedLora(field, name, unet, text)


def _check_keys(sent: Mapping[str, object], known: Sequence[str], field: str) -> None:
    """Refuse other keys: other programs have other names for a strength, which would be lost without a word."""
    unknown = next((key for key in sent if key not in known), None)
    if unknown is not None:
        raise Rejected(field, f"{shorten(unknown)} is not a key here; known: {', '.join(known)}")


def _read_name(value: object, field: str) -> str:
    if not isinstance(value, str) or not value or len(value) > LONGEST_NAME:
        raise Rejected(field, f"{shorten(value)} is not a name of at most {LONGEST_NAME} characters")
    return value


def _read_strength(value: object, field: str, default: float = 1.0) -> float:
    """Return a strength; numbers may be texts, as in other fields, and null is the default."""
    if value is None:
        return default
    number = to_number(value)
    if number is None or not isfinite(number) or abs(number) > STRONGEST:
        raise Rejected(field, f"{shorten(value)} is not a number from {-STRONGEST:g} to {STRONGEST:g}")
    return number


def take_prompt_loras(prompts: PlacedPrompts) -> tuple[PlacedPrompts, tuple[RequestedLora, ...]]:
    """Return the prompts without their `<lora:name:strength>` tags, and the LoRAs that these name.

    Raises:
        Rejected: a tag has no name, a strength that is not a number, or is in a negative prompt.
    """
    negatives = {"negative_prompt": [prompts.negative], "v4_negative_prompt": _list_negatives(prompts)}
    for field, texts in negatives.items():
        if any(map(TAG.search, texts)):
            raise Rejected(field, "<lora:...> belongs into the prompt; give it a negative strength there")
    texts = (prompts.positive, *(character.positive for character in prompts.characters))
    tags = [match[1] for text in texts for match in TAG.finditer(text)]
    characters = tuple(
        replace(character, positive=_remove_tags(character.positive)) for character in prompts.characters
    )
    loras = tuple(map(_read_tag, tags))
    return replace(prompts, positive=_remove_tags(prompts.positive), characters=characters), loras


def warn_of_tags(prompts: PlacedPrompts) -> tuple[str, ...]:
    """Return a warning if the prompt has a tag, which is text while the setting is off."""
    texts = (prompts.positive, *(character.positive for character in prompts.characters))
    if not any(map(TAG.search, texts)):
        return ()
    return ("input: <lora:...> is read as text; use parameters.loras, or the setting api.prompt_loras",)


def _list_negatives(prompts: PlacedPrompts) -> list[str]:
    return [character.negative for character in prompts.characters]


def _remove_tags(text: str) -> str:
    """Return a text without tags, and without the comma before each."""
    if TAG.search(text) is None:
        return text
    *before, rest = TAG.split(text)[::2]
    kept = (part.rstrip().removesuffix(",").rstrip() for part in before)
    return ("".join(kept) + rest).lstrip(" ,")


def _read_tag(tag: str) -> RequestedLora:
    """Read `name`, `name:strength` or `name:unet:text`."""
    name, *strengths = tag.split(":")
    if len(strengths) > 2:
        raise Rejected(
            "input", f"<lora:{shorten(tag)[1:-1]}> is not like <lora:name:0.8> or <lora:name:unet:text>"
        )
    numbers = [_read_strength(strength, f"input: <lora:{name[:40]}>") for strength in strengths] or [1.0]
    return RequestedLora("input", _read_name(name.strip(), "input: <lora:>"), numbers[0], numbers[-1])


def choose_loras(
    requested: Iterable[RequestedLora], model: ServedModel
) -> tuple[tuple[Lora, ...], tuple[str, ...]]:
    """Return the LoRAs of a job, the catalog's first, and warnings. One that is named twice counts with the sum.

    Raises:
        Rejected: one does not exist, is for another family of models, or is too strong, or there are too many.
    """
    always = [
        RequestedLora("loras of the catalog", entry.name, entry.unet, entry.text)
        for entry in model.entry.loras
    ]
    chosen: dict[str, Lora] = {}
    warnings: list[str] = []
    for wanted in (*always, *requested):
        stored = _find_stored(wanted, model)
        before = chosen.get(stored.name)
        if before is None:
            warnings += _warn_of_mismatch(stored, model)
        unet, text = (
            wanted.unet + (before.unet if before else 0),
            wanted.text + (before.text if before else 0),
        )
        for strength in (unet, text):
            _read_strength(strength, f"{wanted.field}: {wanted.name[:40]!r}")
        chosen[stored.name] = Lora(stored.name, stored.file.path, stored.fingerprint, unet, text)
    if len(chosen) > MOST_LORAS + len(always):
        raise Rejected(FIELD, f"{len(chosen)} LoRAs; at most {MOST_LORAS}")
    return tuple(lora for lora in chosen.values() if lora.unet or lora.text), tuple(warnings)


def _find_stored(wanted: RequestedLora, model: ServedModel) -> StoredLora:
    try:
        stored = find_lora(model.lora_folder, wanted.name)
        stored.file.check_family(model.detection.family)
    except (UnknownLora, WeightsError) as error:
        reason = f"cannot be used: {error.reason}" if isinstance(error, WeightsError) else str(error)
        field = f"{wanted.field}.name" if wanted.field.startswith(FIELD) else wanted.field
        raise Rejected(field, f"{shorten(wanted.name)} {reason}") from None
    return stored


def _warn_of_mismatch(stored: StoredLora, model: ServedModel) -> list[str]:
    """Return warnings if a file's metadata name another prediction or another base than the model's."""
    metadata, warnings = stored.file.metadata, list[str]()
    own = model.detection.prediction
    for claim in read_metadata(metadata):
        if claim.prediction is not None and claim.prediction != own and not warnings:
            warnings.append(f"loras: {stored.name!r} was trained for another prediction ({claim.source})")
    bases = _find_bases(metadata), _find_bases({"": model.entry.path.name, "profile": model.profile.name})
    if all(bases) and not bases[0] & bases[1]:
        warnings.append(
            f"loras: {stored.name!r} was trained on {min(bases[0])}, the model is {min(bases[1])}"
        )
    return warnings


def _find_bases(texts: Mapping[str, str]) -> set[str]:
    keys = ("ss_sd_model_name", "ss_base_model_name", "modelspec.base_model", "", "profile")
    values: Sequence[str] = [texts[key].lower() for key in keys if key in texts]
    return {base for base in BASES if any(base in value for value in values)}
