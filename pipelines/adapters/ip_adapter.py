"""Reads from the header of an IP-Adapter file the kind of its projection, its sizes and its image encoder.

Two kinds are read, with the keys of the released files. "base" projects the embedding of an image to tokens; "plus"
resamples the states of all its patches. `ip_adapter.1`, `.3` and so on are the UNet's cross-attentions, in diffusers'
order.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from pipelines.errors import WeightsError, abbreviate
from pipelines.weights.architecture import Config
from pipelines.weights.checkpoint import Checkpoint, open_checkpoint
from pipelines.weights.header import TensorRef

PROJECTION, LAYERS, ENCODER = "image_proj.", "ip_adapter.", "image_encoder."
"""Prefixes of the keys of an adapter's parts; few files contain their image encoder."""
ENCODER_KEY = "naiad.image_encoder"
"""Key of the safetensors metadata with the config of an image encoder that is not in `ENCODERS`."""
HEAD_WIDTH = 64
"""Width of the attention heads in the projection of "plus"."""
ENCODERS = {1280: ("ViT-H", 16), 1664: ("ViT-bigG", 16)}
"""Name and number of attention heads of the OpenCLIP encoders that adapters were trained with, by their width."""
CLASS_EMBEDDING = "vision_model.embeddings.class_embedding"
NOT_ADAPTER = "not an IP-Adapter"


@dataclass(frozen=True, slots=True)
class IpAdapter:
    """An adapter file.

    Attributes:
        source: the file, with all its tensors.
        width: of a token, equal to that of a text token.
        count: number of tokens for an image.
        inputs: width of the projection's input: an embedding for "base", states of patches for "plus".
        inner, depth, heads: sizes of the projection of "plus"; 0 for "base".
    """

    source: Checkpoint
    kind: Literal["base", "plus"]
    width: int
    count: int
    inputs: int
    inner: int = 0
    depth: int = 0
    heads: int = 0

    @property
    def has_encoder(self) -> bool:
        """Whether the file contains its image encoder."""
        return any(key.startswith(ENCODER) for key in self.source.tensors)


def detect_ip_adapter(path: Path) -> IpAdapter:
    """Read the header of an adapter file; raise WeightsError if it is not one, or of a kind that cannot run."""
    source = open_checkpoint(path)
    names = {key.removeprefix(PROJECTION) for key in source.tensors if key.startswith(PROJECTION)}
    first = source.find((f"{LAYERS}1.to_k_ip.weight",))
    if not names or first is None or len(first.shape) != 2:
        raise WeightsError(path, f"{NOT_ADAPTER}: no {PROJECTION}* or no {LAYERS}1.to_k_ip.weight")
    _refuse_face(path, names)
    width = first.shape[1]
    if "latents" in names:
        return _read_plus(source, width)
    inputs = _shape(source, PROJECTION + "proj.weight", 2)
    if not width or inputs[0] % width:
        raise WeightsError(
            path, f"{NOT_ADAPTER}: {inputs[0]} outputs are no number of tokens of width {width}"
        )
    return IpAdapter(source, "base", width, inputs[0] // width, inputs[1])


def _refuse_face(path: Path, names: set[str]) -> None:
    """Raise WeightsError for adapters of faces, whose inputs are not those of an image encoder alone."""
    if "proj.3.weight" in names:
        raise WeightsError(path, "a full-face IP-Adapter, which is not supported; base and plus are")
    if "proj.0.weight" in names or any(name.startswith("perceiver_resampler.") for name in names):
        raise WeightsError(
            path, "a FaceID IP-Adapter, which needs a face recognizer; base and plus are supported"
        )


def _read_plus(source: Checkpoint, width: int) -> IpAdapter:
    _, count, inner = _shape(source, PROJECTION + "latents", 3)
    inputs = _shape(source, PROJECTION + "proj_in.weight", 2)[1]
    heads = _shape(source, PROJECTION + "layers.0.0.to_q.weight", 2)[0] // HEAD_WIDTH
    depth = sum(key.startswith(PROJECTION) and key.endswith(".0.to_q.weight") for key in source.tensors)
    return IpAdapter(source, "plus", width, count, inputs, inner, depth, heads)


def open_part(source: Checkpoint, prefix: str) -> Checkpoint:
    """Return the tensors of a file whose keys begin with `prefix`, and remove it from the keys."""
    tensors = {key.removeprefix(prefix): ref for key, ref in source.tensors.items() if key.startswith(prefix)}
    return Checkpoint(source.path, source.layout, tensors, source.metadata)


def find_encoder(adapter: IpAdapter, path: Path | None) -> tuple[Checkpoint, Config]:
    """Return the tensors of an adapter's image encoder, and the config to build it with.

    Args:
        path: a file or a folder with the encoder; None for the one in the adapter file.

    Raises:
        WeightsError: there is none, it is not a known one, or the adapter was trained with another.
    """
    if path is not None:
        source = open_checkpoint(path)
        source = open_part(source, ENCODER) if source.find((ENCODER + CLASS_EMBEDDING,)) else source
    elif adapter.has_encoder:
        source = open_part(adapter.source, ENCODER)
    else:
        reason = "it has no image encoder; name its file as `image_encoder` next to the adapter's `path`"
        raise WeightsError(adapter.source.path, f"{reason} ({_name_encoders(adapter)})")
    config = _read_config(source)
    given = config["projection_dim"] if adapter.kind == "base" else config["hidden_size"]
    if given != adapter.inputs:
        reason = f"{adapter.source.path.name} was trained with another image encoder"
        raise WeightsError(source.path, f"{reason} ({_name_encoders(adapter)}): its width is {given}")
    return source, config


def _name_encoders(adapter: IpAdapter) -> str:
    """Return which image encoder an adapter needs."""
    names = {
        ("base", 1024): "ViT-H",
        ("base", 1280): "ViT-bigG",
        ("plus", 1280): "ViT-H",
        ("plus", 1664): "ViT-bigG",
    }
    known = names.get((adapter.kind, adapter.inputs))
    return f"it needs {'' if known is None else f'{known}, '}width {adapter.inputs}"


def _read_config(source: Checkpoint) -> Config:
    """Return the config of a CLIP image encoder: sizes from its tensors, the rest from `ENCODERS` or the metadata."""
    if not source.find((CLASS_EMBEDDING,)):
        reason = f"not an image encoder in transformers' layout: no {CLASS_EMBEDDING}"
        raise WeightsError(source.path, reason)
    (width,) = _shape(source, CLASS_EMBEDDING, 1)
    patches = _shape(source, "vision_model.embeddings.patch_embedding.weight", 4)
    positions = _shape(source, "vision_model.embeddings.position_embedding.weight", 2)[0]
    inner = _shape(source, "vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0]
    layers = sum(key.endswith(".mlp.fc1.weight") for key in source.tensors)
    stated = _read_metadata(source.path, source.metadata)
    if width not in ENCODERS and not stated:
        known = ", ".join(f"{name} ({size})" for size, (name, _) in ENCODERS.items())
        raise WeightsError(source.path, f"an image encoder of width {width}; known are {known}")
    heads = ENCODERS[width][1] if width in ENCODERS else 1
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": stated.get("num_attention_heads", heads),
        "image_size": round((positions - 1) ** 0.5) * patches[2],
        "patch_size": patches[2],
        "projection_dim": _shape(source, "visual_projection.weight", 2)[0],
        "hidden_act": stated.get("hidden_act", "quick_gelu" if stated else "gelu"),
    }


def _read_metadata(path: Path, metadata: Mapping[str, str]) -> Mapping[str, object]:
    """Return the config in a file's metadata, empty if there is none."""
    if ENCODER_KEY not in metadata:
        return {}
    try:
        stated = json.loads(metadata[ENCODER_KEY])
    except (ValueError, RecursionError):
        stated = None
    if not isinstance(stated, dict):
        raise WeightsError(path, f"metadata {ENCODER_KEY} is not a JSON object")
    return cast("dict[str, object]", stated)


def _shape(source: Checkpoint, key: str, dimensions: int) -> tuple[int, ...]:
    ref: TensorRef | None = source.find((key,))
    if ref is None or len(ref.shape) != dimensions:
        found = "is missing" if ref is None else f"has the shape {abbreviate(str(ref.shape))}"
        raise WeightsError(source.path, f"{abbreviate(key)} {found}, but {dimensions} dimensions are needed")
    return ref.shape
