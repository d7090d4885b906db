"""Waiting for a condition, which is how tests wait for other threads and processes."""

from time import monotonic, sleep

LIMIT = 60
"""Seconds after which a wait fails; reached only when something is broken, however busy the machine."""
PROCESS_LIMIT = 300
"""The same for a process that imports torch and loads a model."""


def wait_until(condition, limit=LIMIT):
    """Return the first value of `condition()` that is true."""
    deadline = monotonic() + limit
    while not (value := condition()):
        assert monotonic() < deadline
        sleep(0.005)
    return value
