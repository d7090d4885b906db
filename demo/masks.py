"""Random inpainting masks at latent resolution, as users paint them.

Boxes, ovals, strokes, the entire image, or everything except a box.
"""

from itertools import pairwise

import numpy as np

Mask = np.ndarray[tuple[int, int], np.dtype[np.bool_]]


def random_mask(height: int, width: int, rng: np.random.Generator) -> Mask:
    """Return a mask (height, width), True where the image is to be replaced; a fifth of them cover all of it."""
    kind = rng.random()
    if kind < 0.2:
        return np.ones((height, width), bool)
    if kind < 0.5:
        return _random_box(height, width, rng)
    if kind < 0.75:
        return _random_oval(height, width, rng)
    return _random_stroke(height, width, rng) if kind < 0.9 else ~_random_box(height, width, rng)


def _random_box(height: int, width: int, rng: np.random.Generator) -> Mask:
    mask = np.zeros((height, width), bool)
    rows, columns = _random_span(height, rng), _random_span(width, rng)
    mask[rows, columns] = True
    return mask


def _random_oval(height: int, width: int, rng: np.random.Generator) -> Mask:
    rows, columns = _random_span(height, rng), _random_span(width, rng)
    y, x = np.mgrid[:height, :width] + 0.5
    down = (y - (rows.start + rows.stop) / 2) / (rows.stop - rows.start)
    across = (x - (columns.start + columns.stop) / 2) / (columns.stop - columns.start)
    return down**2 + across**2 < 0.25


def _random_stroke(height: int, width: int, rng: np.random.Generator) -> Mask:
    """Return a thick polyline through two to five points."""
    points = rng.random((int(rng.integers(2, 6)), 2)) * (height, width)
    radius = rng.uniform(0.06, 0.18) * min(height, width)
    line = np.concatenate([np.linspace(start, end, 60) for start, end in pairwise(points)])
    grid = np.mgrid[:height, :width].reshape(2, -1).T + 0.5
    near = np.linalg.norm(grid[:, None] - line[None], axis=-1).min(axis=1) < radius
    return near.reshape(height, width)


def _random_span(length: int, rng: np.random.Generator) -> slice:
    """Return a random range that covers 20 to 95 % of `length`."""
    size = max(1, round(length * rng.uniform(0.2, 0.95)))
    start = int(rng.integers(length - size + 1))
    return slice(start, start + size)
