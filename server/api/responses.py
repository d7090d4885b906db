"""The forms a finished picture is answered in, and which of them a client's `Accept` asks for.

NAI's image host sends a ZIP as `binary/octet-stream`; its older host called the same ZIP
`application/x-zip-compressed`, which clients of that time insist on and name. JSON and the bare picture are for
those who do not accept a ZIP at all: many clients send a browser's Accept, or put JSON first, and mean the ZIP.
"""

import re
from base64 import b64encode
from collections.abc import Sequence

from fastapi.responses import JSONResponse, Response

from server.api.archive import zip_pictures

OCTETS, OLD_ZIP, JSON = "binary/octet-stream", "application/x-zip-compressed", "application/json"
MOST_RANGES = 64


def negotiate(accept: str | None, image_format: str) -> str:
    """The media type to answer with."""
    accepted = _accepted(accept or "*/*")
    if OLD_ZIP in accepted:
        return OLD_ZIP
    if accepted & {OCTETS, "binary/*", "*/*"}:
        return OCTETS
    if JSON in accepted:
        return JSON
    if accepted & {f"image/{image_format}", "image/*"}:
        return f"image/{image_format}"
    return OCTETS


def pictures_response(
    kind: str, pictures: Sequence[bytes], seeds: Sequence[int], image_format: str
) -> Response:
    """The pictures as a media type that `chosen` returned."""
    if kind == JSON:
        images = [
            {"image": b64encode(picture).decode(), "index": index, "seed": seed}
            for index, (picture, seed) in enumerate(zip(pictures, seeds, strict=True))
        ]
        return JSONResponse({"images": images})
    if kind.startswith("image/"):
        return Response(pictures[0], media_type=kind)
    headers = {"Content-Disposition": 'attachment; filename="images.zip"'}
    return Response(zip_pictures(pictures, image_format), media_type=kind, headers=headers)


def _accepted(accept: str) -> set[str]:
    """The media ranges of an Accept header (RFC 9110 §12.5.1) but those with quality 0."""
    found: set[str] = set()
    for entry in accept.lower().split(",")[:MOST_RANGES]:
        name, *parameters = (part.strip() for part in entry.split(";"))
        if not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters):
            found.add(name)
    return found
