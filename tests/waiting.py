"""Waiting for a condition, which is how tests wait for other threads and processes."""

from time import monotonic, sleep

LIMIT = 300
"""Seconds after which a wait fails; reached only when something is broken, however busy the machine."""


def wait_until(condition):
    """Return the first value of `condition()` that is true."""
    deadline = monotonic() + LIMIT
    while not (value := condition()):
        assert monotonic() < deadline
        sleep(0.005)
    return value
