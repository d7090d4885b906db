"""The archive over HTTP: handing pictures over to it, `GET /archive`, and single pictures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from typing import Annotated

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BeforeValidator, Field

from server.api.jobs import run_in_slot
from server.api.state import (
    AppState,
    StateDependency,
    get_account,
    get_app_state,
    get_capacity,
    get_reservation,
)
from server.api.threads import call_in_thread
from server.archive.archive import Archive
from server.archive.names import tag_account, to_milliseconds
from server.archive.picture_index import PictureQuery
from server.archive.records import PictureRecord
from server.errors import NotFound, Rejected, shorten
from server.request.schema import A_NAME, Name, WireModel, validate_body

DEFAULT_LIMIT, MOST_PICTURES = 50, 200
ID = re.compile(r"[0-9a-f]{16}-\d{1,2}", re.ASCII)
CURSOR = re.compile(r"(\d{1,15})-([0-9a-f]{16}-\d{1,2})", re.ASCII)
A_DATE = "a date like 2026-11-01, from 1970 to 8999"
HEADERS = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""Of a picture, which never changes and is for no other page."""


def _parse_date(value: object) -> object:
    """Return a text as a date; pydantic alone reads seconds since 1970 too."""
    if not isinstance(value, str) or not re.fullmatch(r"(19[7-9]|[2-8]\d\d)\d-\d\d-\d\d", value, re.ASCII):
        raise ValueError(A_DATE)
    return date.fromisoformat(value)


def _check_cursor(text: str) -> str:
    if not CURSOR.fullmatch(text):
        raise ValueError("a cursor")
    return text


Day = Annotated[date, BeforeValidator(_parse_date)]


class ArchiveQuery(WireModel):
    """The query of `GET /archive`."""

    prompt: str | None = Field(None, max_length=1000, description="a text of at most 1000 characters")
    model: Name | None = Field(None, description=A_NAME)
    since: Day | None = Field(None, alias="from", description=A_DATE)
    until: Day | None = Field(None, alias="to", description=A_DATE)
    limit: Annotated[int, Field(ge=1, le=MOST_PICTURES)] = Field(
        DEFAULT_LIMIT, description=f"a whole number from 1 to {MOST_PICTURES}"
    )
    before: Annotated[str, AfterValidator(_check_cursor)] | None = Field(
        None, description="what an answer has as `next`"
    )


async def list_pictures(request: Request, state: StateDependency) -> JSONResponse:
    """The archived pictures that a query asks for, the newest first: an account's own, or all for the operator."""
    archive, sent = _require_archive(state), read_query(request.query_params)
    query = build_query(sent, _read_owner(request))
    found = await run_in_slot(request, get_capacity(request).searching, archive.find, query)
    names = _list_account_names(state) if query.owner is None else None
    shown, has_more = found[: sent.limit], len(found) > sent.limit
    return JSONResponse(
        {
            "pictures": [describe_picture(record, names) for record in shown],
            "next": f"{shown[-1].created}-{shown[-1].id}" if has_more else None,
            "complete": not archive.is_scanning,
        }
    )


async def get_picture(id: str, request: Request, state: StateDependency) -> Response:
    """An archived picture: the file as it was sent."""
    archive = _require_archive(state)
    record = await call_in_thread(archive.get, id, _read_owner(request)) if ID.fullmatch(id) else None
    if record is None:
        raise _build_not_found(id)
    headers = HEADERS | {"ETag": f'"{id}"'}
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    path = archive.folder / record.file
    try:
        size = (await call_in_thread(path.stat)).st_size
        get_reservation(request).resize(size)
        file = await call_in_thread(path.read_bytes)
    except OSError:
        raise _build_not_found(id) from None
    headers["Content-Disposition"] = f'inline; filename="{path.name}"'
    return Response(file, media_type=f"image/{path.suffix.removeprefix('.')}", headers=headers)


async def delete_picture(id: str, request: Request, state: StateDependency) -> Response:
    """Delete an archived picture, the file and its row in the index."""
    archive = _require_archive(state)
    if not ID.fullmatch(id) or not await call_in_thread(archive.delete, id, _read_owner(request)):
        raise _build_not_found(id)
    return Response(status_code=204)


def read_query(sent: Mapping[str, str]) -> ArchiveQuery:
    """Validate a query; raise `Rejected` for an unknown field, or one with a wrong value."""
    allowed = [field.alias or name for name, field in ArchiveQuery.model_fields.items()]
    for name in sent:
        if name not in allowed:
            near = get_close_matches(name[:40], allowed, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise Rejected(shorten(name)[1:-1], f"is not one of {', '.join(allowed)}{hint}")
    query = validate_body(ArchiveQuery, {name: value for name, value in sent.items() if value})
    if query.since is not None and query.until is not None and query.since > query.until:
        raise Rejected("from", f"{query.since} is after to, {query.until}")
    return query


def build_query(sent: ArchiveQuery, owner: str | None) -> PictureQuery:
    """Return what to look for, one picture more than is shown; raise `Rejected` for a prompt without words."""
    words = re.findall(r"[^\W_]+", sent.prompt or "")
    if not words and sent.prompt and not sent.prompt.isspace():
        raise Rejected("prompt", f"{shorten(sent.prompt)} has no words to look for")
    after = None if sent.until is None else sent.until + timedelta(days=1)
    cursor = CURSOR.fullmatch(sent.before or "")
    return PictureQuery(
        words=words,
        model=sent.model or "",
        since=None if sent.since is None else _to_midnight(sent.since),
        until=None if after is None else _to_midnight(after),
        owner=owner,
        before=None if cursor is None else (int(cursor[1]), cursor[2]),
        limit=sent.limit + 1,
    )


def describe_picture(record: PictureRecord, names: Mapping[str, str] | None) -> dict[str, object]:
    """Return a picture as JSON values; with the names of accounts by their tags, also whose it is."""
    created = datetime.fromtimestamp(record.created / 1000, UTC).isoformat(timespec="milliseconds")
    values: dict[str, object] = {**asdict(record), "created": created.replace("+00:00", "Z")}
    del values["owner"]
    if names is not None:
        values["account"] = names.get(record.owner, record.owner) or None
    return values


def _to_midnight(day: date) -> int:
    """Return the time at which a day begins in local time, in milliseconds since 1970."""
    return to_milliseconds(datetime.combine(day, time()).astimezone())


def _require_archive(state: AppState) -> Archive:
    if state.archive is None:
        raise NotFound("this server keeps no archive; start it with --archive DIR, or set archive")
    return state.archive


def _build_not_found(id: str) -> NotFound:
    return NotFound(f"{shorten(id)}: there is no such picture in the archive")


def _read_owner(request: Request) -> str | None:
    """Return the tag of the account whose pictures a request may see; None for all of them.

    A request without an account is the operator's: it has the server's own token, or none is needed.
    """
    account = get_account(request)
    return None if account is None else tag_account(account.name)


def _list_account_names(state: AppState) -> dict[str, str]:
    return {tag_account(account.name): account.name for account in state.access.accounts.account}


def archive_pictures(request: Request, files: Sequence[bytes], seeds: Sequence[int]) -> None:
    """Archive the files that a request is answered with, without waiting for the disk."""
    for index, (file, seed) in enumerate(zip(files, seeds, strict=True)):
        archive_picture(request, index, seed, file)


def archive_picture(request: Request, index: int, seed: int, file: bytes) -> None:
    """Archive one of the files that a request is answered with. Can be called on any thread."""
    archive, account = get_app_state(request).archive, get_account(request)
    if archive is not None:
        request_id = request.scope.get(
            "job_id", request.scope["request_id"]
        )  # a retry has the first attempt's
        name = None if account is None else account.name
        archive.put(file, request_id, index, seed, name)
