"""Handing the pictures of a response over to the archive, if there is one."""

from collections.abc import Sequence

from fastapi import Request

from server.api.state import get_account, get_app_state


def archive_pictures(request: Request, files: Sequence[bytes], seeds: Sequence[int]) -> None:
    """Archive the files that a request is answered with, without waiting for the disk."""
    for index, (file, seed) in enumerate(zip(files, seeds, strict=True)):
        archive_picture(request, index, seed, file)


def archive_picture(request: Request, index: int, seed: int, file: bytes) -> None:
    """Archive one of the files that a request is answered with. Can be called on any thread."""
    archive, account = get_app_state(request).archive, get_account(request)
    if archive is not None:
        name = None if account is None else account.name
        archive.put(file, request.scope["request_id"], index, seed, name)
