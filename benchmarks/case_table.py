"""What the modules of cases share: a case, how it is judged, and the pictures it looks at."""

import io
import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from benchmarks.checkout import Checkout

PngImagePlugin.MAX_TEXT_CHUNK = 1 << 24  # one of the cases keeps a long text, and its upscale may too
GENERATE, UPSCALE = "/ai/generate-image", "/ai/upscale"


class Wrong(Exception):
    """A case's answer is not the right one; the message is what it was."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a case is judged with: the checkout, the inputs, and servers that run until all cases are done."""

    checkout: Checkout
    inputs: Path
    stack: ExitStack
    servers: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, "np.ndarray[Any, Any]"] = field(default_factory=dict)

    def server(self, **variables: str) -> str:
        """The address of the demo's server with these variables, started when it is first asked for."""
        key = str(variables)
        if key not in self.servers:
            context = self.checkout.serve("--demo", variables=variables)
            self.servers[key] = self.stack.enter_context(context)
        return self.servers[key]

    def post(self, path: str, body: object, server: str | None = None, **headers: str) -> httpx.Response:
        """Send a request, by default to the demo's server, and ask for a bare image."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", "Accept": "image/png"} | headers
        address = server or self.server()
        return httpx.post(address + path, content=content, headers=sent, timeout=120, trust_env=False)


@dataclass(frozen=True, slots=True)
class Case:
    """A row: its name, the right answer in a few words, and a function that returns the answer or raises Wrong."""

    name: str
    right: str
    judge: Callable[[Bench], str]


class Cases:
    """The rows of one README, in its order; `add` registers a judging function."""

    def __init__(self) -> None:
        self._cases: list[Case] = []

    def __iter__(self) -> Iterator[Case]:
        return iter(self._cases)

    def add(self, name: str, right: str) -> Callable[[Callable[[Bench], str]], Callable[[Bench], str]]:
        """Return a decorator that adds a case."""

        def register(judge: Callable[[Bench], str]) -> Callable[[Bench], str]:
            self._cases.append(Case(name, right, judge))
            return judge

        return register


def require(condition: object, answer: object) -> None:
    """Raise Wrong with the answer unless the condition holds."""
    if not condition:
        raise Wrong(str(answer))


def input_path(bench: Bench, name: str) -> Path:
    """Path of an input of the API's cases."""
    return bench.inputs / "api" / name


def input_json(bench: Bench, name: str) -> dict[str, Any]:
    """Return a request body of the API's cases."""
    return json.loads(input_path(bench, name).read_text())


def decode_pixels(data: bytes) -> "np.ndarray[Any, Any]":
    """Return the RGB values of an image file, turned upright."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB")).astype(int)


def encode_png(pixels: "np.ndarray[Any, Any]") -> str:
    """Return a PNG in Base64."""
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return b64encode(file.getvalue()).decode()


def read_pixels(response: httpx.Response) -> "np.ndarray[Any, Any]":
    """Return the pixels of a response, or raise Wrong with its error."""
    require(response.status_code == 200, describe(response))
    return decode_pixels(response.content)


def read_fields(data: bytes) -> dict[str, str]:
    """Return the text fields of a PNG."""
    with Image.open(io.BytesIO(data)) as image:
        return {str(key): value for key, value in image.info.items() if isinstance(value, str)}


def describe(response: httpx.Response) -> str:
    """Return a response's status and its message if it is an error."""
    try:
        return f"{response.status_code} {response.json()['message']}"
    except (ValueError, KeyError, TypeError):
        return str(response.status_code)


def mean_difference(one: "np.ndarray[Any, Any]", other: "np.ndarray[Any, Any]") -> float:
    """Return the mean absolute difference of two images' values; infinite if their sizes differ."""
    return float(np.abs(one - other).mean()) if one.shape == other.shape else float("inf")
