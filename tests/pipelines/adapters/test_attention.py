from dataclasses import replace

import pytest
import torch
from adapter_files import UNETS, build_unet
from diffusers.models.attention_processor import AttnProcessor2_0

from pipelines.adapters.attention import DecoupledAttention, ImageProjections, RowVibe
from pipelines.sampling.batching import RowBatcher
from pipelines.sampling.denoise import Row
from pipelines.sampling.prediction import scaled_linear


@pytest.fixture(scope="module", params=UNETS)
def unet(request):
    unet = build_unet(request.param)
    torch.manual_seed(8)
    layers = [ImageProjections(width, inner) for inner, width in unet.image_attention.shapes]
    unet.image_attention.layers = [layer.requires_grad_(False) for layer in layers]
    return unet


def make_inputs(unet, rows=3):
    generator = torch.Generator().manual_seed(9)
    config = unet.module.config
    context = torch.randn(rows, 77, config.cross_attention_dim, generator=generator)
    pooled = torch.randn(rows, 24, generator=generator)
    added = {"text_embeds": pooled, "time_ids": torch.full((rows, 6), 64.0)}
    sample = torch.randn(rows, 4, 16, 8, generator=generator)
    return sample, torch.tensor([500] * rows), context, added if config.addition_embed_type else None


def make_vibe(unet, seed, scale=1.0, count=4):
    width = unet.module.config.cross_attention_dim
    return RowVibe(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), scale)


def run(unet, vibes=(), rows=3):
    with torch.inference_mode():
        return unet(*make_inputs(unet, rows), vibes=vibes)


def test_without_images_the_output_is_that_of_diffusers_to_the_bit(unet):
    ours = run(unet)
    processors = unet.module.attn_processors
    unet.module.set_attn_processor(AttnProcessor2_0())
    plain = run(unet)
    unet.module.set_attn_processor(processors)
    assert torch.equal(ours, plain)


def test_only_cross_attentions_have_the_processor(unet):
    for name, processor in unet.module.attn_processors.items():
        assert isinstance(processor, DecoupledAttention) == ("attn2" in name)


def test_rows_without_images_keep_their_bits_next_to_a_row_with_one(unet):
    plain, mixed = run(unet), run(unet, [(), (make_vibe(unet, 1),), ()])
    assert torch.equal(mixed[0], plain[0])
    assert torch.equal(mixed[2], plain[2])
    assert not torch.allclose(mixed[1], plain[1], atol=1e-3)


def test_rows_may_have_different_numbers_of_images_in_one_pass(unet):
    one, two = (make_vibe(unet, 1),), (make_vibe(unet, 2, 0.5), make_vibe(unet, 3, -0.4))
    mixed = run(unet, [one, two, ()])
    alone = run(unet, [(), two, ()])
    torch.testing.assert_close(mixed[1], alone[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[0], run(unet, [one] * 3)[0], atol=1e-5, rtol=1e-5)


def test_images_do_not_compete_and_their_order_does_not_matter(unet):
    """The attention is a sum of one for each image, so twice an image at half the scale is the image."""
    whole, half = make_vibe(unet, 1), make_vibe(unet, 1, 0.5)
    torch.testing.assert_close(run(unet, [(half, half)] * 3), run(unet, [(whole,)] * 3), atol=1e-5, rtol=1e-5)
    other = make_vibe(unet, 2, 0.3)
    forth, back = run(unet, [(whole, other)] * 3), run(unet, [(other, whole)] * 3)
    torch.testing.assert_close(forth, back, atol=1e-5, rtol=1e-5)


def test_opposite_strengths_of_one_image_cancel(unet):
    vibes = (make_vibe(unet, 1, 0.7), make_vibe(unet, 1, -0.7))
    torch.testing.assert_close(run(unet, [vibes] * 3), run(unet), atol=1e-5, rtol=1e-5)


def test_a_reinstalled_processor_runs_the_one_that_was_set_before(unet):
    """As for xformers, whose processor replaces all of them."""
    processors, calls = unet.module.attn_processors, []

    class Recorder(AttnProcessor2_0):
        def __call__(self, *args, **options):
            calls.append(args)
            return super().__call__(*args, **options)

    plain = run(unet)
    unet.module.set_attn_processor(Recorder())
    unet.image_attention.install()
    assert torch.equal(run(unet), plain)
    assert len(calls) == len(processors)
    unet.module.set_attn_processor(processors)


def test_rows_with_and_without_images_share_a_pass(unet):
    passes = []

    def record(sample, timestep, context, added_cond_kwargs, halvings=0, *, vibes=(), residuals=None):
        passes.append([len(row) for row in vibes])
        return unet(sample, timestep, context, added_cond_kwargs, halvings, vibes=vibes)

    sample, _, context, added = make_inputs(unet)
    rows = [
        Row(sample[k], 2.0, context[k], None if added is None else added["text_embeds"][k], None if added is None else (64.0,) * 6)
        for k in range(3)
    ]  # fmt: skip
    rows[1] = replace(rows[1], vibes=(make_vibe(unet, 1),))
    batcher = RowBatcher(record, scaled_linear(zsnr=False), torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        outputs = batcher.evaluate(rows)
    assert passes == [[0, 1, 0]]
    assert all(output.shape == (4, 16, 8) for output in outputs)
