"""An independent reader of streamed responses, from the description of the format."""

import base64
import json
import struct

import msgpack


def read_stream(content, media_type):
    """Return the events of a complete stream, with their images as bytes; a frame that is cut off is an error."""
    return list(read_msgpack(content) if media_type == "application/msgpack" else read_sse(content))


def read_msgpack(content):
    while content:
        (length,) = struct.unpack(">I", content[:4])
        frame, content = content[4 : 4 + length], content[4 + length :]
        assert len(frame) == length > 0
        yield msgpack.unpackb(frame)


def read_sse(content):
    *frames, rest = content.decode("ascii").split("\n\n")
    assert rest == ""
    for frame in frames:
        if frame.startswith(":"):
            continue
        assert frame.startswith("data: ")
        assert "\n" not in frame
        # as a client does that splits at the marker
        event = json.loads(frame.split("data: ")[1], parse_constant=refuse_constant)
        yield {**event, "image": base64.b64decode(event["image"])}


def refuse_constant(name):
    raise ValueError(f"{name} is not JSON")
