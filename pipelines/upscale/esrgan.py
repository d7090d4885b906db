"""ESRGAN-family weight files: detect the network from the keys and shapes in the header, and load it.

Three key formats are known: that of ESRGAN's first code, whose keys are indices in a list; that of its later releases;
and Real-ESRGAN's, which is also ours. No key shows a scale of 3: an old file of that scale is read as one of scale 2.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from pipelines.errors import WeightsError
from pipelines.upscale.rrdbnet import RrdbConfig, RrdbNet
from pipelines.weights.checkpoint import Checkpoint
from pipelines.weights.header import Header, read_header
from pipelines.weights.key_map import MappedKey
from pipelines.weights.naming import Naming
from pipelines.weights.networks import load_state
from pipelines.weights.reader import check_finite, read_tensors
from pipelines.weights.sources import Component, FoundWeights, find_weights

NOT_ESRGAN = "not an ESRGAN-family upscaler"
MAX_DOUBLINGS = 3
FOLDS = {3: 1, 12: 2, 48: 4}
"""The fold by the input channels of the first layer, the only tensor that shows it."""
PREFIXES = ("params_ema.", "params.")
"""Key prefixes of the trainer BasicSR; a file with both holds the averaged weights and the last ones."""
NUMBERED = re.compile(r"(?:conv_up|upconv)(\d{1,3})\.")
LISTED = re.compile(r"model\.(\d{1,3})\.(?:weight|bias)")


@dataclass(frozen=True, slots=True)
class KeyFormat:
    """One way to name the weights."""

    first: str  # key of the first layer's weights
    growing: str  # key of the weights of the first dense block's first layer
    block: re.Pattern[str]  # matches the start of a block's keys and captures the block's number
    to_key: Callable[[str, RrdbConfig], str]  # from one of our names to the key, for a network of a config


@dataclass(frozen=True, slots=True)
class RrdbPlan:
    """The config of a file's network, and where each of its weights is; no tensor has been read."""

    config: RrdbConfig
    source: Checkpoint
    weights: FoundWeights


def load_rrdbnet(path: Path, device: torch.device, dtype: torch.dtype) -> RrdbNet:
    """Load an upscaler's network from a safetensors file; raise WeightsError if it is no complete upscaler."""
    plan = plan_rrdbnet(read_header(path))
    network = _make_meta_network(plan.config)
    load_state(network, read_tensors(plan.source, plan.weights, dtype))
    # channels last takes a third less memory on a CPU than torch's own order, and is faster
    cast("Any", network.eval()).to(device, dtype, memory_format=torch.channels_last)
    check_finite(plan.source, plan.weights, network)
    return network


def plan_rrdbnet(header: Header) -> RrdbPlan:
    """Detect a file's network and find its weights.

    Raises:
        WeightsError: the file is not an ESRGAN-family upscaler, or is incomplete; the message names the tensor.
    """
    prefix = next((start for start in PREFIXES if any(key.startswith(start) for key in header.tensors)), "")
    tensors = header.tensors.items()
    if prefix == PREFIXES[0]:  # the last weights, next to the averaged ones, are not used
        tensors = [(key, tensor) for key, tensor in tensors if not key.startswith(PREFIXES[1])]
    shapes = {key.removeprefix(prefix): tensor.shape for key, tensor in tensors if key.startswith(prefix)}
    key_format = next((one for one in KEY_FORMATS if any(map(one.block.match, shapes))), KEY_FORMATS[0])
    config = _detect_config(header.path, key_format, shapes)
    expected = {name: tuple(tensor.shape) for name, tensor in _make_meta_network(config).state_dict().items()}
    keys = {name: (MappedKey(prefix + key_format.to_key(name, config)),) for name in expected}
    source = Checkpoint(header.path, "single", dict(tensors), header.metadata)
    found = find_weights(source, [Component("upscaler", expected, [Naming(prefix, keys)])])
    return RrdbPlan(config, source, found["upscaler"])


def _make_meta_network(config: RrdbConfig) -> RrdbNet:
    """Return a network without memory for its weights."""
    with torch.device("meta"):
        return RrdbNet(config)


def _detect_config(path: Path, key_format: KeyFormat, shapes: Mapping[str, tuple[int, ...]]) -> RrdbConfig:
    """Detect the config from the keys and the shapes of two tensors; the others are not checked here."""
    for key in (key_format.first, key_format.growing):
        if key not in shapes:
            raise WeightsError(path, f"{NOT_ESRGAN}: no {key}")
        if len(shapes[key]) != 4 or min(shapes[key]) < 1:
            raise WeightsError(path, f"{NOT_ESRGAN}: {key} has the shape {shapes[key]}")
    (features, channels, *_), (growth, *_) = shapes[key_format.first], shapes[key_format.growing]
    blocks = {match[1] for key in shapes if (match := key_format.block.match(key))}
    doublings = _count_doublings(shapes)
    if channels not in FOLDS:
        raise WeightsError(path, f"its first layer takes {channels} channels; 3, 12 and 48 are supported")
    if doublings > MAX_DOUBLINGS or 2**doublings < FOLDS[channels]:
        raise WeightsError(
            path,
            f"it folds by {FOLDS[channels]} and doubles {doublings} times; scales of 1 to 8 are supported",
        )
    return RrdbConfig(features, growth, len(blocks), doublings, FOLDS[channels])


def _count_doublings(keys: Mapping[str, object]) -> int:
    """Return the number of upsampling layers, even if one of them is missing.

    In the list format they have the indices 3, 6 and so on. The two layers after them have the last of these plus 2
    and plus 4.
    """
    numbered = [int(match[1]) for key in keys if (match := NUMBERED.match(key))]
    listed = [int(match[1]) for key in keys if (match := LISTED.fullmatch(key))]
    return max([*numbered, *(index // 3 - (index % 3 == 1) for index in listed)], default=0)


def _to_listed_key(name: str, config: RrdbConfig) -> str:
    """ESRGAN's first code: the network is a list, in which layers without weights have indices too."""
    inside = re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)\.(\w+)", name)
    if inside:
        return "model.1.sub.{}.RDB{}.conv{}.0.{}".format(*inside.groups())
    layer, kind = name.split(".")
    last_doubling = 3 * config.doublings
    indices = {"conv_first": "0", "conv_body": f"1.sub.{config.blocks}"}
    indices |= {f"conv_up{number}": f"{3 * number}" for number in range(1, MAX_DOUBLINGS + 1)}
    indices |= {"conv_hr": f"{last_doubling + 2}", "conv_last": f"{last_doubling + 4}"}
    return f"model.{indices[layer]}.{kind}"


def _to_released_key(name: str, _config: RrdbConfig) -> str:
    """ESRGAN's later releases, and BSRGAN."""
    name = re.sub(r"^body\.(\d+)\.rdb", r"RRDB_trunk.\1.RDB", name)
    for ours, theirs in (("conv_body", "trunk_conv"), ("conv_up", "upconv"), ("conv_hr", "HRconv")):
        name = name.replace(ours, theirs)
    return name


def _keep_name(name: str, _config: RrdbConfig) -> str:
    return name


KEY_FORMATS = (
    KeyFormat("conv_first.weight", "body.0.rdb1.conv1.weight", re.compile(r"body\.(\d+)\.rdb"), _keep_name),
    KeyFormat(
        "conv_first.weight",
        "RRDB_trunk.0.RDB1.conv1.weight",
        re.compile(r"RRDB_trunk\.(\d+)\.RDB"),
        _to_released_key,
    ),
    KeyFormat(
        "model.0.weight",
        "model.1.sub.0.RDB1.conv1.0.weight",
        re.compile(r"model\.1\.sub\.(\d+)\.RDB"),
        _to_listed_key,
    ),
)
