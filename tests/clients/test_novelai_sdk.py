"""novelai-sdk, unmodified but for its address, against a real server process."""

import json
import os
import subprocess
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

PYTHON = os.environ.get("NAIAD_CLIENT_NOVELAI_SDK")
SCRIPT = Path(__file__).with_name("novelai_sdk_client.py")

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(PYTHON is None, reason="NAIAD_CLIENT_NOVELAI_SDK names no Python with novelai-sdk"),
]


def ask(address, folder, what):
    """Let the client ask for something; what it printed."""
    command = [str(PYTHON), str(SCRIPT), address, str(folder), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def comment(folder, number):
    return json.loads(json.loads((folder / f"{number}.json").read_text())["Comment"])


def picture(folder, number):
    return Image.open(BytesIO((folder / f"{number}.png").read_bytes()))


def test_it_gets_a_v3_picture(server, tmp_path):
    ask(server, tmp_path, "picture")
    drawn = picture(tmp_path, 0)
    assert drawn.size == (512, 768)
    assert len(drawn.convert("L").getcolors() or ()) > 50  # a picture, not one colour
    said = comment(tmp_path, 0)
    assert (said["seed"], said["steps"], said["sampler"]) == (42, 6, "k_euler")
    assert "not NovelAI" in said["generator"]


def test_two_samples_are_two_pictures_of_neighbouring_seeds(server, tmp_path):
    ask(server, tmp_path, "two")
    assert [comment(tmp_path, number)["seed"] for number in (0, 1)] == [42, 43]
    assert picture(tmp_path, 0).tobytes() != picture(tmp_path, 1).tobytes()


def test_it_takes_a_refusal_for_a_bad_request(server, tmp_path):
    printed = ask(server, tmp_path, "wrong")
    assert printed.startswith("InvalidRequestError")
    assert "weight 0" in printed
