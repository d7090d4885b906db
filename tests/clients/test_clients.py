"""Published clients, with only the address changed, against a server process that has the demo model."""

import json
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from programs import Program, build_cases

from server.picture.inspection import check_signatures, inspect, parse_json

SDK = Program("novelai-sdk", "novelai_sdk_client.py", "NAIAD_CLIENT_NOVELAI_SDK")
NEKOAI = Program("nekoai-api", "nekoai_client.py", "NAIAD_CLIENT_NEKOAI")
PYTHON = Program("novelai-python", "novelai_python_client.py", "NAIAD_CLIENT_NOVELAI_PYTHON")

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


def send(client, address, folder, operation="generate", token="pst-anything-at-all", **changes):
    """Send one request with a client and return the client's result."""
    return client.run(address, token, operation, folder, json.dumps(REQUEST | changes))


def inspect_saved(folder, number=0):
    """The inspection and the Comment of an image that the client saved."""
    inspection = inspect((folder / f"{number}.png").read_bytes())
    return inspection, parse_json(inspection.text["Comment"])


@pytest.mark.parametrize("client", build_cases((SDK,), (NEKOAI,), (PYTHON,)))
def test_it_gets_the_requested_image(client, open_address, server_key, tmp_path):
    assert send(client, open_address, tmp_path) == {"images": 1}
    inspection, comment = inspect_saved(tmp_path)
    assert inspection.size == (256, 384)
    assert len(np.unique(inspection.rgb)) > 50  # an image, not a single color
    assert (comment["seed"], comment["steps"], comment["sampler"]) == (42, 4, "k_euler")
    assert str(comment["prompt"]).count("1girl, smile") == 1
    assert str(comment["prompt"]).count("best quality") == 1  # added by the client or the server, not by both
    assert "not NovelAI" in str(comment["generator"])
    assert [check.signer for check in check_signatures(inspection, server_key, None)] == ["ours", "ours"]


@pytest.mark.parametrize("client", build_cases((SDK,), (NEKOAI,), (PYTHON,)))
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
    return np.abs(rgb.astype(int) - np.asarray(SOURCE)).max(axis=2)


@pytest.mark.parametrize("client", build_cases((SDK,), (NEKOAI,), (PYTHON,)))
def test_it_generates_from_an_init_image(client, open_address, server_key, tmp_path):
    start = {"kind": "img2img", **save_images(tmp_path, image=SOURCE), "strength": 0.5, "noise": 0.1}
    assert send(client, open_address, tmp_path, start=start) == {"images": 1}
    inspection, comment = inspect_saved(tmp_path)
    assert inspection.size == (256, 384)
    assert (comment["request_type"], comment["strength"], comment["noise"]) == ("Img2ImgRequest", 0.5, 0.1)
    assert measure_change(inspection.rgb).mean() < measure_change_of_noise()
    assert [check.signer for check in check_signatures(inspection, server_key, None)] == ["ours", "ours"]


def measure_change_of_noise():
    """The mean difference of an image of noise from the source."""
    return measure_change(np.random.default_rng(0).integers(0, 256, (384, 256, 3))).mean()


@pytest.mark.parametrize("form", ["full", "eighth"])
@pytest.mark.parametrize("client", build_cases((SDK,), (NEKOAI,), (PYTHON,)))
def test_it_inpaints_an_image(client, form, open_address, tmp_path):
    mask = Image.fromarray(IS_MASKED if form == "full" else MASK)
    start: Any = {"kind": "infill", **save_images(tmp_path, image=SOURCE, mask=mask.convert("L"))}
    if client is not SDK:  # these two send a strength, which infill ignores
        start["strength"] = 0.7
    assert send(client, open_address, tmp_path, start=start) == {"images": 1}
    inspection, saved_comment = inspect_saved(tmp_path)
    comment = cast("Any", saved_comment)
    assert comment["request_type"] == "NativeInfillingRequest"
    assert comment["naiad"]["job"]["source"]["strength"] == 1.0
    # novelai-sdk turns the overlay off, so the entire image has passed through the VAE
    assert comment["add_original_image"] is (client is not SDK)
    assert measure_change(inspection.rgb)[~IS_MASKED].mean() < (
        measure_change(inspection.rgb)[IS_MASKED].mean() / 2 if client is SDK else 1e-9
    )


@pytest.mark.parametrize(
    ("client", "operation", "expected"),
    build_cases(
        (SDK, "subscription", {"tier": 3, "active": True}),
        (NEKOAI, "subscription", {"tier": 3, "active": True}),
        (NEKOAI, "data", {"settings": "{}"}),
        (PYTHON, "subscription", {"tier": 3, "active": True}),
        (PYTHON, "information", {"emailVerified": True}),
    ),
)
def test_it_reads_the_account(client, operation, expected, open_address, tmp_path):
    result = send(client, open_address, tmp_path, operation)
    assert {key: result.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("client", "error"),
    build_cases((SDK, "InvalidRequestError"), (NEKOAI, "APIError"), (PYTHON, "AuthError")),
)
def test_it_reports_why_a_request_is_rejected(client, error, open_address, tmp_path):
    result = send(client, open_address, tmp_path, prompt="a:0|b:0", quality=False)
    assert result["error"] == error
    assert "weight 0" in str(result["message"])


@pytest.mark.parametrize(
    ("client", "error"),
    build_cases((SDK, "AuthenticationError"), (NEKOAI, "AuthError"), (PYTHON, "AuthError")),
)
def test_a_server_with_a_token_requires_it(client, error, closed_address, tmp_path):
    assert send(client, closed_address, tmp_path, token="pst-another")["error"] == error
    assert send(client, closed_address, tmp_path, token="pst-the-server-s-own") == {"images": 1}


@pytest.mark.parametrize(("client", "error"), build_cases((NEKOAI, "AuthError"), (PYTHON, "APIError")))
def test_only_the_right_password_logs_in(client, error, closed_address, tmp_path):
    assert send(client, closed_address, tmp_path, "login", token="passw0rd")["error"] == error
    assert send(client, closed_address, tmp_path, "login", token="password")["tier"] == 3
