import numpy as np
import pytest
import torch

from demo.objective import COMPOSITION_TIME, FLOOR, Objective
from pipelines.sampling.prediction import scaled_linear

CLEAN = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def told(answer, dwelling=0.0):
    """The loss of a network that answers from the clean latents, and what it was asked with."""
    asked = {}

    def predict(noisy, times):
        asked.update(noisy=noisy, times=times)
        return answer(noisy, times)

    return float(Objective(dwelling).compute(predict, CLEAN, np.random.default_rng(5))), asked


def oracle(noisy, times):
    sigmas = torch.tensor([scaled_linear(zsnr=True).sigmas[int(time)] for time in times])[:, None, None, None]
    alpha = 1 / (1 + sigmas.square()).sqrt()
    sigma = (1 - alpha.square()).sqrt()
    noise = (noisy - alpha * CLEAN) / sigma
    return alpha * noise - sigma * CLEAN


def test_the_velocity_of_the_picture_has_no_error():
    loss, _ = told(oracle)
    # noise is recovered by dividing by sigmas down to 0.04 in float32
    assert loss == pytest.approx(0, abs=1e-8)


def test_the_other_sign_is_wrong_everywhere():
    loss, _ = told(lambda noisy, times: -oracle(noisy, times))
    assert loss > 4 * FLOOR * float(CLEAN.square().mean()) * 0.8


def test_pure_noise_comes_often_and_shows_nothing_of_the_picture():
    _, asked = told(oracle)
    pure = asked["times"] == 999
    assert pure.sum() >= 2
    noise = asked["noisy"][pure]
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert abs(float((noise * CLEAN[pure]).mean())) < 0.1


def test_a_training_that_composes_dwells_on_much_noise():
    wrong = [told(lambda noisy, times: -oracle(noisy, times), dwelling)[0] for dwelling in (0.0, 0.75)]
    shares = [
        float((told(oracle, dwelling)[1]["times"] >= COMPOSITION_TIME).float().mean())
        for dwelling in (0.0, 0.75)
    ]
    assert shares[0] < 0.7
    assert shares[1] > 0.85
    assert wrong[0] < wrong[1]
