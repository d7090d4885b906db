"""The server's log: a line for each event on stderr, as text or as a JSON object.

The same text is written every two seconds at most.
"""

import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from time import monotonic

from structlog.contextvars import merge_contextvars
from structlog.processors import JSONRenderer, TimeStamper, format_exc_info
from structlog.stdlib import ExtraAdder, ProcessorFormatter, add_log_level, add_logger_name
from structlog.typing import Processor

from server.config.settings import LogFormat

QUIET_SECONDS = 2.0
REMEMBERED = 1000
"""Messages that are remembered; a log with more different ones in two seconds is not repetitive."""
CONSOLE = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FIELDS = ("request_id", "method", "path", "status", "seconds", "timings", "account")
"""Attributes of records that are keys of the JSON object."""


class RepeatFilter(logging.Filter):
    """Drops a record with the text of one that was logged less than two seconds ago.

    A record whose text has an id has the rest of it as its attribute `repeated`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._logged: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key, now = (record.name, getattr(record, "repeated", record.getMessage())), monotonic()
        if now - self._logged.get(key, -QUIET_SECONDS) < QUIET_SECONDS:
            return False
        if len(self._logged) >= REMEMBERED:
            self._logged.clear()
        self._logged[key] = now
        return True


def configure_logging(log_format: LogFormat = "console") -> None:
    """Log to stderr from INFO on; of uvicorn and others only warnings."""
    handler = logging.StreamHandler()
    handler.addFilter(RepeatFilter())
    handler.setFormatter(build_formatter(log_format, sys.stderr.isatty()))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


@contextmanager
def keep_records(name: str, is_kept: Callable[[logging.LogRecord], bool]) -> Generator[None]:
    """Drop the records of the logger with this name that `is_kept` is false for, until the block ends."""
    logger = logging.getLogger(name)
    logger.addFilter(is_kept)
    try:
        yield
    finally:
        logger.removeFilter(is_kept)


def build_formatter(log_format: LogFormat, is_terminal: bool) -> logging.Formatter:
    """Return what makes lines of records; "auto" is text on a terminal, else JSON."""
    if log_format == "console" or (log_format == "auto" and is_terminal):
        return logging.Formatter(CONSOLE)
    added: list[Processor] = [
        add_log_level,
        add_logger_name,
        TimeStamper(fmt="iso", utc=True, key="time"),
        merge_contextvars,
        ExtraAdder(FIELDS),
        format_exc_info,
    ]
    return ProcessorFormatter(
        foreign_pre_chain=added, processors=[ProcessorFormatter.remove_processors_meta, JSONRenderer()]
    )
