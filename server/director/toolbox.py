"""Runs the tools: by a network of the catalog, else by a filter; some tools have no filter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from pipelines.types import Pixels
from server.director.edges import draw_canny, draw_scribble, draw_soft_edges
from server.director.lines import draw_lineart, draw_sketch
from server.director.matting import cut_out
from server.director.network import Channels, ToolNetwork
from server.director.planes import Plane, ndimage
from server.director.recipes import Recipes, load_recipes
from server.errors import Rejected
from server.picture.writer import Alpha

FILTERS: Mapping[str, Callable[[Pixels], Pixels]] = {
    "lineart": draw_lineart,
    "sketch": draw_sketch,
    "canny": draw_canny,
    "hed": draw_soft_edges,
    "fake_scribble": draw_scribble,
}
"""The filters of the tools that need no network."""
NETWORKS: Mapping[str, tuple[str, ...]] = {
    "bg-removal": ("matting",),
    "lineart": ("lineart",),
    "sketch": ("sketch",),
    "hed": ("hed",),
    "midas": ("midas",),
    "normal": ("normal", "midas"),
    "mlsd": ("mlsd",),
    "openpose": ("openpose",),
    "uniformer": ("uniformer",),
}
"""For each tool, the keys of the catalog's `tools` with its network; the first one that is configured is used."""
FLAT_DEPTH = 0.1
"""Depth of the farthest part of an image, 0 to 1, whose normals are drawn as facing the viewer."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture that a tool has made."""

    rgb: Pixels = field(repr=False)
    alpha: Alpha | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The networks that are loaded, by their key in the catalog, and the recipes of prompted tools."""

    networks: Mapping[str, ToolNetwork] = field(default_factory=dict[str, ToolNetwork])
    recipes: Recipes = field(default_factory=load_recipes, repr=False)

    def find_network(self, tool: str) -> ToolNetwork | None:
        """Return the network for a tool, or None if there is none."""
        loaded = (self.networks[key] for key in NETWORKS.get(tool, ()) if key in self.networks)
        return next(loaded, None)

    def check_offered(self, tool: str, field: str, value: str) -> None:
        """Raise `Rejected` if a tool has neither a network nor a filter; `field` and `value` are the request's."""
        if tool not in FILTERS and self.find_network(tool) is None:
            key = NETWORKS[tool][0]
            reason = f"needs an ONNX network; set tools.{key} in the server's weights.toml"
            raise Rejected(field, f"{value!r} {reason}")

    def draw(self, tool: str, rgb: Pixels, options: Mapping[str, float] | None = None) -> list[Drawing]:
        """Return the pictures of a tool, of the image's size; `options` are the filter's arguments."""
        network = self.find_network(tool)
        if network is None:
            return [Drawing(FILTERS[tool](rgb, **(options or {})))]
        if tool == "bg-removal":
            cut = cut_out(rgb, network)
            return [Drawing(picture, cut.alpha) for picture in (cut.masked, cut.generated, cut.blend)]
        output, size = network.run(rgb), (rgb.shape[1], rgb.shape[0])
        if tool == "midas":
            depth = _stretch(output[0])
            return [Drawing(_to_pixels(depth[None], size)), Drawing(_to_pixels(_find_normals(depth), size))]
        if tool == "normal" and "normal" not in self.networks:
            return [Drawing(_to_pixels(_find_normals(_stretch(output[0])), size))]
        return [Drawing(_to_pixels(_normalize(output), size))]


def _normalize(output: Channels) -> Channels:
    """Return a network's output, which is in 0 to 1, -1 to 1 or 0 to 255, in 0 to 1."""
    if output.min() < -0.05:
        return (output + 1) / 2
    return output / 255 if output.max() > 2 else output


def _stretch(plane: Plane) -> Plane:
    """Return a plane with its lowest value at 0 and its highest at 1."""
    lowest, highest = float(plane.min()), float(plane.max())
    return (plane - lowest) / max(highest - lowest, 1e-6)


def _find_normals(depth: Plane) -> Channels:
    """Return the directions in which surfaces face, as colors, from a depth that is 1 where the image is nearest."""
    across, down = (ndimage.sobel(depth, axis, mode="nearest") * (depth > FLAT_DEPTH) for axis in (1, 0))
    normals = np.stack((across, down, np.full_like(depth, 2 * np.pi / 256)))
    return normals / np.sqrt((normals**2).sum(0, keepdims=True)) / 2 + 0.5


def _to_pixels(planes: Channels, size: tuple[int, int]) -> Pixels:
    pixels = (planes.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    image = Image.fromarray(np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))
