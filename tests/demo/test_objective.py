import numpy as np
import pytest
import torch

from demo.objective import COMPOSITION_TIME, FLOOR, Objective
from pipelines.sampling.prediction import scaled_linear

CLEAN = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def compute_loss(predict, high_noise_share=0.0):
    """Return the loss of a function for predictions, and the inputs it got."""
    inputs = {}

    def predict_and_record(noisy, times):
        inputs.update(noisy=noisy, times=times)
        return predict(noisy, times)

    objective = Objective(high_noise_share)
    return float(objective.compute(predict_and_record, CLEAN, np.random.default_rng(5))), inputs


def predict_exactly(noisy, times):
    sigmas = torch.tensor([scaled_linear(zsnr=True).sigmas[int(time)] for time in times])[:, None, None, None]
    alpha = 1 / (1 + sigmas.square()).sqrt()
    sigma = (1 - alpha.square()).sqrt()
    noise = (noisy - alpha * CLEAN) / sigma
    return alpha * noise - sigma * CLEAN


def test_the_exact_velocity_has_no_error():
    loss, _ = compute_loss(predict_exactly)
    # noise is recovered by dividing by sigmas down to 0.04 in float32
    assert loss == pytest.approx(0, abs=1e-8)


def test_the_opposite_velocity_has_a_large_error():
    loss, _ = compute_loss(lambda noisy, times: -predict_exactly(noisy, times))
    assert loss > 4 * FLOOR * float(CLEAN.square().mean()) * 0.8


def test_pure_noise_is_frequent_and_independent_of_the_image():
    _, inputs = compute_loss(predict_exactly)
    pure = inputs["times"] == 999
    assert pure.sum() >= 2
    noise = inputs["noisy"][pure]
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert abs(float((noise * CLEAN[pure]).mean())) < 0.1


def test_a_high_noise_share_gives_noisy_samples_more_weight():
    losses, shares = [], []
    for high_noise_share in (0.0, 0.75):
        losses.append(compute_loss(lambda noisy, times: -predict_exactly(noisy, times), high_noise_share)[0])
        times = compute_loss(predict_exactly, high_noise_share)[1]["times"]
        shares.append(float((times >= COMPOSITION_TIME).float().mean()))
    assert shares[0] < 0.7
    assert shares[1] > 0.85
    assert losses[0] < losses[1]
