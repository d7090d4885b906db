"""Architectures embedded in a checkpoint's metadata, for models of no released architecture (the demo).

They come from files of unknown origin and their values are passed to constructors. So they may set only what the
constants of their family set, to values of the same types, and to none that are larger.
"""

import json
from functools import lru_cache
from math import isfinite
from typing import cast

from pipelines.errors import WeightsError, abbreviate
from pipelines.types import Family
from pipelines.weights.architecture import METADATA_KEY, Architecture, Config, TextEncoderConfig
from pipelines.weights.checkpoint import Checkpoint
from pipelines.weights.families import FAMILIES


def choose_architecture(checkpoint: Checkpoint, family: Family, channels: int) -> Architecture:
    """Return the embedded architecture, or that of the family."""
    return read_embedded(checkpoint) or FAMILIES[family].architecture(channels)


def read_embedded(checkpoint: Checkpoint) -> Architecture | None:
    """Return the architecture in a checkpoint's metadata, None without one; raise WeightsError for anything else."""
    try:
        return parse_architecture(checkpoint.metadata[METADATA_KEY])
    except KeyError:
        return None
    except ValueError as error:
        raise WeightsError(checkpoint.path, f"metadata {METADATA_KEY} is {error}") from None


@lru_cache(maxsize=8)
def parse_architecture(text: str) -> Architecture:
    """Parse the output of `Architecture.to_json`; raise ValueError if it is no architecture of a known family."""
    try:
        fields = cast("dict[str, object]", json.loads(text))
        encoders = cast("list[dict[str, object]]", fields.pop("towers"))
        architecture = Architecture(
            text_encoders=tuple(TextEncoderConfig(**encoder) for encoder in encoders),  # pyright: ignore[reportArgumentType]
            **fields,  # pyright: ignore[reportArgumentType]
        )
        invalid = _find_invalid(architecture)
    except (TypeError, LookupError, AttributeError, RecursionError, ValueError) as error:
        raise ValueError("not an architecture of a known family") from error
    if invalid:
        raise ValueError(f"not an architecture: {abbreviate(', '.join(invalid))}")
    return architecture


def _find_invalid(architecture: Architecture) -> list[str]:
    """The keys whose values are not allowed; raise LookupError for an unknown family."""
    known = FAMILIES[architecture.family].architecture(9)
    if len(architecture.text_encoders) != len(known.text_encoders):
        return ["number of text encoders"]
    pairs = [(architecture.unet, known.unet), (architecture.vae, known.vae)]
    for encoder, allowed in zip(architecture.text_encoders, known.text_encoders, strict=True):
        pairs += [(encoder.config, allowed.config), (_settings(encoder), _settings(allowed))]
    pairs.append(({"latent_scale": architecture.latent_scale}, {"latent_scale": known.latent_scale}))
    return sorted({key for config, allowed in pairs for key in _find_invalid_keys(config, allowed)})


def _settings(encoder: TextEncoderConfig) -> Config:
    """A text encoder's fields outside its config; `layout` is a key because its value must be the known one."""
    return {
        str(encoder.layout): True,
        "pad": encoder.pad,
        "final_norm": encoder.final_norm,
        "projection": encoder.projection,
    }


def _find_invalid_keys(config: Config, known: Config) -> set[str]:
    """The keys that only one of the two has, or whose value is not like the known one."""
    shared = config.keys() & known.keys()
    return (config.keys() | known.keys()) - {key for key in shared if _is_alike(config[key], known[key])}


def _is_alike(value: object, known: object) -> bool:
    """Whether a value is of the known type and no larger: deeper networks would take long to build."""
    if type(value) is not type(known):
        return False
    if isinstance(value, list) and isinstance(known, list):
        values, allowed = cast("list[object]", value), cast("list[object]", known)
        is_short = 0 < len(values) <= len(allowed)
        return is_short and all(any(_is_alike(item, other) for other in allowed) for item in values)
    if isinstance(value, float):
        return isfinite(value) and value > 0
    if isinstance(value, int) and isinstance(known, int) and not isinstance(value, bool):
        return min(known, 1) <= value <= known
    return value == known or isinstance(value, bool)
