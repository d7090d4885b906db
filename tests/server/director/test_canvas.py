import numpy as np
import pytest
from PIL import Image

from server.director.canvas import fit_canvas
from server.errors import Rejected
from server.request.schema import LARGEST_AREA

MILLION = 1_048_576


@pytest.mark.parametrize(
    ("own", "known", "inner", "size"),
    [
        ((832, 1216), 832 * 1216, (832, 1216), (832, 1216)),
        ((512, 512), MILLION, (1024, 1024), (1024, 1024)),
        ((500, 700), MILLION, (865, 1212), (896, 1216)),
        ((500, 700), 160_000, (500, 700), (512, 704)),
        ((30, 20), 160_000, (490, 327), (512, 352)),
        ((1536, 2048), MILLION, (1536, 2048), (1536, 2048)),
    ],
)
def test_an_image_keeps_its_proportions_on_the_canvas(own, known, inner, size):
    canvas = fit_canvas(own, known)
    assert (canvas.inner, canvas.size) == (inner, size)
    assert canvas.inner[0] / canvas.inner[1] == pytest.approx(own[0] / own[1], rel=0.01)


@pytest.mark.parametrize(
    "own", [(1773, 1774), (3141, 1001), (6400, 400), (444, 7085), (64, 1024), (1, 1), (1, 16)]
)
def test_every_canvas_can_be_generated(own):
    width, height = fit_canvas(own, MILLION).size
    assert width % 32 == height % 32 == 0
    assert min(width, height) >= 64
    assert width * height <= LARGEST_AREA


def test_a_strip_is_refused():
    with pytest.raises(Rejected, match=r"image: 170 x 10: one side may be at most 16 times"):
        fit_canvas((170, 10), MILLION)


@pytest.mark.parametrize("own", [(70, 100), (64, 96)])
def test_what_is_placed_on_the_canvas_is_cut_out_again(own):
    image = Image.linear_gradient("L").convert("RGB").resize(own)
    canvas = fit_canvas(own, 1)
    placed = canvas.place(image)
    assert placed.shape == (canvas.size[1], canvas.size[0], 3)
    assert (placed[-1, -1] == np.asarray(image)[-1, -1]).all()
    assert (canvas.cut(placed) == np.asarray(image)).all()


def test_an_enlarged_image_returns_at_its_own_size():
    image = Image.linear_gradient("L").convert("RGB").resize((70, 100))
    canvas = fit_canvas(image.size, 100_000)
    assert canvas.inner > image.size
    returned = canvas.cut(canvas.place(image)).astype(int)
    assert np.abs(returned - np.asarray(image)).mean() < 2
