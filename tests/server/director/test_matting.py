import numpy as np
import pytest

from server.director.matting import estimate_foreground, read_matte

RED, BLUE = np.array([200, 30, 30.0]), np.array([20, 40, 220.0])


def test_probabilities_are_stretched_and_logits_are_converted():
    probabilities = np.array([[[0.2, 0.2], [0.7, 0.45]]], np.float32)
    assert read_matte(probabilities, 2, 2) == pytest.approx(np.array([[0, 0], [1, 0.5]]), abs=1e-6)
    logits = np.array([[[-9, -9], [9, 0]]], np.float32)
    assert read_matte(logits, 2, 2) == pytest.approx(np.array([[0, 0], [1, 0.5]]), abs=1e-3)


def test_an_output_without_contrast_is_not_stretched():
    assert read_matte(np.full((1, 4, 4), 0.98, np.float32), 8, 8) == pytest.approx(0.98)


def test_a_matte_has_the_size_of_the_image_and_smooth_edges():
    matte = read_matte(np.eye(8, dtype=np.float32)[None], 64, 32)
    assert matte.shape == (32, 64)
    assert np.abs(np.diff(matte, axis=1)).max() < 0.35


def test_the_subject_loses_the_color_of_the_background():
    alpha = np.clip((np.arange(64) - 24) / 16, 0, 1).astype(np.float32)[None].repeat(48, 0)
    mixed = (alpha[..., None] * RED + (1 - alpha[..., None]) * BLUE).round().astype(np.uint8)
    estimated = estimate_foreground(mixed, alpha)
    partly = (alpha > 0.3) & (alpha < 0.9)
    assert np.abs(mixed[partly] - RED).mean() > 40
    assert np.abs(estimated[partly] - RED).mean() < 12
    assert np.abs(estimated[alpha == 1] - RED).max() < 3
