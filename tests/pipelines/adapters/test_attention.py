from dataclasses import replace

import pytest
import torch
from adapter_files import UNETS, build_unet
from unets import WrappedUNet, list_scales, run_unet

from pipelines.adapters.attention import ImageProjections, RowVibe
from pipelines.sampling.batching import RowBatcher
from pipelines.sampling.denoise import Row
from pipelines.sampling.prediction import scaled_linear
from pipelines.text.encoding import Conditioning


@pytest.fixture(scope="module", params=UNETS)
def unet(request):
    unet = build_unet(request.param)
    torch.manual_seed(8)
    layers = [ImageProjections(width, inner) for inner, width in unet.attention_shapes]
    unet.image_layers = [layer.requires_grad_(False) for layer in layers]
    return unet


def make_inputs(unet, rows=3):
    generator = torch.Generator().manual_seed(9)
    context = torch.randn(rows, 77, unet.module.shape.context, generator=generator)
    pooled = torch.randn(rows, 24, generator=generator)
    added = {"text_embeds": pooled, "time_ids": torch.full((rows, 6), 64.0)}
    sample = torch.randn(rows, 4, 16, 8, generator=generator)
    return sample, torch.tensor([500] * rows), context, None if unet.module.add_embedding is None else added


def make_vibe(unet, seed, scale=1.0, count=4):
    width = unet.module.shape.context
    return RowVibe(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), scale)


def run(unet, vibes=(), rows=3):
    with torch.inference_mode():
        return run_unet(unet, *make_inputs(unet, rows), vibes=vibes)


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


def test_all_attentions_use_the_function_that_was_set(unet):
    """As for xformers, whose function replaces torch's."""
    calls, attend = [], unet.module.mid_block.attentions[0].transformer_blocks[0].attn1.attend

    def record(query, key, value):
        calls.append(query.shape)
        return attend(query, key, value)

    plain = run(unet)
    unet.module.set_attention(record)
    assert torch.equal(run(unet), plain)
    assert len(calls) == 2 * len(unet.module.cross_attentions)
    unet.module.set_attention(attend)


def test_rows_with_and_without_images_share_a_pass(unet):
    passes = []

    def record(unet, sample, embedding, context, *inputs):
        passes.append(list_scales(context))
        return unet(sample, embedding, context, *inputs)

    sample, _, context, added = make_inputs(unet)
    pooled, ids = ([None] * 3, None) if added is None else (added["text_embeds"], (64.0,) * 6)
    rows = [Row(sample[k], 2.0, Conditioning(context[k], pooled[k]), ids) for k in range(3)]
    rows[1] = replace(rows[1], conditioning=replace(rows[1].conditioning, vibes=(make_vibe(unet, 1),)))
    recorder = WrappedUNet(unet, record)
    batcher = RowBatcher(recorder, scaled_linear(zsnr=False), torch.device("cpu"), torch.float32)
    with torch.inference_mode():
        outputs = batcher.evaluate(rows)
    assert passes == [[(), (1.0,), ()]]
    assert all(output.shape == (4, 16, 8) for output in outputs)
