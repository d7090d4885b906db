import json
import subprocess
import sys
from io import BytesIO

import pytest
from PIL import Image


def naiad(*arguments, environment=None):
    import os

    clean = {key: value for key, value in os.environ.items() if not key.startswith("NAIAD_")}
    command = [sys.executable, "-P", "-m", "server", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=clean | (environment or {}), check=False
    )


def test_generate_draws_the_pictures_a_request_would_get(demo_file, demo, tmp_path):
    out = tmp_path / "out.png"
    options = ("--size", "128x192", "--steps", 4, "--seed", 11, "--samples", 2, "--negative", "lowres")
    done = naiad("generate", "1girl, smile", demo_file, "-o", out, *options)
    assert done.returncode == 0, done.stderr
    pictures = [Image.open(BytesIO(file.read_bytes())) for file in (out, tmp_path / "out_1.png")]
    assert [picture.size for picture in pictures] == [(128, 192)] * 2
    assert [json.loads(picture.info["Comment"])["seed"] for picture in pictures] == [11, 12]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("generate", "a"), "no model"),
        (("generate", "a", "nothing.safetensors"), "nothing.safetensors: no such file"),
        (("generate", "a", "--demo", "--size", "wide"), "not like 832x1216"),
        (("generate", "a", "--demo", "--sampler", "k_eular"), "did you mean 'k_euler'"),
        (("generate", "a", "--demo", "--steps", 99), "parameters.steps"),
        (("serve", "model.ckpt"), "pickle"),
    ],
)
def test_what_goes_wrong_is_one_line(arguments, said):
    done = naiad(*arguments)
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("naiad: ")
    assert said in line
    assert "Traceback" not in done.stderr


def test_an_unknown_setting_is_refused_with_the_nearest_known():
    done = naiad("serve", "--demo", environment={"NAIAD_PROT": "1"})
    assert done.returncode == 1
    assert "NAIAD_PORT" in done.stderr
