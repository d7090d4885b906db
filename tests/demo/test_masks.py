import numpy as np
import pytest

from demo.masks import random_mask


def test_no_mask_is_empty_and_a_fifth_cover_everything():
    rng = np.random.default_rng(2)
    masks = [random_mask(28, 40, rng) for _ in range(400)]
    assert all(mask.shape == (28, 40) and mask.any() for mask in masks)
    shares = np.array([mask.mean() for mask in masks])
    assert (shares == 1).mean() == pytest.approx(0.2, abs=0.06)
    assert np.median(shares[shares < 1]) == pytest.approx(0.33, abs=0.12)
