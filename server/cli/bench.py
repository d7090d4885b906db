"""`naiad bench`: how fast a model draws on this machine, measured through the engine that serves it, without HTTP."""

import json
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from logging import LogRecord
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipelines.errors import OutOfMemory, PipelineError
from pipelines.types import Size
from server.cli.bench_report import describe_setup, format_header, format_notes, format_row, to_json
from server.cli.bench_row import Clients, DeviceLog, Row, measure_row
from server.cli.bootstrap import build_metadata_policy, build_request_policy
from server.cli.generate import run_engine
from server.cli.logs import keep_records
from server.cli.output import ReservedFile, check_output, reserve_files
from server.cli.status import INTERRUPTED
from server.config.settings import Settings
from server.config.toml import ConfigError
from server.engine.engine import State
from server.engine.model import ServedModel
from server.engine.ticket import Result
from server.errors import ApiError, Rejected
from server.heap import read_peak_memory, reset_peak_memory
from server.picture.writer import write_job_picture
from server.request.resolve import RequestPolicy, ResolvedRequest, resolve
from server.request.schema import read_request

COMMON_SIZE = (832, 1216)
"""Measured for every model, so that tables can be compared."""
DEMO_SIZES = ((256, 256), (512, 768))
"""The demo model is made for these, and is quick at them without a GPU."""
COLORS = ("red", "blonde", "green", "blue", "purple", "pink", "brown", "black", "white", "orange")
JSON_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What is measured: each size with each number of pictures at a time.

    Attributes:
        steps: None for the number of the model's profile.
        pictures: how many are drawn for a row at least; twice as many as at a time if that is more.
    """

    sizes: tuple[Size, ...]
    concurrency: tuple[int, ...]
    steps: int | None
    pictures: int

    def build_rows(self) -> Iterator[Row]:
        """Yield a row for each combination, empty yet."""
        for size in self.sizes:
            for at_once in self.concurrency:
                yield Row(size, at_once, max(self.pictures, 2 * at_once if at_once > 1 else 1))


@dataclass(frozen=True, slots=True)
class Requests:
    """Makes the requests of a plan, as the server would read them.

    Every one has another prompt and seed, so that each prompt is encoded as it would be for strangers.
    """

    policy: RequestPolicy
    steps: int | None

    def resolve(self, size: Size, number: int) -> ResolvedRequest:
        """Return the request for picture `number`; raise `Rejected` if a value is not allowed."""
        hair, eyes = COLORS[number % 10], COLORS[number // 10 % 10]
        parameters = {
            "width": size[0],
            "height": size[1],
            "steps": self.steps,
            "seed": number + 1,
            "qualityToggle": True,
            "ucPreset": 0,
            "negative_prompt": "",
        }
        prompt = f"1girl, solo, {hair} hair, {eyes} eyes, smile, white background"
        return resolve(read_request({"input": prompt, "parameters": parameters}), self.policy)


def choose_sizes(model: ServedModel, is_demo: bool) -> tuple[Size, ...]:
    """Return the sizes that are measured if none are named: the common one, and what the model is for."""
    if is_demo:
        return DEMO_SIZES
    defaults = model.profile.defaults
    return tuple(dict.fromkeys((COMMON_SIZE, (defaults.width, defaults.height))))


def run_bench(
    model: ServedModel, settings: Settings, plan: BenchPlan, output: Path | None, force: bool
) -> int:
    """Measure a plan, print each row as it is finished, and return the exit status: 0, or that of an early end.

    Raises `ConfigError` if the plan or the setup is wrong, and `Unavailable` if the model cannot be loaded otherwise.
    """
    most = settings.engine.queue_limit
    if max(plan.concurrency) > most:
        reason = f"more than engine.queue_limit = {most} lets wait; raise that, or measure fewer at a time"
        raise ConfigError(f"--concurrency {max(plan.concurrency)}: {reason}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        # signed like the server's pictures, but a measurement neither needs nor makes the operator's key
        settings = settings.model_copy(update={"signing_key": folder / "signing.pem"})
        requests = Requests(build_request_policy(model, settings), plan.steps)
        check_plan(plan, requests)
        file = None if output is None else stack.enter_context(_reserve(output, force))
        return _measure(model, settings, plan, requests, file)


def check_plan(plan: BenchPlan, requests: Requests) -> None:
    """Raise `ConfigError` if a size or the number of steps is not allowed."""
    for width, height in plan.sizes:
        try:
            requests.resolve((width, height), 0)
        except Rejected as error:
            flag = f"--steps {plan.steps}" if error.field.endswith("steps") else f"--sizes {width}x{height}"
            raise ConfigError(f"{flag}: {error.reason}") from None


@contextmanager
def _reserve(output: Path, force: bool) -> Generator[ReservedFile]:
    check_output(output, force, "--json")
    with reserve_files([output], JSON_BYTES, force, "--json") as (file,):
        yield file


def _measure(
    model: ServedModel, settings: Settings, plan: BenchPlan, requests: Requests, file: ReservedFile | None
) -> int:
    """Load the model, then measure and print, and write the JSON file however it ends."""
    from server.engine.device import open_stopwatch
    from server.engine.loading import describe_hardware  # takes seconds

    hardware, log = describe_hardware(model, settings), DeviceLog(open_stopwatch(settings))
    metadata = build_metadata_policy(model, settings)

    def write(request: ResolvedRequest, result: Result) -> bytes:
        return write_job_picture(metadata, request, result, 0)

    started = perf_counter()
    with run_engine(model, settings, log.observe, warms_up=True) as engine:
        loaded = engine.model or model  # what it predicts may be known only now
        requests = replace(requests, policy=replace(requests.policy, model=loaded))
        job = requests.resolve(plan.sizes[0], 0).job
        setup = describe_setup(loaded, settings, hardware, job, perf_counter() - started)
        typer.echo(format_header(setup))
        bench = Bench(Clients(engine, requests.resolve, write), log, settings.device)
        rows, status = bench.run(plan, lambda: engine.state is State.READY)
    typer.echo(format_notes(setup))
    if file is not None:
        file.publish(json.dumps(to_json(setup, rows, status == INTERRUPTED), indent=2).encode() + b"\n")
    return status


@dataclass(frozen=True, slots=True)
class Bench:
    """Measures rows and prints them."""

    clients: Clients
    log: DeviceLog
    device: str

    def run(self, plan: BenchPlan, is_ready: Callable[[], bool]) -> tuple[list[Row], int]:
        """Measure all rows of a plan; return those that have anything, and the exit status."""
        rows: list[Row] = []
        status = 0
        try:
            for row in plan.build_rows():
                if status == INTERRUPTED or not is_ready():
                    break
                status = self._measure(row) or status
                rows.append(row)  # which an interrupt before it leaves out
                typer.echo(format_row(row))
        except KeyboardInterrupt:  # between two rows
            status = INTERRUPTED
        return rows, status

    def _measure(self, row: Row) -> int:
        """Measure a row behind a progress bar and return the exit status; an error of the engine is its failure."""
        from server.engine import device

        name = device.resolve_device(self.device)
        reset_peak_memory()
        device.reset_peak_memory(name)
        try:
            with keep_records("naiad", _is_rare), _show_progress(row) as advance:
                measure_row(row, self.clients, self.log, advance)
        except KeyboardInterrupt:
            row.failure = "interrupted"
            return INTERRUPTED
        except OutOfMemory:
            row.failure = "out of memory"
        except (PipelineError, ApiError) as error:
            row.failure = "failed"
            typer.echo(f"naiad: {error}", err=True)
        finally:
            row.memory = device.read_peak_memory(name) or read_peak_memory()
        return int(row.failure is not None)


def _is_rare(record: LogRecord) -> bool:
    """Return whether a record is not of a single picture; those would stand amid the table's rows."""
    return not hasattr(record, "repeated")


@contextmanager
def _show_progress(row: Row) -> Generator[Callable[[], None]]:
    """Show on a terminal how many pictures of a row are drawn, and yield a function that counts one more."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        name = f"{row.size[0]}x{row.size[1]}, {row.at_once} at a time"
        task = progress.add_task(name, total=row.at_once + row.planned)
        yield lambda: progress.advance(task)
