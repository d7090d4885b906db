"""ESRGAN-family weight files: recognised by the keys in their headers, in every spelling that people have.

Three spellings: that of ESRGAN's first code, whose keys are places in a list; that of its later releases; and
Real-ESRGAN's, which is ours too. A factor of 3 is not told by any key: such an old file is taken for one of 2.
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

FAMILY = "not an ESRGAN-family upscaler"
MOST_DOUBLINGS = 3
FOLDS = {3: 1, 12: 2, 48: 4}
"""The fold by the channels of the first layer, which is the only place where it shows."""
FLOATS = {"F64", "F32", "F16", "BF16"}
PREFIXES = ("params_ema.", "params.")
"""What the trainer BasicSR puts before its keys; a file with both holds averaged weights and the last ones."""
NUMBERED = re.compile(r"(?:conv_up|upconv)(\d{1,3})\.")
LISTED = re.compile(r"model\.(\d{1,3})\.(?:weight|bias)")


@dataclass(frozen=True, slots=True)
class Spelling:
    """One way to name the weights.

    Attributes:
        first: the key of the first layer's weights.
        growing: the key of the weights of the first dense block's first layer.
        block: how the keys of a block begin; captures its number.
        key: the key of one of our names, in a network of a shape.
    """

    first: str
    growing: str
    block: re.Pattern[str]
    key: Callable[[str, RrdbConfig], str]


def load_rrdbnet(path: Path, device: torch.device, dtype: torch.dtype) -> RrdbNet:
    """Load an upscaler's network from a safetensors file.

    Raises:
        WeightsError: the file cannot be read, is no ESRGAN-family upscaler, or not a whole one.
    """
    shape, keys = detect_rrdbnet(read_header(path))
    network = _empty(shape)
    try:
        with cast("Any", safe_open)(path, framework="pt") as file:
            load_state(network, {name: file.get_tensor(key) for name, key in keys.items()})
    except SafetensorError as error:
        raise WeightsError(path, f"a damaged file: {error}") from None
    # channels last: on a CPU a third less memory, and faster, than torch's own order
    return cast("Any", network.eval()).to(device, dtype, memory_format=torch.channels_last)


def detect_rrdbnet(header: Header) -> tuple[RrdbConfig, Mapping[str, str]]:
    """The shape of a file's network, and the file's key for each of our names.

    Raises:
        WeightsError: it is no ESRGAN-family upscaler, or not a whole one; names the tensor.
    """
    prefix = next((start for start in PREFIXES if any(key.startswith(start) for key in header.tensors)), "")
    shapes = {
        key.removeprefix(prefix): entry.shape
        for key, entry in header.tensors.items()
        if key.startswith(prefix)
    }
    spelling = next((one for one in SPELLINGS if any(map(one.block.match, shapes))), SPELLINGS[0])
    shape = _shape(header.path, spelling, shapes)
    wanted = {name: tuple(tensor.shape) for name, tensor in _empty(shape).state_dict().items()}
    keys = {name: prefix + spelling.key(name, shape) for name in wanted}
    _refuse_unequal(header, {keys[name]: wanted[name] for name in wanted})
    return shape, keys


def _empty(shape: RrdbConfig) -> RrdbNet:
    """A network without memory for its weights."""
    with torch.device("meta"):
        return RrdbNet(shape)


def _shape(path: Path, spelling: Spelling, shapes: Mapping[str, tuple[int, ...]]) -> RrdbConfig:
    """What the keys and two of the tensors tell; the other tensors have yet to agree."""
    for key in (spelling.first, spelling.growing):
        if key not in shapes:
            raise WeightsError(path, f"{FAMILY}: no {key}")
        if len(shapes[key]) != 4 or min(shapes[key]) < 1:
            raise WeightsError(path, f"{FAMILY}: {key} has the shape {shapes[key]}")
    (features, channels, *_), (growth, *_) = shapes[spelling.first], shapes[spelling.growing]
    blocks = {match[1] for key in shapes if (match := spelling.block.match(key))}
    doublings = _doublings(shapes)
    if channels not in FOLDS:
        raise WeightsError(path, f"its first layer takes {channels} channels; 3, 12 or 48 can run")
    if doublings > MOST_DOUBLINGS or 2**doublings < FOLDS[channels]:
        raise WeightsError(
            path, f"it folds by {FOLDS[channels]} and doubles {doublings} times; scales of 1 to 8 can run"
        )
    return RrdbConfig(features, growth, len(blocks), doublings, FOLDS[channels])


def _doublings(keys: Mapping[str, object]) -> int:
    """How many layers double the size, even where one is missing.

    In a list of places those are at 3, 6 and so on, the two last layers 2 and 4 places behind the last of them.
    """
    numbered = [int(match[1]) for key in keys if (match := NUMBERED.match(key))]
    listed = [int(match[1]) for key in keys if (match := LISTED.fullmatch(key))]
    return max([*numbered, *(place // 3 - (place % 3 == 1) for place in listed)], default=0)


def _refuse_unequal(header: Header, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless a file holds these keys in these shapes, and no others."""
    for key, shape in wanted.items():
        if key not in header.tensors:
            raise WeightsError(header.path, f"{key} is missing; {len(wanted)} tensors make it whole")
        entry = header.tensors[key]
        if entry.shape != shape:
            raise WeightsError(header.path, f"{key} has the shape {entry.shape}, not {shape}")
        if entry.dtype not in FLOATS:
            raise WeightsError(header.path, f"{key} holds {entry.dtype}; {', '.join(sorted(FLOATS))} can run")
    # beside averaged weights the last ones may lie, which nobody needs
    averaged = next(iter(wanted)).startswith(PREFIXES[0])
    for key in header.tensors:
        if key not in wanted and not (averaged and key.startswith(PREFIXES[1])):
            raise WeightsError(header.path, f"{key} is unexpected; it is of another architecture")


def _listed(name: str, shape: RrdbConfig) -> str:
    """ESRGAN's first code: the network is a list, and the layers without weights take places in it."""
    inside = re.fullmatch(r"body\.(\d+)\.rdb(\d)\.conv(\d)\.(\w+)", name)
    if inside:
        return "model.1.sub.{}.RDB{}.conv{}.0.{}".format(*inside.groups())
    layer, kind = name.split(".")
    doubled = 3 * shape.doublings
    places = {"conv_first": "0", "conv_body": f"1.sub.{shape.blocks}"}
    places |= {f"conv_up{number}": f"{3 * number}" for number in range(1, MOST_DOUBLINGS + 1)}
    places |= {"conv_hr": f"{doubled + 2}", "conv_last": f"{doubled + 4}"}
    return f"model.{places[layer]}.{kind}"


def _released(name: str, _shape: RrdbConfig) -> str:
    """ESRGAN's later releases, and BSRGAN's."""
    name = re.sub(r"^body\.(\d+)\.rdb", r"RRDB_trunk.\1.RDB", name)
    for ours, theirs in (("conv_body", "trunk_conv"), ("conv_up", "upconv"), ("conv_hr", "HRconv")):
        name = name.replace(ours, theirs)
    return name


def _ours(name: str, _shape: RrdbConfig) -> str:
    return name


SPELLINGS = (
    Spelling("conv_first.weight", "body.0.rdb1.conv1.weight", re.compile(r"body\.(\d+)\.rdb"), _ours),
    Spelling(
        "conv_first.weight",
        "RRDB_trunk.0.RDB1.conv1.weight",
        re.compile(r"RRDB_trunk\.(\d+)\.RDB"),
        _released,
    ),
    Spelling(
        "model.0.weight",
        "model.1.sub.0.RDB1.conv1.0.weight",
        re.compile(r"model\.1\.sub\.(\d+)\.RDB"),
        _listed,
    ),
)
