"""A client with NAI's address built in, unmodified, against `naiad serve --tls`.

`naiad tls install` prepares a machine for it as a user would. The machine is a mount and network namespace, so its
hosts file, trust store and port 443 are private: nothing of the real one is changed.
"""

import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

CLIENT = "NAIAD_CLIENT_NOVELAI_API"
TOKEN = "pst-somebodys-token-for-novelai"
PROGRAM = f"""
import asyncio, json, pathlib, sys
from aiohttp import ClientSession
from novelai_api import NovelAIAPI, NovelAIError
from novelai_api.ImagePreset import ImageModel, ImagePreset

async def main(folder):
    async with ClientSession() as session:
        api = NovelAIAPI(session)
        await api.high_level.login_with_token({TOKEN!r})
        tier = (await api.low_level.get_subscription())["tier"]
        preset = ImagePreset.from_default_config(ImageModel.Anime_v3)
        preset.update(resolution=(256, 384), steps=4, seed=42)
        images = api.high_level.generate_image("1girl, smile", ImageModel.Anime_v3, preset)
        names = []
        async for name, content in images:
            names.append(name)
            (folder / name).write_bytes(content)
        print(json.dumps({{"tier": tier, "names": names}}))

asyncio.run(main(pathlib.Path(sys.argv[1])))
"""
MOUNTED = {"hosts": "/etc/hosts", "store": "/usr/local/share/ca-certificates", "certs": "/etc/ssl/certs"}
NAIAD = [sys.executable, "-P", "-m", "server"]


def copy_machine(folder):
    """Copy what the namespace mounts over its own files."""
    for name, path in MOUNTED.items():
        if Path(path).is_dir():
            shutil.copytree(path, folder / name, symlinks=True)
        else:
            shutil.copyfile(path, folder / name)


def can_unshare():
    """Return whether this process may make namespaces and this machine has Debian's trust store."""
    made = shutil.which("unshare") and subprocess.run(
        ["unshare", "--mount", "--net", "true"], capture_output=True
    )
    return bool(made) and made.returncode == 0 and all(Path(path).exists() for path in MOUNTED.values())


@pytest.mark.clients
@pytest.mark.skipif(not os.environ.get(CLIENT), reason=f"{CLIENT} is not set, so novelai-api is missing")
@pytest.mark.skipif(not can_unshare(), reason="the address of NAI can only be redirected by root, on Debian")
def test_a_client_with_the_address_built_in_works_unmodified(demo_file, tmp_path):
    from server.picture.inspection import inspect, parse_json

    copy_machine(tmp_path)
    command = ["unshare", "--mount", "--net", sys.executable, __file__, str(tmp_path), str(demo_file)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NAIAD_")}
    keys = {"NAIAD_SIGNING_KEY": f"{tmp_path}/signing.pem", "NAIAD_TLS_FOLDER": f"{tmp_path}/tls"}
    done = subprocess.run(
        [*command, os.environ[CLIENT]], capture_output=True, text=True, timeout=240, env=kept | keys
    )
    log = (tmp_path / "log").read_text()
    assert done.returncode == 0, done.stderr + log
    assert json.loads(done.stdout) == {"tier": 3, "names": ["image_0.png"]}
    inspection = inspect((tmp_path / "image_0.png").read_bytes())
    comment = parse_json(inspection.text["Comment"])
    assert inspection.size == (256, 384)
    assert len(np.unique(inspection.rgb)) > 50
    assert comment["seed"] == 42
    assert "not NovelAI" in str(comment["generator"])
    assert "POST /ai/generate-image 200" in log
    assert TOKEN not in log
    assert "PRIVATE KEY" not in log + done.stderr
    assert (tmp_path / "hosts").read_bytes() == Path("/etc/hosts").read_bytes()
    assert not (tmp_path / "tls").exists()
    assert list((tmp_path / "store").glob("naiad*")) == list((tmp_path / "certs").glob("naiad*")) == []


def run_in_namespace(folder, checkpoint, python):
    """Install, serve, run the client and uninstall; prints the client's result."""
    for name, path in MOUNTED.items():
        subprocess.run(["mount", "--bind", f"{folder}/{name}", path], check=True)
    start_loopback()
    subprocess.run([*NAIAD, "tls", "install", "--trust", "--hosts"], check=True, stdout=sys.stderr)
    with Path(folder, "log").open("wb") as log:
        server = subprocess.Popen([*NAIAD, "serve", checkpoint, "--tls"], stdout=log, stderr=log)
        try:
            wait_until_ready(server)
            print(subprocess.check_output([python, "-c", PROGRAM, folder], text=True))
        finally:
            server.terminate()
            server.wait(60)
    subprocess.run([*NAIAD, "tls", "uninstall"], check=True, stdout=sys.stderr)


def start_loopback():
    """Bring the loopback interface of a new network namespace up."""
    import fcntl

    with socket.socket() as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP


def wait_until_ready(server):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get("https://image.novelai.net/ready", verify=ssl.create_default_context()).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError("the server is not ready")


if __name__ == "__main__":
    run_in_namespace(*sys.argv[1:])
