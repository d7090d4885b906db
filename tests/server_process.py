"""Server processes with a checkpoint, each on a free port."""

import os
import re
import subprocess
import sys
from contextlib import contextmanager

import httpx
from waiting import PROCESS_LIMIT, wait_until


def build_environment(**settings):
    """Return the variables of this process, with these settings of the server and no others."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NAIAD_")}
    return kept | {f"NAIAD_{name}".upper(): str(value) for name, value in settings.items()}


@contextmanager
def start_process(checkpoint, folder, program=("-m", "server"), **settings):
    """Run a server process with these settings, its signing key and its log in `folder`; yields it and its address.

    `program` are the interpreter's arguments.
    """
    environment = build_environment(**{"signing_key": folder / "signing.pem", **settings})
    command = [sys.executable, "-P", *program, "serve", str(checkpoint), "--port", "0"]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)

    def find_address():
        assert process.poll() is None, log.read_text()
        return re.search(r"naiad listens on (http\S+)\n", log.read_text())

    try:
        yield process, wait_until(find_address, PROCESS_LIMIT)[1]
    finally:
        process.kill()
        process.wait(PROCESS_LIMIT)


@contextmanager
def start_server(checkpoint, folder, **settings):
    """Run a server process likewise; yields its address."""
    with start_process(checkpoint, folder, **settings) as (_, address):
        yield address


@contextmanager
def run_server(checkpoint, folder, **settings):
    """Do as `start_server`, and wait until the model is loaded."""
    with start_server(checkpoint, folder, **settings) as address:
        url = f"{address}/ready"
        wait_until(lambda: httpx.get(url, timeout=PROCESS_LIMIT).is_success, PROCESS_LIMIT)
        yield address
