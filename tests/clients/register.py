"""The clients of clients.toml, and what the suite tries with each."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from programs import Program

OPERATIONS = {
    "generate": "text to image",
    "samples": "two samples",
    "img2img": "image to image",
    "infill": "inpainting",
    "enhance": "Enhance",
    "stream": "streaming",
    "tags": "tags",
    "account": "account",
    "login": "password",
    "upscale": "upscale",
    "director": "director tools",
    "errors": "400, 401, 429",
}
"""What the suite tries, with the heading of its column in docs/clients.md."""


@dataclass(frozen=True, slots=True)
class Client:
    """A client of NAI's API.

    Attributes:
        script: the script next to this file that drives the client through all operations, if the suite does.
        variable: the environment variable that names the client's environment.
        address: where its user enters the server's address.
        errors: what the client's exception says for a status.
        pages: fields of the account's pages that it reads, by operation of its script.
        upscale: the factor of its upscaled images.
        lacks: reasons for the operations that it does not offer.
    """

    name: str
    version: str
    language: str
    address: str
    script: str = ""
    variable: str = ""
    errors: Mapping[str, str] = field(default_factory=dict)
    pages: Mapping[str, Any] = field(default_factory=dict)
    upscale: int = 0
    lacks: Mapping[str, str] = field(default_factory=dict)
    works: str = ""
    fails: str = ""
    known: str = ""

    @property
    def label(self) -> str:
        """The name with the version, as tests and results list it."""
        return f"{self.name} {self.version}".rstrip()

    @property
    def program(self) -> Program:
        """The script that drives the client."""
        return Program(self.label, self.script, self.variable)

    def has_operation(self, operation: str) -> bool:
        """Return whether the suite tries the operation with this client."""
        return bool(self.script) and operation not in self.lacks


def read_clients() -> list[Client]:
    """Read clients.toml."""
    rows = tomllib.loads((Path(__file__).parent / "clients.toml").read_text("utf-8"))["client"]
    return [Client(**row) for row in rows]
