"""Architectures embedded in a checkpoint's metadata, for models of no released architecture (the demo).

They come from files of unknown origin and their values are passed to constructors. So they may set only what the
constants of their family set, to values of the same types.
"""

import json
from typing import cast

from pipelines.errors import WeightsError
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


def parse_architecture(text: str) -> Architecture:
    """Parse the output of `Architecture.to_json`; raise ValueError if it is no architecture of a known family."""
    try:
        fields = cast("dict[str, object]", json.loads(text))
        encoders = cast("list[dict[str, object]]", fields.pop("towers"))
        architecture = Architecture(
            text_encoders=tuple(TextEncoderConfig(**encoder) for encoder in encoders),  # pyright: ignore[reportArgumentType]
            **fields,  # pyright: ignore[reportArgumentType]
        )
        _check(architecture)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not an architecture: {error}") from error
    return architecture


def _check(architecture: Architecture) -> None:
    family = FAMILIES.get(architecture.family)
    known = None if family is None else family.architecture(4)
    if known is None or len(architecture.text_encoders) != len(known.text_encoders):
        raise ValueError("not an architecture: unknown family or number of text encoders")
    pairs = [(architecture.unet, known.unet), (architecture.vae, known.vae)]
    for encoder, allowed in zip(architecture.text_encoders, known.text_encoders, strict=True):
        pairs += [(encoder.config, allowed.config), (_settings(encoder), _settings(allowed))]
    invalid = sorted(key for config, allowed in pairs for key in _find_invalid_keys(config, allowed))
    if invalid:
        raise ValueError(f"not an architecture: {', '.join(invalid)}")


def _settings(encoder: TextEncoderConfig) -> Config:
    """A text encoder's fields outside its config; `layout` is a key because its value must be the known one."""
    return {
        encoder.layout: True,
        "pad": encoder.pad,
        "final_norm": encoder.final_norm,
        "projection": encoder.projection,
    }


def _find_invalid_keys(config: Config, allowed: Config) -> set[str]:
    """The keys that only one of the two has, or whose values have different types."""
    types, allowed_types = ({key: type(value) for key, value in side.items()} for side in (config, allowed))
    return {key for key in types | allowed_types if types.get(key) is not allowed_types.get(key)}
