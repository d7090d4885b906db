"""Runs coroutines to their ends."""

from contextlib import closing


def run_rows(batcher, trajectory):
    """Return the final latents of a coroutine of rows."""
    outputs = None
    with closing(trajectory):
        while True:
            try:
                rows = trajectory.send(outputs)
            except StopIteration as stop:
                return stop.value
            (outputs,) = batcher.evaluate_images([rows])


def run_job(loaded, work, on_preview=None):
    """Return the output of a job, run to its end on a loaded model."""
    loaded.activate(work)
    return loaded.begin(work, on_preview).complete()
