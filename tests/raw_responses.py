"""Reading what a raw exchange with the server returned, see live_server.py."""

import http.client
import json
from io import BytesIO
from typing import Any


def parse_response(raw):
    """The status, headers and unchunked body of a raw response."""

    class Pipe:
        def makefile(self, _mode):
            return BytesIO(raw)

    pipe: Any = Pipe()
    response = http.client.HTTPResponse(pipe)
    response.begin()
    return response.status, response.headers, response.read()


def parse_json(raw):
    """The status and the JSON of a raw response."""
    status, _, body = parse_response(raw)
    return status, json.loads(body)


def find_header(raw, name):
    """A header of a raw response, which may end after its headers; None if it has none of that name."""
    lines = raw.partition(b"\r\n\r\n")[0].decode().splitlines()
    return next((line.split(": ", 1)[1] for line in lines if line.lower().startswith(f"{name}: ")), None)
