"""Published clients, with only the address changed, against a server process that has the demo model."""

import json
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from register import read_clients

from server.picture.inspection import check_signatures, inspect, parse_json

pytestmark = pytest.mark.clients

REQUEST = {
    "prompt": "1girl, smile",
    "quality": True,
    "width": 256,
    "height": 384,
    "steps": 4,
    "seed": 42,
    "sampler": "k_euler",
    "n_samples": 1,
}


def tries(operation):
    """Parametrize a test of one operation with the clients that offer it."""

    def decorate(test):
        cases = [
            pytest.param(client, marks=client.program.skip_if_missing, id=client.label)
            for client in read_clients()
            if client.has_operation(operation)
        ]
        return pytest.mark.operation(operation)(pytest.mark.parametrize("client", cases)(test))

    return decorate


def send(client, address, folder, operation="generate", token="pst-anything-at-all", **changes):
    """Send one request with a client and return the client's result."""
    return client.program.run(address, token, operation, folder, json.dumps(REQUEST | changes))


def inspect_saved(folder, number=0) -> tuple[Any, Any]:
    """The inspection and the Comment of an image that the client saved."""
    inspection = inspect((folder / f"{number}.png").read_bytes())
    return inspection, parse_json(inspection.text["Comment"])


def list_signers(inspection, server_key):
    """Who signed the image, by layer."""
    return [check.signer for check in check_signatures(inspection, server_key, None)]


@tries("generate")
def test_it_gets_the_requested_image(client, open_address, server_key, tmp_path):
    assert send(client, open_address, tmp_path) == {"images": 1}
    inspection, comment = inspect_saved(tmp_path)
    assert inspection.size == (256, 384)
    assert len(np.unique(inspection.rgb)) > 50  # an image, not a single color
    assert (comment["seed"], comment["steps"], comment["sampler"]) == (42, 4, "k_euler")
    assert comment["prompt"].count("1girl, smile") == 1
    assert comment["prompt"].count("best quality") == 1  # added by the client or the server, not by both
    assert "not NovelAI" in str(comment["generator"])
    assert list_signers(inspection, server_key) == ["ours", "ours"]


@tries("samples")
def test_two_samples_are_two_images_with_consecutive_seeds(client, open_address, tmp_path):
    assert send(client, open_address, tmp_path, n_samples=2) == {"images": 2}
    (first, first_comment), (second, second_comment) = (inspect_saved(tmp_path, number) for number in (0, 1))
    assert (first_comment["seed"], second_comment["seed"]) == (42, 43)
    assert not np.array_equal(first.rgb, second.rgb)


SOURCE = Image.effect_mandelbrot((256, 384), (-2, -1.5, 1, 1.5), 40).convert("RGB")
MASK = np.zeros((48, 32), np.uint8)
MASK[8:24, 8:24] = 255
IS_MASKED = MASK.repeat(8, 0).repeat(8, 1) > 0


def save_images(folder, **images):
    """Save images as files and return their paths by name."""
    for name, image in images.items():
        image.save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in images}


def measure_change(rgb):
    """The largest difference of each pixel from the source, over the channels."""
    source = SOURCE.resize((rgb.shape[1], rgb.shape[0]), Image.Resampling.LANCZOS)
    return np.abs(rgb.astype(int) - np.asarray(source)).max(axis=2)


def measure_change_of_noise():
    """The mean difference of an image of noise from the source."""
    return measure_change(np.random.default_rng(0).integers(0, 256, (384, 256, 3))).mean()


@tries("img2img")
def test_it_generates_from_an_init_image(client, open_address, server_key, tmp_path):
    start = {**save_images(tmp_path, image=SOURCE), "strength": 0.5, "noise": 0.1}
    assert send(client, open_address, tmp_path, "img2img", **start) == {"images": 1}
    inspection, comment = inspect_saved(tmp_path)
    assert inspection.size == (256, 384)
    assert (comment["request_type"], comment["strength"], comment["noise"]) == ("Img2ImgRequest", 0.5, 0.1)
    assert measure_change(inspection.rgb).mean() < measure_change_of_noise()
    assert list_signers(inspection, server_key) == ["ours", "ours"]


@tries("enhance")
def test_it_enhances_an_image(client, open_address, tmp_path):
    """Clients enhance as NAI's page does: image to image at 1.5 times the size, with a strength by magnitude."""
    enhance = {**save_images(tmp_path, image=SOURCE), "width": 384, "height": 576, "strength": 0.4}
    assert send(client, open_address, tmp_path, "img2img", **enhance, noise=0.0) == {"images": 1}
    inspection, comment = inspect_saved(tmp_path)
    assert inspection.size == (384, 576)
    assert (comment["request_type"], comment["strength"]) == ("Img2ImgRequest", 0.4)
    assert measure_change(inspection.rgb).mean() < measure_change_of_noise()


@pytest.mark.parametrize("form", ["full", "eighth"])
@tries("infill")
def test_it_inpaints_an_image(client, form, open_address, tmp_path):
    mask = Image.fromarray(IS_MASKED if form == "full" else MASK)
    start: Any = save_images(tmp_path, image=SOURCE, mask=mask.convert("L"))
    if client.name != "novelai-sdk":  # the others send a strength, which infill ignores
        start["strength"] = 0.7
    assert send(client, open_address, tmp_path, "infill", **start) == {"images": 1}
    inspection, saved_comment = inspect_saved(tmp_path)
    comment = cast("Any", saved_comment)
    assert comment["request_type"] == "NativeInfillingRequest"
    assert comment["naiad"]["job"]["source"]["strength"] == 1.0
    # novelai-sdk turns the overlay off, so the entire image has passed through the VAE
    has_overlay = client.name != "novelai-sdk"
    assert comment["add_original_image"] is has_overlay
    change = measure_change(inspection.rgb)
    assert change[~IS_MASKED].mean() < (1e-9 if has_overlay else change[IS_MASKED].mean() / 2)
    assert change[IS_MASKED].mean() > 5


@tries("stream")
def test_it_receives_previews_and_the_images(client, open_address, tmp_path):
    result: Any = send(client, open_address, tmp_path, "stream", steps=8, n_samples=2)
    assert result["images"] == 2
    assert result["previews"] >= 2
    inspections, comments = zip(*(inspect_saved(tmp_path, number) for number in (0, 1)), strict=True)
    assert [inspection.size for inspection in inspections] == [(256, 384)] * 2
    assert sorted(comment["seed"] for comment in comments) == [42, 43]
    assert all(comment["prompt"].startswith("1girl, smile") for comment in comments)


@tries("tags")
def test_it_completes_a_tag(client, open_address, tmp_path):
    tags: Any = send(client, open_address, tmp_path, "tags", prompt="smi")["tags"]
    assert "smile" in tags


@tries("account")
def test_it_reads_the_account(client, open_address, tmp_path):
    for page, expected in client.pages.items():
        result = send(client, open_address, tmp_path, page)
        assert {key: result.get(key) for key in expected} == expected


@tries("login")
def test_only_the_right_password_logs_in(client, closed_address, tmp_path):
    assert "401" in str(send(client, closed_address, tmp_path, "login", token="passw0rd")["error"])
    assert send(client, closed_address, tmp_path, "login", token="password")["tier"] == 3


@tries("upscale")
def test_it_upscales_an_image(client, open_address, server_key, tmp_path):
    image = SOURCE.crop((64, 64, 192, 192))
    assert send(client, open_address, tmp_path, "upscale", **save_images(tmp_path, image=image)) == {
        "images": 1
    }
    inspection = inspect((tmp_path / "0.png").read_bytes())
    assert inspection.size == (128 * client.upscale,) * 2
    small = Image.fromarray(inspection.rgb).resize((128, 128), Image.Resampling.BOX)
    assert np.abs(np.asarray(small, int) - np.asarray(image, int)).mean() < 4
    assert list_signers(inspection, server_key) == ["ours", "ours"]


@tries("director")
def test_it_gets_line_art(client, open_address, server_key, tmp_path):
    result = send(client, open_address, tmp_path, "director", **save_images(tmp_path, image=SOURCE))
    assert result == {"images": 1}
    inspection = inspect((tmp_path / "0.png").read_bytes())
    assert inspection.size == SOURCE.size
    assert inspection.text["Title"] == "AI augmented image"
    assert np.ptp(inspection.rgb.astype(int), axis=2).max() < 8  # gray
    assert (inspection.rgb > 200).mean() > 0.5  # mostly paper
    assert (inspection.rgb < 128).mean() > 0.005  # some lines
    assert list_signers(inspection, server_key) == ["ours", "ours"]


@tries("errors")
def test_it_reports_why_a_request_is_rejected(client, open_address, tmp_path):
    error = str(send(client, open_address, tmp_path, prompt="a:0|b:0", quality=False)["error"])
    assert client.errors["400"] in error
    assert client.name == "nekoai-js" or "weight 0" in error  # nekoai-js keeps nothing but the status


@tries("errors")
def test_a_server_with_a_token_requires_it(client, closed_address, tmp_path):
    assert client.errors["401"] in str(send(client, closed_address, tmp_path, token="pst-another")["error"])
    assert send(client, closed_address, tmp_path, token="pst-the-server-s-own") == {"images": 1}


@tries("errors")
def test_it_reports_that_the_server_is_busy(client, busy_address, tmp_path):
    assert client.errors["429"] in str(send(client, busy_address, tmp_path)["error"])
