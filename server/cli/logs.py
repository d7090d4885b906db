"""The server's log: one line for each event on stderr, of which no text is repeated more than once a second."""

import logging
from time import monotonic

QUIET_SECONDS = 1.0
REMEMBERED = 1000
"""Messages that are remembered; a log with more different ones in a second is not repetitive."""


class RepeatFilter(logging.Filter):
    """Drops a record with the text of one that was logged less than a second ago.

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
