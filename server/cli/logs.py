"""The server's log: a line for each event on stderr; the same text is written every two seconds at most."""

import logging
from time import monotonic

QUIET_SECONDS = 2.0
REMEMBERED = 1000
"""Messages that are remembered; a log with more different ones in two seconds is not repetitive."""


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


def configure_logging() -> None:
    """Log to stderr from INFO on; of uvicorn and others only warnings."""
    handler = logging.StreamHandler()
    handler.addFilter(RepeatFilter())
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[handler]
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
