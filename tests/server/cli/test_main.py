import json
import os
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import pytest
from command import build_command
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from server_process import build_environment
from waiting import PROCESS_LIMIT

from server.cli import main


@pytest.fixture
def naiad(monkeypatch, capsys, tmp_path):
    """Run the command in this process, in a temporary folder and with a temporary signing key."""
    return build_command(monkeypatch, capsys, tmp_path)


@pytest.fixture
def naiad_process(tmp_path):
    """Do as `naiad` in a process of its own."""
    inherited = build_environment(signing_key=tmp_path / "signing.pem")

    def run(*arguments, environment=None, stdout=subprocess.PIPE):
        command = [sys.executable, "-P", "-m", "server", *map(str, arguments)]
        return subprocess.run(
            command,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PROCESS_LIMIT,
            env=inherited | (environment or {}),
            check=False,
            cwd=tmp_path,
        )

    return run


def test_generate_makes_the_images_of_a_request(naiad, naiad_process, demo_file, tmp_path):
    out = tmp_path / "out.png"
    options = ("--size", "128x192", "--steps", 4, "--seed", 11, "--samples", 2, "--negative", "lowres")
    done = naiad_process("generate", "1girl, smile", demo_file, "-o", out, *options)
    assert done.returncode == 0, done.stderr
    images = [Image.open(BytesIO(file.read_bytes())) for file in (out, tmp_path / "out_1.png")]
    assert [image.size for image in images] == [(128, 192)] * 2
    comments = [json.loads(image.info["Comment"]) for image in images]
    assert [comment["seed"] for comment in comments] == [11, 12]
    assert (comments[0]["uc"], comments[0]["steps"]) == ("lowres", 4)
    assert comments[0]["prompt"].startswith("1girl, smile, best quality")
    assert f"prompt: {comments[0]['prompt']}\nnegative: lowres\n" in done.stderr
    assert done.stdout == f"{out}\n{tmp_path / 'out_1.png'}\n"
    again = naiad("generate", "1girl", demo_file, "-o", out)
    assert again.status == 2
    assert f"--output '{out}' exists already; name another file, or add --force" in again.error


def test_an_image_can_be_verified_inspected_and_enhanced(naiad, demo_file, tmp_path):
    out = tmp_path / "out.webp"
    done = naiad("generate", "1girl", demo_file, "-o", out, "--size", "128x192", "--steps", 1, "--no-quality")
    assert done.status == 0, done.error
    verified = naiad("verify", out)
    assert verified.status == 0
    assert "by this server: NOT NovelAI" in verified.output
    report = json.loads(naiad("inspect", out, "--json").output)
    assert (report["format"], report["width"], report["trusted"]) == ("WEBP", 128, True)
    assert report["layers"]["text"]["Comment"]["prompt"] == "1girl"
    key = report["signatures"][0]["key"]
    larger = tmp_path / "larger.png"
    done = naiad("enhance", out, demo_file, "-o", larger, "--magnitude", 2, "--seed", 5)
    assert done.status == 0, done.error
    enhanced = Image.open(BytesIO(larger.read_bytes()))
    comment = json.loads(enhanced.info["Comment"])
    assert (enhanced.size, comment["prompt"], comment["seed"]) == ((192, 288), "1girl", 5)
    assert (comment["request_type"], comment["strength"], comment["steps"]) == ("Img2ImgRequest", 0.4, 1)
    (tmp_path / "signing.pem").unlink()
    assert naiad("verify", out).status == 1
    assert "by the given key: NOT NovelAI" in naiad("verify", out, "--key", key).output
    assert not (tmp_path / "signing.pem").exists()


def test_models_lists_each_file_or_why_it_cannot_be_served(naiad, demo_file, tmp_path):
    catalog = tmp_path / "weights.toml"
    catalog.write_text(
        f'default = "nai-diffusion-3"\n[models.nai-diffusion-3]\npath = "{demo_file.as_posix()}"\n'
        '[models.missing]\npath = "missing.safetensors"\n'
    )
    cards = json.loads(naiad("models", "--weights", catalog, "--json").output)
    assert (cards[0]["id"], cards[0]["profile"], cards[0]["prediction"]) == ("nai-diffusion-3", "demo", "v")
    assert cards[1]["id"] == "missing"
    assert "weights.toml:5" in cards[1]["problem"]
    listed = naiad("models", "--weights", catalog).output
    assert "nai-diffusion-3: naiad-demo.safetensors" in listed
    assert "no such file" in listed
    checked = naiad("check", "--weights", catalog)
    assert checked.status == 2
    assert "missing.safetensors" in checked.error


def test_check_accepts_a_valid_setup_and_creates_no_key(naiad, demo_file, tmp_path):
    done = naiad("check", demo_file)
    assert done.status == 0, done.error
    assert done.output.splitlines()[-1] == "OK"
    assert not (tmp_path / "signing.pem").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("generate", "a"), 2, "no model"),
        (("generate", "a", "nothing.safetensors"), 2, "nothing.safetensors: no such file"),
        (
            ("generate", "a", "--demo", "--model", "b"),
            2,
            "--model 'b' is not in the catalog; it has nai-diffusion-3",
        ),
        (("generate", "a", "--demo", "--size", "wide"), 2, "not like 832x1216"),
        (
            ("generate", "a", "--demo", "--control", f"hed={__file__}:0.5"),
            2,
            "--control: remove the control map",
        ),
        (("generate", "a", "--demo", "-o", "a.jpg"), 2, ".png or .webp"),
        (
            ("generate", "a", "--demo", "--sampler", "k_eular"),
            2,
            "--sampler: 'k_eular' is not a sampler (did you mean 'k_euler'",
        ),
        (("generate", "a", "--demo", "--steps", 99), 2, "--steps: 99 is not a whole number from 1 to 50"),
        (("bench", "--demo", "--sizes", "64x64,wide"), 2, "--sizes 'wide' is not like 832x1216"),
        (
            ("bench", "--demo", "--sizes", "64x64,65x64"),
            2,
            "--sizes 65x64: 65 is not a multiple of 32 from 64 to",
        ),
        (("bench", "--demo", "--steps", 99), 2, "--steps 99"),
        (("bench", "--demo", "--concurrency", "1,0"), 2, "'0' is not a whole number from 1 to 64"),
        (("bench", "--demo", "--json", ""), 2, "--json names no file"),
        (("bench", "--demo", "--json", "/"), 2, "--json '/' is a folder"),
        (("generate", "a", "--demo", "-o", ""), 2, "--output names no file; write one that ends in .png or"),
        (("bench", "--demo", "--model", "b"), 2, "--model 'b' is not in the catalog"),
        (("bench", "--demo", "--device", "cuda:63"), 2, "device = 'cuda:63' is not available"),
        (("generate", "a", "--demo", "--device", "cuda:63"), 2, "naiad: device = 'cuda:63' is not available"),
        (("serve", "--demo", "--weights", "weights.toml"), 2, "cannot be combined"),
        (("serve", "--demo", "--config", "none.toml"), 2, "none.toml: no such file"),
        (("serve", "--demo", "--host", "203.0.113.7"), 2, "not an address of this machine"),
        (("inspect", "none.png"), 2, "none.png: No such file"),
        (("variations", "none.png", "--demo"), 2, "none.png: No such file"),
        (("verify", __file__), 2, "not a PNG, WebP or JPEG"),
    ],
)
def test_an_expected_error_is_one_line(naiad, arguments, status, message):
    done = naiad(*arguments)
    assert done.status == status, done.error
    line = done.error.strip().splitlines()[-1]
    assert line.startswith("naiad: ")
    assert message in line
    assert "Traceback" not in done.error


def test_a_pickle_is_refused_by_name(naiad, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"x")
    for command in (("serve",), ("generate", "a"), ("bench",)):
        done = naiad(*command, "model.ckpt")
        assert done.status == 2
        assert "pickle" in done.error


def test_a_used_port_is_reported_before_the_model_is_loaded(naiad):
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = naiad("serve", "--demo", "--port", other.getsockname()[1])
    assert done.status == 2
    assert "another program listens there" in done.error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "mine.toml:1: 'prot' is not a key here; did you mean 'port'?"),
        ("port = true", "mine.toml:1: port = true"),
        ('\ntokens = "tokens.toml"', "tokens.toml: no such file"),
    ],
)
def test_an_invalid_setup_ends_with_status_2(naiad, tmp_path, text, message):
    (tmp_path / "mine.toml").write_text(text)
    done = naiad("serve", "--demo", "--config", "mine.toml")
    assert done.status == 2
    assert message in done.error


def test_an_unknown_variable_is_refused_with_a_suggestion(naiad, monkeypatch):
    monkeypatch.setenv("NAIAD_PROT", "1")
    done = naiad("serve", "--demo")
    assert done.status == 2
    assert "NAIAD_PORT" in done.error


COMMANDS = (
    *(
        "",
        "serve",
        "generate",
        "bench",
        "models",
        "check",
        "inspect",
        "verify",
        "enhance",
        "variations",
        "merge-inpaint",
    ),
    *("token", "token add", "token list", "token revoke"),
)


def test_help_works_without_torch():
    code = (
        "import sys; from server.cli.main import app\n"
        "for command in sys.argv[1:]:\n"
        "    try: app([*command.split(), '--help'])\n"
        "    except SystemExit: pass\n"
        "    assert not {'torch', 'diffusers'} & set(sys.modules), command\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *COMMANDS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage") == len(COMMANDS)


def test_the_version_is_that_of_the_package(naiad):
    done = naiad("--version")
    assert (done.status, done.output) == (0, f"naiad {version('naiad')}\n")


def test_a_report_is_complete_whatever_the_terminals_encoding(naiad_process, tmp_path):
    info = PngInfo()
    info.add_itxt("Description", "猫耳 ✿ heart")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png", pnginfo=info)
    for encoding in ("cp1252", "cp437"):
        done = naiad_process("inspect", "cat.png", environment={"PYTHONIOENCODING": encoding})
        assert done.returncode == 0, done.stderr
        assert "Description: \\u732b\\u8033 \\u273f heart\n" in done.stdout
        assert "nothing to verify" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_output_that_cannot_be_written_is_one_line(naiad_process, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with Path("/dev/full").open("w") as full:
        done = naiad_process("inspect", "a.png", stdout=full)
    assert (done.returncode, done.stderr) == (
        1,
        "naiad: the output cannot be written: No space left on device\n",
    )


def test_a_setting_that_keeps_the_model_from_being_loaded_is_named_once(naiad_process, tmp_path):
    (tmp_path / "graphs.toml").write_text('device = "cpu"\n[speed]\ngraphs = "on"\n')
    done = naiad_process("generate", "a", "--demo", "--config", "graphs.toml")
    assert done.returncode == 2
    assert done.stderr.startswith('naiad: speed.graphs = "on": graphs are for GPUs')
    assert done.stderr.count("\n") == 1


def test_an_interrupt_ends_the_process_at_once(monkeypatch):
    def interrupt():
        raise SystemExit(130)

    def end(status):
        raise InterruptedError(status)

    monkeypatch.setattr(main, "app", interrupt)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(InterruptedError, match="130"):
        main.main()


@pytest.mark.slow
def test_a_picture_is_interrupted_quietly(tmp_path):
    inherited = build_environment(signing_key=tmp_path / "signing.pem")
    options = ["--demo", "--size", "512x512", "--steps", "50"]
    command = [sys.executable, "-P", "-m", "server", "generate", "1girl", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=inherited) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("negative: "))  # loaded, and about to draw
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(PROCESS_LIMIT) == 130
    assert "Traceback" not in rest
    assert "terminate" not in rest
    assert list(tmp_path.iterdir()) == [tmp_path / "signing.pem"]


@pytest.mark.parametrize(
    ("setting", "status", "message"),
    [
        (("--device", "cuda:63"), 3, "device = 'cuda:63' is not available"),  # it may be later
        (("--config", "graphs.toml"), 2, 'speed.graphs = "on": graphs are for GPUs'),
    ],
)
def test_a_setting_that_keeps_the_model_from_being_loaded_ends_the_server(
    naiad_process, tmp_path, setting, status, message
):
    (tmp_path / "graphs.toml").write_text('device = "cpu"\n[speed]\ngraphs = "on"\n')
    done = naiad_process("serve", "--demo", "--port", "0", *setting)
    assert done.returncode == status
    assert f"the model could not be loaded: {message}" in done.stderr
    assert f"the server stops with status {status}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "count"),
    [
        (("generate", "a", "--size", "64x64", "--steps", 1), 0),
        (("bench", "--sizes", "64x64", "--steps", 1, "--concurrency", 1), 1),
    ],
)
def test_a_model_is_warmed_up_only_for_many_pictures(naiad, monkeypatch, command, count):
    warmed = []
    monkeypatch.setattr("server.engine.loading.LoadedRunner.warm_up", lambda runner: warmed.append(runner))
    done = naiad(*command, "--demo", "--device", "cpu")
    assert done.status == 0, done.error
    assert len(warmed) == count


@pytest.mark.parametrize("name", ["graphs", "kernels"])
def test_a_speed_setting_that_the_device_lacks_is_a_wrong_setup(naiad, monkeypatch, name):
    monkeypatch.setenv(f"NAIAD_SPEED_{name.upper()}", "on")
    done = naiad("generate", "a", "--demo", "--device", "cpu")
    assert done.status == 2
    assert done.error.splitlines()[-1].startswith(f'naiad: speed.{name} = "on": ')
