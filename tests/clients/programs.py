"""Third-party programs, each run by its own Python interpreter, and the server process they connect to."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

FOLDER = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Program:
    """A third-party program.

    Attributes:
        script: a script next to this file that drives the program.
        variable: the environment variable that names a Python interpreter with the program, or for a script that
            Node runs the folder with its packages.
    """

    name: str
    script: str
    variable: str

    @property
    def skip_if_missing(self) -> pytest.MarkDecorator:
        """A mark that skips a test if the program is not installed."""
        return pytest.mark.skipif(
            not os.environ.get(self.variable), reason=f"{self.variable} is not set, so {self.name} is missing"
        )

    def run(self, *arguments: object) -> dict[str, object]:
        """Run the script and return the JSON object that it prints last."""
        interpreter = "node" if self.script.endswith(".js") else os.environ[self.variable]
        command = [interpreter, str(FOLDER / self.script), *map(str, arguments)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])


def build_cases(*rows):
    """Return test parameters from rows that begin with a Program; a row is skipped if the program is missing."""
    return [pytest.param(*row, marks=row[0].skip_if_missing, id=_build_id(row)) for row in rows]


def _build_id(row):
    return "-".join([row[0].name, *(entry for entry in row[1:] if isinstance(entry, str))])


@contextmanager
def run_server(checkpoint: Path, folder: Path, **settings: object) -> Iterator[str]:
    """Run a server process with these settings and a signing key in `folder`; yields its address."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NAIAD_")}
    settings = {"signing_key": folder / "signing.pem", **settings}
    environment |= {f"NAIAD_{name}".upper(): str(value) for name, value in settings.items()}
    command = [sys.executable, "-P", "-m", "server", "serve", str(checkpoint), "--port", "0"]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        yield _wait_for_address(process, log)
    finally:
        process.terminate()
        process.wait(60)


def _wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the address of a server process once it is ready."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        address = re.search(r"listens on (http\S+)", log.read_text())
        if address is not None and httpx.get(f"{address[1]}/ready").status_code == 200:
            return address[1]
        time.sleep(0.2)
    raise AssertionError(log.read_text())
