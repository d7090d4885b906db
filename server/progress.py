"""A run's progress in a terminal: steps, the noise level reached, and the pace."""

from concurrent.futures import FIRST_COMPLETED, wait

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.engine import Drawn, Ticket


def shown(ticket: Ticket) -> Drawn:
    """Wait for a ticket behind a progress bar; an interrupt calls the job off before its next evaluation."""
    steps = ticket.job.steps * len(ticket.job.seeds)
    columns = (
        TextColumn("drawing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sigma {task.fields[sigma]}"),
        TextColumn("{task.fields[pace]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=steps, sigma="-", pace="")
        try:
            while not wait((ticket.future,), 0.1, FIRST_COMPLETED).done:
                step = ticket.progress
                if step is not None:
                    done = (step.step - 1) * len(ticket.job.seeds) + step.image
                    speed = progress.tasks[0].speed
                    pace = f"{speed:.2f} it/s" if speed else ""
                    progress.update(task, completed=done, sigma=f"{step.sigma:.3g}", pace=pace)
        except KeyboardInterrupt:
            ticket.cancel()
            raise
        progress.update(task, completed=steps, sigma="0")
    return ticket.future.result()
