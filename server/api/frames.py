"""Frames of a streamed response: one event each, as MessagePack with a length or as a server-sent event.

Every event has the same six keys, though NAI's own final ones lack `step_ix` and `sigma`: clients differ in which they
read. `gen_id` is a number, because novelai-sdk reads no text there. An error has an empty text as its `image`: one
client prints errors as JSON, which cannot hold bytes.
"""

import json
import struct
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isinf
from typing import cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
from starlette.datastructures import Headers

from server.api.responses import parse_accept
from server.errors import Rejected, shorten

INFINITE_SIGMA = 20_000.0
"""What stands for infinite noise, which JSON cannot hold; NAI V3's paper has it as the practical approximation."""
Event = Mapping[str, str | int | float | bytes]


@dataclass(frozen=True, slots=True)
class Encoding:
    """One form of a stream.

    Attributes:
        keep_alive: a frame without an event, which clients skip; None if there is none that all of them skip.
    """

    media_type: str
    encode: Callable[[Event], bytes]
    keep_alive: bytes | None = None


def encode_msgpack(event: Event) -> bytes:
    """Return an event as a big-endian length of 32 bits and a MessagePack map."""
    body = cast("bytes", msgpack.packb(event))  # pyright: ignore[reportUnknownMemberType]
    return struct.pack(">I", len(body)) + body


def encode_sse(event: Event) -> bytes:
    """Return an event as one `data: ` line with JSON, its image in Base64.

    novelai-sdk splits the line at each `data: `, so a text must not contain it.
    """
    texts = {
        key: b64encode(value).decode() if isinstance(value, bytes) else value for key, value in event.items()
    }
    line = json.dumps(texts, separators=(",", ":")).replace("data: ", r"data:\u0020")
    return f"data: {line}\n\n".encode()


ENCODINGS = {
    "msgpack": Encoding("application/msgpack", encode_msgpack),
    "sse": Encoding("text/event-stream", encode_sse, b": waiting\n\n"),
}


def choose_encoding(stream: object, headers: Headers) -> Encoding:
    """Return the encoding that `parameters.stream` names, or without it `Accept`, by default MessagePack.

    Raises:
        Rejected: `stream` is something else.
    """
    if stream is None:
        accepted = parse_accept(headers.get("accept") or "*/*")
        wants_sse = "text/event-stream" in accepted
        is_msgpack = accepted & {"application/msgpack", "application/x-msgpack"}
        return ENCODINGS["sse" if wants_sse and not is_msgpack else "msgpack"]
    if not isinstance(stream, str) or stream not in ENCODINGS:
        raise Rejected("parameters.stream", f"{shorten(stream)} is not msgpack or sse")
    return ENCODINGS[stream]


def build_image_event(kind: str, generation: int, image: int, step: int, sigma: float, file: bytes) -> Event:
    """Return the event of a preview ("intermediate") or of a finished image ("final"); `step` counts from 0."""
    return {
        "event_type": kind,
        "samp_ix": image,
        "step_ix": step,
        "gen_id": generation,
        "sigma": INFINITE_SIGMA if isinf(sigma) else sigma,
        "image": file,
    }


def build_error_event(generation: int, status: int, message: str) -> Event:
    """Return the event of a failure, with the status that would have been answered before the stream had begun."""
    image: Event = build_image_event("error", generation, 0, 0, 0.0, b"")
    return {**image, "image": "", "code": status, "message": message}
