from typing import Any

import numpy as np
import pytest

from pipelines.image.overlay import SEAM, apply_overlay
from pipelines.job import InitImage, RgbImage

OLD = np.full((64, 128, 3), 40, np.uint8)
NEW = np.full((64, 128, 3), 200, np.uint8)
PLACES = np.zeros((8, 16), np.uint8)
PLACES[:, 8:] = 255


def laid(overlay, mask: Any = PLACES):
    source = InitImage(
        RgbImage(128, 64, OLD.tobytes()), mask=None if mask is None else mask.tobytes(), overlay=overlay
    )
    return apply_overlay(NEW, source)


@pytest.mark.parametrize("overlay", ["soft", "hard"])
def test_outside_nothing_changes_and_well_inside_all_is_new(overlay):
    laid_over = laid(overlay)
    assert (laid_over[:, :64] == OLD[:, :64]).all()
    assert (laid_over[:, 64 + SEAM + 1 :] == 200).all()


def test_a_hard_edge_is_one_and_a_soft_one_rises_without_a_jump():
    assert (laid("hard")[:, 64:] == 200).all()
    row = laid("soft")[32, :, 0].astype(int)
    assert (np.diff(row) >= 0).all()
    assert np.diff(row).max() <= 16  # 160 levels over 16 pixels, half as steep again in the middle
    assert (laid("soft")[0] == laid("soft")[32]).all()  # the picture's own edge is none of the mask's


def test_without_a_mask_or_an_overlay_the_picture_is_as_it_was_drawn():
    assert (laid("soft", None) == NEW).all()
    assert (laid("none") == NEW).all()
