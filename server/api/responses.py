"""Responses with images, in the media type that a client's `Accept` header asks for, and their warnings.

NAI's image host sends a ZIP as `binary/octet-stream`. Its older host called the same ZIP
`application/x-zip-compressed`, and some clients of that time insist on it without naming it in `Accept`. JSON and bare
images are only for clients that do not accept a ZIP: many send a browser's Accept header, or list JSON first, and
expect the ZIP.
"""

import re
from base64 import b64encode
from collections.abc import Sequence

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers

from server.api.state import AppState
from server.api.threads import call_in_thread
from server.api.zip_file import zip_images
from server.config.addresses import parse_host
from server.config.settings import ZipType

OLD_HOST = "api.novelai.net"
OCTETS, OLD_ZIP, JSON = "binary/octet-stream", "application/x-zip-compressed", "application/json"
MEDIA_RANGE_LIMIT = 64


async def answer_images(
    request: Request, state: AppState, files: Sequence[bytes], seeds: Sequence[int], image_format: str
) -> Response:
    """Return encoded images in the form that `Accept` asks for, by default NAI's ZIP."""
    media_type = negotiate(request.headers, image_format, state.zip_type)
    return await call_in_thread(build_image_response, media_type, files, seeds, image_format)


def negotiate(headers: Headers, image_format: str, zip_type: ZipType = "auto") -> str:
    """Return the media type to answer with.

    `zip_type` is that of a ZIP for a client that names no type; "auto" is the old host's type for requests that were
    sent to the old host, else the image host's.
    """
    accepted = parse_accept(headers.get("accept") or "*/*")
    if OLD_ZIP in accepted:
        return OLD_ZIP
    if accepted & {OCTETS, "binary/*"}:
        return OCTETS
    if "*/*" in accepted:
        is_old = parse_host(headers.get("host", "")) == OLD_HOST
        return (OLD_ZIP if is_old else OCTETS) if zip_type == "auto" else zip_type
    if JSON in accepted:
        return JSON
    if accepted & {f"image/{image_format}", "image/*"}:
        return f"image/{image_format}"
    return OCTETS


def build_image_response(
    media_type: str, images: Sequence[bytes], seeds: Sequence[int], image_format: str
) -> Response:
    """Return the encoded images as a media type chosen by `negotiate`; as a bare image, only the first."""
    if media_type == JSON:
        entries = [
            {"image": b64encode(image).decode(), "index": index, "seed": seed}
            for index, (image, seed) in enumerate(zip(images, seeds, strict=True))
        ]
        return JSONResponse({"images": entries})
    if media_type.startswith("image/"):
        return Response(images[0], media_type=media_type)
    headers = {"Content-Disposition": 'attachment; filename="images.zip"'}
    return Response(zip_images(images, image_format), media_type=media_type, headers=headers)


def build_warning_headers(warnings: Sequence[str]) -> dict[str, str]:
    """Return the header with a request's warnings, if there are any."""
    return {"X-Naiad-Warning": ascii("; ".join(warnings))[1:-1][:1000]} if warnings else {}


def parse_accept(accept: str) -> set[str]:
    """Return the media ranges of an Accept header (RFC 9110 §12.5.1), without those of quality 0."""
    ranges: set[str] = set()
    for entry in accept.lower().split(",")[:MEDIA_RANGE_LIMIT]:
        name, *parameters = (part.strip() for part in entry.split(";"))
        if not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters):
            ranges.add(name)
    return ranges
