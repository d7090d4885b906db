import numpy as np

from demo.latents import make_scene
from demo.views import PERIOD, View, choose_view

SIZE = (512, 768)


def test_small_images_and_most_large_ones_show_the_entire_drawing():
    assert choose_view((256, 256), 0).size_ids() == (256, 256, 0, 0, 256, 256)
    assert choose_view(SIZE, 1).size_ids() == (768, 512, 0, 0, 768, 512)
    assert sum(choose_view(SIZE, number) != View(SIZE, SIZE) for number in range(60)) == 60 // PERIOD


def test_a_crop_shows_its_part_of_the_larger_drawing():
    scene = make_scene((64, 96), 1)[0]
    drawing = scene.draw(80, 120, np.random.default_rng(3))
    crop = View((64, 96), (80, 120), (10, 20)).draw(scene, np.random.default_rng(3))
    assert (crop == drawing[20:116, 10:74]).all()
    assert View((64, 96), (80, 120), (10, 20)).size_ids() == (120, 80, 20, 10, 96, 64)


def test_an_enlarged_image_has_the_full_size_but_soft_edges():
    scene = make_scene((256, 384), 2)[0]
    sharp = View((256, 384), (256, 384)).draw(scene, np.random.default_rng(3))
    soft = View((256, 384), (64, 96)).draw(scene, np.random.default_rng(3))
    assert soft.shape == sharp.shape
    steps = [np.abs(np.diff(image.astype(int), axis=1)).max(axis=2) for image in (sharp, soft)]
    assert np.percentile(steps[1], 99.5) < 0.7 * np.percentile(steps[0], 99.5)


def test_crops_and_enlarged_images_both_occur():
    views = [choose_view(SIZE, number) for number in range(0, 40 * PERIOD, PERIOD)]
    enlarged = [view for view in views if view.original[0] < SIZE[0]]
    crops = [view for view in views if view.original[0] > SIZE[0]]
    assert min(len(enlarged), len(crops)) > 10
    for view in crops:
        (left, top), (width, height) = view.corner, view.original
        assert left + SIZE[0] <= width
        assert top + SIZE[1] <= height
