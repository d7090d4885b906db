"""The `naiad` command, run in this process."""

import os
import sys
from dataclasses import dataclass

import pytest

from server.cli.main import main


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    status: int
    output: str
    error: str


def build_command(monkeypatch, capsys, folder):
    """Return a function that runs the command in a folder, with a signing key there and without other settings."""
    for name in [name for name in os.environ if name.startswith("NAIAD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NAIAD_SIGNING_KEY", str(folder / "signing.pem"))
    monkeypatch.chdir(folder)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["naiad", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        streams = capsys.readouterr()
        return Done(int(ended.value.code or 0), streams.out, streams.err)

    return run
