"""From what the device drew to what a client gets: PNG files with NAI's metadata in both layers."""

from collections.abc import Sequence

from pipelines.job import Job
from server.engine import Drawn
from server.metadata import comment, text_fields
from server.png import encode


def encoded(job: Job, drawn: Drawn, source_hash: str) -> Sequence[bytes]:
    """One PNG for each picture of a job, its own seed in its Comment."""
    return [
        encode(pixels, text_fields(comment(job, index), source_hash, drawn.seconds))
        for index, pixels in enumerate(drawn.pictures)
    ]
