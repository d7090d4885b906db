import numpy as np
import pytest

from demo.holes import GREY, emptied, random_mask


def test_masks_hide_something_and_a_fifth_hide_everything():
    rng = np.random.default_rng(2)
    masks = [random_mask(28, 40, rng) for _ in range(400)]
    assert all(mask.shape == (28, 40) and mask.any() for mask in masks)
    shares = np.array([mask.mean() for mask in masks])
    assert (shares == 1).mean() == pytest.approx(0.2, abs=0.06)
    assert np.median(shares[shares < 1]) == pytest.approx(0.33, abs=0.12)


def test_what_is_hidden_is_mid_grey_and_nothing_else_changes():
    picture = np.random.default_rng(1).integers(0, 256, (16, 24, 3), np.uint8)
    mask = np.zeros((2, 3), bool)
    mask[1, 2] = True
    cut = emptied(picture, mask)
    assert (cut[8:, 16:] == GREY).all()
    kept = np.ones((16, 24), bool)
    kept[8:, 16:] = False
    assert (cut[kept] == picture[kept]).all()
