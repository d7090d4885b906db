"""Characters by place: the weights of the masks, and `denoise` with a network that draws what its prompt is."""

import math

import pytest
import torch
from analytic import run_denoise, velocity_network
from jobs import make_job, plan_first

from pipelines.image.inpainting import LatentBlend
from pipelines.job import Guidance, Prompts, UncondZero
from pipelines.sampling.denoise import Estimator, denoise
from pipelines.sampling.guidance import apply_guides, build_guides
from pipelines.sampling.noise import make_image_noise
from pipelines.sampling.prediction import PREDICTIONS, scaled_linear
from pipelines.sampling.regions import Regions
from pipelines.sampling.smea import make_smea
from pipelines.text.encoding import CharacterEmbeddings, Conditioning, PromptEmbeddings

TABLE = scaled_linear(zsnr=True)
SHAPE = (4, 16, 32)
LEFT, RIGHT = (0.25, 0.5), (0.75, 0.5)


def flat(value):
    return torch.full(SHAPE, float(value), dtype=torch.float64)


def conditioning(value):
    return Conditioning(torch.full((77, 3), float(value)), None)


def embed(*characters):
    """Return embeddings whose values the network draws: 1 for the base, -1 for its negative, and the characters'."""
    regions = tuple(
        CharacterEmbeddings(conditioning(value), None if negative is None else conditioning(negative), center)
        for value, negative, center in characters
    )
    return PromptEmbeddings(conditioning(1), conditioning(-1), conditioning(0), regions)


def run(embeddings, guidance, steps=3, **changes):
    job = make_job(256, 128, Prompts("a", "b"), steps=steps, guidance=guidance, seeds=(5,))
    plan = plan_first(job, TABLE)
    noise = make_image_noise(5, SHAPE, plan.sampler, plan.sigmas, TABLE, plan.brownian)
    estimator = Estimator(plan, embeddings, None, PREDICTIONS["v"], **changes)
    network = velocity_network(lambda row: torch.full_like(row.x, float(row.conditioning.context[0, 0])))
    return run_denoise(denoise(estimator, noise.initial.double(), noise), network)


def test_each_character_fills_its_region_and_the_base_the_rest():
    image = Regions((LEFT, RIGHT)).blend(flat(1), [flat(2), flat(3)])[0]
    assert image[8, 8] == pytest.approx(2, abs=0.03)  # the weight of the base at a center is .02
    assert image[8, 24] == pytest.approx(3, abs=0.05)
    assert Regions(((0.1, 0.5),)).blend(flat(1), [flat(2)])[0, 8, 20:].max() == pytest.approx(1, abs=0.01)


def test_the_weights_of_a_place_sum_to_one():
    same = Regions((LEFT, RIGHT, (0.5, 0.1))).blend(flat(0.7), [flat(0.7)] * 3)
    torch.testing.assert_close(same, flat(0.7))


@pytest.mark.parametrize("steps", [1, 3])  # one step is the exact one from infinite noise alone
def test_every_step_blends_the_characters(steps):
    embeddings = embed((2, None, LEFT), (3, None, RIGHT))
    latents, requests = run(embeddings, Guidance(scale=1.0), steps)
    assert [len(rows) for rows in requests] == [3] * steps
    torch.testing.assert_close(latents, Regions((LEFT, RIGHT)).blend(flat(1), [flat(2), flat(3)]))


def test_a_negative_of_its_own_costs_a_row_and_counts_in_its_region():
    embeddings = embed((2, None, LEFT), (3, -3, RIGHT))
    latents, requests = run(embeddings, Guidance(scale=2.0))
    assert {len(rows) for rows in requests} == {5}  # base, negative, two characters, one negative
    regions = Regions((LEFT, RIGHT))
    positive = regions.blend(flat(1), [flat(2), flat(3)])
    negative = regions.blend(flat(-1), [flat(-1), flat(-3)])
    torch.testing.assert_close(latents, negative + 2 * (positive - negative))


def test_negatives_are_not_evaluated_where_guidance_is_skipped():
    _, requests = run(embed((2, -2, LEFT)), Guidance(scale=2.0, skip_above=1.0), 4)
    counts = [len(rows) for rows in requests]
    assert counts[0] == 2  # base and character
    assert counts[-1] == 4


def test_an_empty_negative_replaces_those_of_the_characters():
    latents, requests = run(embed((2, -2, LEFT)), Guidance(scale=2.0, uncond_scale=0.0))
    assert {len(rows) for rows in requests} == {3}
    torch.testing.assert_close(latents, 2 * Regions((LEFT,)).blend(flat(1), [flat(2)]))


def test_uncond_zero_acts_on_the_blended_estimate_without_any_negative():
    guidance = Guidance(scale=2.0, uncond_zero=UncondZero())
    latents, requests = run(embed((2, -2, LEFT)), guidance, steps=1)
    assert {len(rows) for rows in requests} == {2}  # base and character
    blended = Regions((LEFT,)).blend(flat(1), [flat(2)])
    guided = apply_guides(build_guides(guidance), blended, math.inf, blended)
    torch.testing.assert_close(latents, guided)
    assert not torch.equal(guided, blended)


def test_the_empty_prompt_of_uncond_scale_has_no_regions():
    latents, requests = run(embed((2, -3, LEFT)), Guidance(scale=2.0, uncond_scale=0.5))
    assert {len(rows) for rows in requests} == {5}
    region = Regions((LEFT,))
    uncond = 0.5 * region.blend(flat(-1), [flat(-3)])
    torch.testing.assert_close(latents, uncond + 2 * (region.blend(flat(1), [flat(2)]) - uncond))


def test_smea_blends_its_copy_too():
    plan = plan_first(make_job(256, 128, steps=3), TABLE)
    smea = make_smea("smea", (16, 32), plan.sigmas, torch.device("cpu"))
    latents, requests = run(embed((2, None, LEFT)), Guidance(scale=1.0), smea=smea)
    assert [len(rows) for rows in requests] == [4, 4, 2]
    assert [row.x.shape[-2:] for row in requests[0]] == [(16, 32), (16, 32), (8, 16), (8, 16)]
    torch.testing.assert_close(latents, Regions((LEFT,)).blend(flat(1), [flat(2)]))


def test_inpainting_keeps_what_the_mask_keeps():
    mask = torch.zeros(1, 16, 32, dtype=torch.float64)
    mask[..., 16:] = 1
    plan = plan_first(make_job(256, 128, steps=3), TABLE)
    blend = LatentBlend(flat(9), torch.zeros(SHAPE, dtype=torch.float64), mask, plan.sigmas)
    latents, _ = run(embed((2, None, LEFT), (3, None, RIGHT)), Guidance(scale=1.0), blend=blend)
    assert (latents[..., :16] == 9).all()
    expected = Regions((LEFT, RIGHT)).blend(flat(1), [flat(2), flat(3)])
    torch.testing.assert_close(latents[..., 16:], expected[..., 16:])


def test_infinite_noise_is_the_first_request():
    _, requests = run(embed((2, None, LEFT)), Guidance(scale=1.0))
    assert math.isinf(requests[0][0].sigma)
