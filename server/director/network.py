"""ONNX networks from an image to a picture, run by onnxruntime, and how each kind wants its input.

A network has one input, the image as (1, 3, height, width) or (1, height, width, 3), and its first output is a picture
with 1 or 3 channels. Channels are scaled as (value - mean) / std, from values of 0 to 1.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import file_digest
from math import sqrt
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias, cast

import numpy as np
from PIL import Image

from pipelines.types import Pixels, Size
from server.config.catalog import ToolFile, ToolFiles, Triple
from server.config.toml import ConfigError

Channels: TypeAlias = np.ndarray[tuple[int, int, int], np.dtype[Any]]
"""A network's output as (channels, height, width), of float32; the checker cannot follow its arithmetic."""
PLAIN: tuple[Triple, Triple] = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CENTERED: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
SYMMETRIC: tuple[Triple, Triple] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_MEAN: tuple[Triple, Triple] = (IMAGENET[0], (1.0, 1.0, 1.0))
SCALINGS: tuple[tuple[str, tuple[Triple, Triple]], ...] = (
    ("anime.?seg|isnet.?anime|isnetis", IMAGENET_MEAN),
    ("birefnet|rmbg.?2|u2.?net|silueta|midas|dpt|depth", IMAGENET),
    ("isnet|rmbg", CENTERED),
    ("modnet|lineart.?anime", SYMMETRIC),
)
"""Scalings of well-known networks by their file's name; the first that matches counts."""
LARGEST_INPUT = 1024 * 1536
"""Pixels that a network gets which takes images of any size."""
SIDE_MULTIPLE = 32
MEASURED_SIDES = 64, 8192


@dataclass(frozen=True, slots=True)
class ToolNetwork:
    """A loaded network.

    Attributes:
        size: width and height of its input; None if it takes any.
        channels_last: whether its input is (1, height, width, 3).
        scaling: mean and standard deviation of red, green and blue.
    """

    name: str
    fingerprint: str
    size: Size | None
    channels_last: bool
    scaling: tuple[Triple, Triple]
    session: Any = field(repr=False)
    lock: Lock = field(
        default_factory=Lock, repr=False
    )  # one run at a time: each takes as many threads as it may

    def run(self, rgb: Pixels) -> Channels:
        """Return the network's output for an image, at the network's own size."""
        size = self.size or fit_size(rgb.shape[1], rgb.shape[0])
        image = Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS)
        mean, std = (np.array(values, np.float32) for values in self.scaling)
        values = (np.asarray(image, np.float32) / 255 - mean) / std
        batch = values[None] if self.channels_last else values.transpose(2, 0, 1)[None]
        source = self.session.get_inputs()[0]
        kind = np.float16 if source.type == "tensor(float16)" else np.float32
        with self.lock:
            output = self.session.run(None, {source.name: np.ascontiguousarray(batch, kind)})[0]
        return _arrange_output(cast("Channels", output), self.name)


def _arrange_output(output: Channels, name: str) -> Channels:
    """Return an output as (channels, height, width) of finite float32."""
    planes = np.asarray(output, np.float32)
    while planes.ndim > 3 and planes.shape[0] == 1:
        planes = planes[0]
    if planes.ndim == 2:
        planes = planes[None]
    if planes.ndim == 3 and planes.shape[-1] in (1, 3) and planes.shape[0] not in (1, 3):
        planes = planes.transpose(2, 0, 1)
    if planes.ndim != 3 or planes.shape[0] not in (1, 3) or not planes.size:
        raise ConfigError(f"{name}: the first output is not a picture with 1 or 3 channels")
    return np.nan_to_num(planes)


def fit_size(width: int, height: int) -> Size:
    """Return the size at which a network of any size gets an image: multiples of 32, at most LARGEST_INPUT pixels."""
    scale = min(1.0, sqrt(LARGEST_INPUT / (width * height)))
    sides = (scale * side / SIDE_MULTIPLE for side in (width, height))
    width, height = (max(1, min(round(side), MEASURED_SIDES[1] // SIDE_MULTIPLE)) for side in sides)
    return width * SIDE_MULTIPLE, height * SIDE_MULTIPLE


def load_networks(
    files: ToolFiles, device: str = "cpu", threads: int | None = None
) -> dict[str, ToolNetwork]:
    """Load the networks of a catalog by tool.

    Args:
        device: "cpu", or any other to use a GPU if onnxruntime was installed with support for it.

    Raises:
        ConfigError: onnxruntime is not installed, or a file is no network of this kind.
    """
    entries = files.list_files()
    return {tool: load_network(tool, file, device, threads) for tool, file in entries.items()}


def load_network(tool: str, file: ToolFile, device: str = "cpu", threads: int | None = None) -> ToolNetwork:
    """Load one network; raise `ConfigError` if that is not possible."""
    session = _open_session(tool, file.path, device, threads)
    inputs, shape = session.get_inputs(), session.get_inputs()[0].shape
    kinds = ("tensor(float)", "tensor(float16)")
    channels_last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    is_image = len(shape) == 4 and (channels_last or shape[1] == 3 or not isinstance(shape[1], int))
    if len(inputs) != 1 or not is_image or inputs[0].type not in kinds:
        raise ConfigError(
            f"tools.{tool} = '{file.path}': it must have one input, a float image (1, 3, height, width); "
            f"it has {', '.join(f'{one.name} {one.type} {one.shape}' for one in inputs)[:200]}"
        )
    mean, std = _find_scaling(file.path.name)
    with file.path.open("rb") as stream:
        fingerprint = file_digest(stream, "sha256").hexdigest()[:8].upper()
    size = _find_size(tool, file, shape[1:3] if channels_last else shape[2:4])
    scaling = file.mean or mean, file.std or std
    network = ToolNetwork(file.path.name, fingerprint, size, channels_last, scaling, session)
    try:
        network.run(np.full((256, 256, 3), 127, np.uint8))
    except Exception as error:  # noqa: BLE001  # as above
        reason = str(error) if isinstance(error, ConfigError) else "it fails on an image"
        raise ConfigError(f"tools.{tool} = '{file.path}': {reason}") from None
    return network


def _open_session(tool: str, path: Path, device: str, threads: int | None) -> Any:  # noqa: ANN401  # it has no types
    try:
        import onnxruntime  # pyright: ignore[reportMissingTypeStubs]  # an extra, and only where a tool is configured
    except ImportError:
        raise ConfigError(
            f"tools.{tool}: needs onnxruntime, which is not installed; install the extra: pip install 'naiad[tools]'"
        ) from None
    runtime: Any = onnxruntime
    runtime.set_default_logger_severity(4)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads or 0
    # without this its threads wait for work in a loop and slow down the model's
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = (
        ["CPUExecutionProvider"] if device == "cpu" else ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    providers = [name for name in wanted if name in runtime.get_available_providers()]
    try:
        return runtime.InferenceSession(str(path), options, providers=providers)
    except Exception:  # noqa: BLE001  # onnxruntime raises classes of its own without a common one
        reason = "not an ONNX network that onnxruntime can run"
        raise ConfigError(f"tools.{tool} = '{path}': {reason}") from None


def _find_size(tool: str, file: ToolFile, shape: Sequence[object]) -> Size | None:
    """Return the size of a network's input: as its shape fixes it, as configured, or 1024 for a matting network."""
    height, width = shape
    if isinstance(height, int) and isinstance(width, int):
        if file.size not in (None, width):
            raise ConfigError(f"tools.{tool}.size = {file.size}: the network's input is {width}x{height}")
        return width, height
    side = file.size or (1024 if tool == "matting" else None)
    return None if side is None else (side, side)


def _find_scaling(name: str) -> tuple[Triple, Triple]:
    """Return mean and standard deviation for a file of this name; a network of an unknown name gets 0 to 1."""
    return next((scaling for pattern, scaling in SCALINGS if re.search(pattern, name.lower())), PLAIN)
