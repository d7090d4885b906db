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
from safetensors import SafetensorError, safe_open

from pipelines.errors import WeightsError
from pipelines.upscale.rrdbnet import RrdbConfig, RrdbNet
from pipelines.weights.checkpoint import Header, read_header
from pipelines.weights.networks import load_state

NOT_ESRGAN = "not an ESRGAN-family upscaler"
MAX_DOUBLINGS = 3
FOLDS = {3: 1, 12: 2, 48: 4}
"""The fold by the input channels of the first layer, the only tensor that shows it."""
FLOATS = {"F64", "F32", "F16", "BF16"}
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


def load_rrdbnet(path: Path, device: torch.device, dtype: torch.dtype) -> RrdbNet:
    """Load an upscaler's network from a safetensors file; raise WeightsError if it is no complete upscaler."""
    config, keys = detect_rrdbnet(read_header(path))
    network = _make_meta_network(config)
    try:
        with cast("Any", safe_open)(path, framework="pt") as file:
            load_state(network, {name: file.get_tensor(key) for name, key in keys.items()})
    except SafetensorError as error:
        raise WeightsError(path, f"a damaged file: {error}") from None
    # channels last takes a third less memory on a CPU than torch's own order, and is faster
    return cast("Any", network.eval()).to(device, dtype, memory_format=torch.channels_last)


def detect_rrdbnet(header: Header) -> tuple[RrdbConfig, Mapping[str, str]]:
    """Return the config of a file's network, and the file's key for each of our names.

    Raises:
        WeightsError: the file is not an ESRGAN-family upscaler, or is incomplete; the message names the tensor.
    """
    prefix = next((start for start in PREFIXES if any(key.startswith(start) for key in header.tensors)), "")
    tensors = header.tensors.items()
    shapes = {key.removeprefix(prefix): tensor.shape for key, tensor in tensors if key.startswith(prefix)}
    key_format = next((one for one in KEY_FORMATS if any(map(one.block.match, shapes))), KEY_FORMATS[0])
    config = _detect_config(header.path, key_format, shapes)
    expected = {name: tuple(tensor.shape) for name, tensor in _make_meta_network(config).state_dict().items()}
    keys = {name: prefix + key_format.to_key(name, config) for name in expected}
    _check_tensors(header, {keys[name]: expected[name] for name in expected})
    return config, keys


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


def _check_tensors(header: Header, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise WeightsError unless a file holds exactly these keys, in these shapes."""
    for key, shape in expected.items():
        if key not in header.tensors:
            raise WeightsError(header.path, f"{key} is missing; the file needs {len(expected)} tensors")
        entry = header.tensors[key]
        if entry.shape != shape:
            raise WeightsError(header.path, f"{key} has the shape {entry.shape}, not {shape}")
        if entry.dtype not in FLOATS:
            allowed = ", ".join(sorted(FLOATS))
            raise WeightsError(header.path, f"{key} holds {entry.dtype}; {allowed} are supported")
    # a file of averaged weights may hold the last ones too, which are not used
    is_averaged = next(iter(expected)).startswith(PREFIXES[0])
    for key in header.tensors:
        if key not in expected and not (is_averaged and key.startswith(PREFIXES[1])):
            raise WeightsError(header.path, f"{key} is unexpected; the file holds another architecture")


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
