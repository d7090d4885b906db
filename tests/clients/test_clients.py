"""Real clients, unmodified but for their address, against a real server process that has the demo model."""

import json
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from programs import Program, cases

from server.picture.inspection import check_signatures, inspect, parse_json

SDK = Program("novelai-sdk", "novelai_sdk_client.py", "NAIAD_CLIENT_NOVELAI_SDK")
NEKOAI = Program("nekoai-api", "nekoai_client.py", "NAIAD_CLIENT_NEKOAI")
PYTHON = Program("novelai-python", "novelai_python_client.py", "NAIAD_CLIENT_NOVELAI_PYTHON")

pytestmark = pytest.mark.clients

PICTURE = {
    "prompt": "1girl, smile",
    "quality": True,
    "width": 256,
    "height": 384,
    "steps": 4,
    "seed": 42,
    "sampler": "k_euler",
    "n_samples": 1,
}


def ask(client, address, folder, task="picture", token="pst-anything-at-all", **changes):
    """What the client made of the answer to one request."""
    return client.run(address, token, task, folder, json.dumps(PICTURE | changes))


def picture(folder, number=0):
    """A picture that the client saved, and its Comment."""
    found = inspect((folder / f"{number}.png").read_bytes())
    return found, parse_json(found.text["Comment"])


@pytest.mark.parametrize("client", cases((SDK,), (NEKOAI,), (PYTHON,)))
def test_it_gets_the_picture_it_asked_for(client, open_address, own_key, tmp_path):
    assert ask(client, open_address, tmp_path) == {"pictures": 1}
    drawn, said = picture(tmp_path)
    assert drawn.size == (256, 384)
    assert len(np.unique(drawn.rgb)) > 50  # a picture, not one colour
    assert (said["seed"], said["steps"], said["sampler"]) == (42, 4, "k_euler")
    assert str(said["prompt"]).count("1girl, smile") == 1
    assert str(said["prompt"]).count("best quality") == 1  # added by the client or the server, never by both
    assert "not NovelAI" in str(said["generator"])
    assert [one.signer for one in check_signatures(drawn, own_key, None)] == ["ours", "ours"]


@pytest.mark.parametrize("client", cases((SDK,), (NEKOAI,), (PYTHON,)))
def test_two_samples_are_two_pictures_of_neighbouring_seeds(client, open_address, tmp_path):
    assert ask(client, open_address, tmp_path, n_samples=2) == {"pictures": 2}
    (first, of_first), (second, of_second) = picture(tmp_path, 0), picture(tmp_path, 1)
    assert (of_first["seed"], of_second["seed"]) == (42, 43)
    assert not np.array_equal(first.rgb, second.rgb)


SOURCE = Image.effect_mandelbrot((256, 384), (-2, -1.5, 1, 1.5), 40).convert("RGB")
PLACES = np.zeros((48, 32), np.uint8)
PLACES[8:24, 8:24] = 255
INSIDE = PLACES.repeat(8, 0).repeat(8, 1) > 0


def files(folder, **pictures):
    """Pictures as files, by name."""
    for name, image in pictures.items():
        image.save(folder / f"{name}.png")
    return {name: str(folder / f"{name}.png") for name in pictures}


def change(drawn):
    """How far each pixel is from the source's."""
    return np.abs(drawn.rgb.astype(int) - np.asarray(SOURCE)).max(axis=2)


@pytest.mark.parametrize("client", cases((SDK,), (NEKOAI,), (PYTHON,)))
def test_it_draws_on_from_a_picture(client, open_address, own_key, tmp_path):
    start = {"kind": "img2img", **files(tmp_path, image=SOURCE), "strength": 0.5, "noise": 0.1}
    assert ask(client, open_address, tmp_path, start=start) == {"pictures": 1}
    drawn, said = picture(tmp_path)
    assert drawn.size == (256, 384)
    assert (said["request_type"], said["strength"], said["noise"]) == ("Img2ImgRequest", 0.5, 0.1)
    assert change(drawn).mean() < change_of_noise()
    assert [one.signer for one in check_signatures(drawn, own_key, None)] == ["ours", "ours"]


def change_of_noise():
    """How far a picture of noise is from the source."""
    noise = np.random.default_rng(0).integers(0, 256, (384, 256, 3))
    return np.abs(noise - np.asarray(SOURCE)).max(axis=2).mean()


@pytest.mark.parametrize("form", ["full", "eighth"])
@pytest.mark.parametrize("client", cases((SDK,), (NEKOAI,), (PYTHON,)))
def test_it_paints_into_a_picture(client, form, open_address, tmp_path):
    mask = Image.fromarray(INSIDE if form == "full" else PLACES)
    start: Any = {"kind": "infill", **files(tmp_path, image=SOURCE, mask=mask.convert("L"))}
    if client is not SDK:  # these two send a strength, which infill does not look at
        start["strength"] = 0.7
    assert ask(client, open_address, tmp_path, start=start) == {"pictures": 1}
    found = picture(tmp_path)
    drawn, said = found[0], cast("Any", found[1])
    assert said["request_type"] == "NativeInfillingRequest"
    assert said["naiad"]["job"]["source"]["strength"] == 1.0
    # novelai-sdk switches the overlay off, so that all of its picture has been through the VAE
    assert said["add_original_image"] is (client is not SDK)
    assert change(drawn)[~INSIDE].mean() < (change(drawn)[INSIDE].mean() / 2 if client is SDK else 1e-9)


@pytest.mark.parametrize(
    ("client", "page", "known"),
    cases(
        (SDK, "subscription", {"tier": 3, "active": True}),
        (NEKOAI, "subscription", {"tier": 3, "active": True}),
        (NEKOAI, "data", {"settings": "{}"}),
        (PYTHON, "subscription", {"tier": 3, "active": True}),
        (PYTHON, "information", {"emailVerified": True}),
    ),
)
def test_it_reads_the_account(client, page, known, open_address, tmp_path):
    said = ask(client, open_address, tmp_path, page)
    assert {key: said.get(key) for key in known} == known


@pytest.mark.parametrize(
    ("client", "error"), cases((SDK, "InvalidRequestError"), (NEKOAI, "APIError"), (PYTHON, "AuthError"))
)
def test_it_passes_on_why_a_request_is_refused(client, error, open_address, tmp_path):
    said = ask(client, open_address, tmp_path, prompt="a:0|b:0", quality=False)
    assert said["error"] == error
    assert "weight 0" in str(said["says"])


@pytest.mark.parametrize(
    ("client", "error"), cases((SDK, "AuthenticationError"), (NEKOAI, "AuthError"), (PYTHON, "AuthError"))
)
def test_only_the_right_token_opens_a_closed_server(client, error, closed_address, tmp_path):
    assert ask(client, closed_address, tmp_path, token="pst-another")["error"] == error
    assert ask(client, closed_address, tmp_path, token="pst-the-server-s-own") == {"pictures": 1}


@pytest.mark.parametrize(("client", "error"), cases((NEKOAI, "AuthError"), (PYTHON, "APIError")))
def test_only_the_right_password_logs_in(client, error, closed_address, tmp_path):
    assert ask(client, closed_address, tmp_path, "login", token="passw0rd")["error"] == error
    assert ask(client, closed_address, tmp_path, "login", token="password")["tier"] == 3
