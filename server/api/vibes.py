"""`POST /ai/encode-vibe`: encodes a reference image to bytes that clients of V4 send instead of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response
from pydantic import AliasChoices, Field

from pipelines.job import VibeJob
from server.api.jobs import decode_in_slot, receive_body, submit_job, wait_for_result
from server.api.memory import measure_work
from server.api.responses import build_warning_headers
from server.api.state import StateDependency, get_reservation
from server.engine.model import ServedModel
from server.errors import Rejected
from server.request.encoded_vibe import pack_vibe
from server.request.images import decode_file
from server.request.resolve import RequestPolicy, choose_model
from server.request.schema import A_SHARE, LONGEST_NAME, Name, Share, WireModel, validate_body
from server.request.unoffered import has_content
from server.request.vibes import INFORMATION, NO_ADAPTER, read_reference

MEDIA_TYPE = "application/binary"


class EncodeVibeBody(WireModel):
    """The request body. Encoding is not random here, so NAI's seeds have no effect."""

    image: object = Field(None, description="an image in Base64")
    model: Name | None = Field(None, description=f"a model id of at most {LONGEST_NAME} characters")
    information_extracted: Share | None = Field(
        None,
        description=A_SHARE,
        validation_alias=AliasChoices("information_extracted", "informationExtracted"),
    )
    mask: object = None


@dataclass(frozen=True, slots=True)
class Encoding:
    """A validated request: the job, and warnings for the client."""

    job: VibeJob
    model: ServedModel
    warnings: tuple[str, ...]


async def encode_vibe(request: Request, state: StateDependency) -> Response:
    """Encode a reference image for vibe transfer; the bytes are sent in its place, in Base64."""
    policy = state.current_policy()
    encoding = await decode_in_slot(request, read_encoding, await receive_body(request, state), policy)
    get_reservation(request).resize(measure_work(encoding.job))
    result = await wait_for_result(submit_job(request, encoding.job), request)
    assert result.vibe is not None
    content = pack_vibe(result.vibe, encoding.model, policy.vibe_secret)
    headers = build_warning_headers(encoding.warnings)
    return Response(content, media_type=MEDIA_TYPE, headers=headers)


def read_encoding(body: Mapping[str, object], policy: RequestPolicy) -> Encoding:
    """Read a request body; raise `Rejected` if it is invalid, or the model has no image adapter."""
    sent = validate_body(EncodeVibeBody, body)
    policy, warnings = choose_model(policy.presets.canonical(sent.model or policy.model.id), policy)
    if policy.model.vibe is None:
        raise Rejected("image", NO_ADAPTER)
    if not has_content(sent.image):
        raise Rejected("image", "is required: an image in Base64")
    if has_content(sent.mask):
        raise Rejected("mask", "remove it; the entire image is encoded")
    image = read_reference(decode_file(sent.image, "image"), "image")
    share = INFORMATION if sent.information_extracted is None else sent.information_extracted
    return Encoding(VibeJob(policy.model.id, image, share), policy.model, warnings)
