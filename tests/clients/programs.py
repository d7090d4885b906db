"""Third-party programs, each run by its own Python interpreter."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

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
