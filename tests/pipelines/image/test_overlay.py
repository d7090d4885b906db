from typing import Any

import numpy as np
import pytest

from pipelines.image.overlay import SEAM, apply_overlay
from pipelines.job import InitImage, RgbImage

OLD = np.full((64, 128, 3), 40, np.uint8)
NEW = np.full((64, 128, 3), 200, np.uint8)
MASK = np.zeros((8, 16), np.uint8)
MASK[:, 8:] = 255


def overlay_new(overlay, mask: Any = MASK):
    init_image = InitImage(
        RgbImage(128, 64, OLD.tobytes()), mask=None if mask is None else mask.tobytes(), overlay=overlay
    )
    return apply_overlay(NEW, init_image)


@pytest.mark.parametrize("overlay", ["soft", "hard"])
def test_nothing_changes_outside_and_everything_well_inside(overlay):
    result = overlay_new(overlay)
    assert (result[:, :64] == OLD[:, :64]).all()
    assert (result[:, 64 + SEAM + 1 :] == 200).all()


def test_hard_cuts_at_the_edge_and_soft_rises_smoothly():
    assert (overlay_new("hard")[:, 64:] == 200).all()
    row = overlay_new("soft")[32, :, 0].astype(int)
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() <= 16  # 160 levels over 16 pixels, 1.5 times as steep in the middle
    assert (overlay_new("soft")[0] == overlay_new("soft")[32]).all()  # image borders are not feathered


def test_without_a_mask_or_an_overlay_the_image_is_unchanged():
    assert (overlay_new("soft", None) == NEW).all()
    assert (overlay_new("none") == NEW).all()
