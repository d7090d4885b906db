"""The open connections, of which there may be a limited number."""

import logging
from typing import Protocol

log = logging.getLogger("naiad")


class Connection(Protocol):
    """A connection, as this module uses it."""

    @property
    def is_answering(self) -> bool:
        """Whether a complete request has arrived and its response has not been written."""
        ...

    def abort(self) -> None: ...


class Peers:
    """Open connections, longest idle first; at most `limit`.

    One more than that costs the connection that has been without a complete request for the longest time its place. So
    connections that nothing is sent on, and bodies that never end, cannot keep others away.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: dict[Connection, None] = {}

    def add(self, connection: Connection) -> bool:
        """Add a connection, and return whether there is a place for it."""
        if len(self._open) >= self.limit and not self._evict():
            return False
        self._open[connection] = None
        return True

    def refresh(self, connection: Connection) -> None:
        """Make a connection the last to lose its place."""
        if connection in self._open:
            self._open[connection] = self._open.pop(connection)

    def remove(self, connection: Connection) -> None:
        """Remove a connection that has ended, if it is still there."""
        self._open.pop(connection, None)

    def _evict(self) -> bool:
        idle = next((connection for connection in self._open if not connection.is_answering), None)
        log.warning("%d connections are open, the most that api.connections and ulimit -n allow", self.limit)
        if idle is None:
            return False
        self.remove(idle)
        idle.abort()
        return True
