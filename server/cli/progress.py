"""A run's progress in a terminal: steps, the noise level reached, and the pace."""

from concurrent.futures import FIRST_COMPLETED, wait

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.engine.engine import Result, Ticket


def wait_with_progress(ticket: Ticket, images: int) -> Result:
    """Wait for a job of so many images behind a progress bar; an interrupt calls it off before its next evaluation."""
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sigma {task.fields[sigma]}"),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=None, sigma="-", pace="")
        try:
            while not wait((ticket.future,), 0.1, FIRST_COMPLETED).done:
                step = ticket.progress
                if step is not None:
                    done, total = (step.step - 1) * images + step.image, step.steps * images
                    speed = progress.tasks[0].speed
                    pace = f"{speed:.2f} it/s" if speed else ""
                    progress.update(task, completed=done, total=total, sigma=f"{step.sigma:.3g}", pace=pace)
        except KeyboardInterrupt:
            ticket.cancel()
            raise
        progress.update(task, completed=progress.tasks[0].total, sigma="0")
    return ticket.future.result()
