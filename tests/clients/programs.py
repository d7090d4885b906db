"""Programs of others, each run by a Python of its own, and the server process they are pointed at."""

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

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Program:
    """A script of ours that drives a program, and the variable that names the Python which has it."""

    name: str
    script: str
    variable: str

    @property
    def present(self) -> pytest.MarkDecorator:
        """Skips a test where the program is not installed."""
        return pytest.mark.skipif(
            not os.environ.get(self.variable), reason=f"{self.variable} names no Python with {self.name}"
        )

    def run(self, *arguments: object) -> dict[str, object]:
        """What the script made of its arguments."""
        command = [os.environ[self.variable], str(HERE / self.script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def cases(*rows):
    """A test's table: every row begins with its program, and is skipped without it."""
    return [
        pytest.param(*row, marks=row[0].present, id="-".join([row[0].name, *filter(_is_name, row[1:])]))
        for row in rows
    ]


def _is_name(entry):
    return isinstance(entry, str)


@contextmanager
def serving(checkpoint: Path, folder: Path, **settings: object) -> Iterator[str]:
    """The address of a server process, while it runs with these settings and a key of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NAIAD_")}
    ours = {"signing_key": folder / "signing.pem", **settings}
    environment |= {f"NAIAD_{name}".upper(): str(value) for name, value in ours.items()}
    command = [sys.executable, "-P", "-m", "server", "serve", str(checkpoint), "--port", "0"]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        yield _address(process, log)
    finally:
        process.terminate()
        process.wait(60)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the process listens, once it can draw."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        told = re.search(r"listens on (http\S+)", log.read_text())
        if told is not None and httpx.get(f"{told[1]}/ready").status_code == 200:
            return told[1]
        time.sleep(0.2)
    raise AssertionError(log.read_text())
