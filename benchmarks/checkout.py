"""A checkout with its `.venv`, used as its user does: the `naiad` command, its Python, and server processes."""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

Variables = Mapping[str, str]
"""Environment variables on top of this process's."""
READY_SECONDS = 120
COMMAND_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended; `output` is stdout and `error` is stderr."""

    status: int
    output: str
    error: str

    @property
    def refusal(self) -> str:
        """The last line on stderr, without the program's name."""
        lines = self.error.strip().splitlines() or [""]
        return lines[-1].removeprefix("naiad: ")

    @property
    def has_traceback(self) -> bool:
        """Whether Python's own report of an error is in the output."""
        return "Traceback" in self.output + self.error


class ServerFailed(Exception):
    """A server process ended before it was ready; the message is the end of its log."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """The checkout at `root`, with the scratch folder `folder` for everything it writes.

    Attributes:
        python: the interpreter; None is the one of its `.venv`.
    """

    root: Path
    folder: Path
    python: Path | None = None

    @property
    def demo(self) -> Path:
        """The demo model's file."""
        return self.root / "demo" / "weights" / "naiad-demo.safetensors"

    @property
    def _command(self) -> list[str]:
        # the same as the console script `naiad`, which is only as new as the checkout's installation
        return [self._python, "-P", "-m", "server"]

    @property
    def _python(self) -> str:
        return str(self.python or self.root / ".venv/bin/python")

    def run_naiad(
        self, *arguments: object, stdout: Path | None = None, variables: Variables | None = None
    ) -> Completed:
        """Run the `naiad` command in the scratch folder; `stdout` is a file for its output."""
        command = [*self._command, *map(str, arguments)]
        if stdout is None:
            return self._run(command, variables)
        with stdout.open("wb") as file:
            return self._run(command, variables, file)

    def run_python(self, code: str, *arguments: object, variables: Variables | None = None) -> Completed:
        """Run a program with the checkout's Python, which can import its packages."""
        command = [self._python, "-c", code, *map(str, arguments)]
        return self._run(command, variables)

    def list_models(self, files: Mapping[str, Path | Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Return the cards that `naiad models` prints for files, by id; a file may be a catalog's table."""
        done = self.run_naiad("models", "--weights", self.write_catalog(files), "--json")
        if done.status:
            raise ServerFailed(done.refusal)
        return {card["id"]: card for card in json.loads(done.output)}

    def write_catalog(
        self, files: Mapping[str, Path | Mapping[str, Any]], name: str = "weights.toml"
    ) -> Path:
        """Write a catalog of files, or of tables of a file and its overrides, by id."""
        lines = [f"default = {json.dumps(next(iter(files)))}"]
        for model, entry in files.items():
            table = entry if isinstance(entry, Mapping) else {"path": entry}
            lines.append(f"[models.{json.dumps(model)}]")
            lines += [f"{key} = {json.dumps(value, default=str)}" for key, value in table.items()]
        catalog = self.folder / name
        catalog.write_text("\n".join(lines) + "\n")
        return catalog

    def _run(
        self, command: list[str], variables: Variables | None, stdout: Any = subprocess.PIPE
    ) -> Completed:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, check=False,
            cwd=self.folder, env=self._environment(variables), timeout=COMMAND_SECONDS,
        )  # fmt: skip
        return Completed(
            done.returncode,
            (done.stdout or b"").decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    def _environment(self, variables: Variables | None) -> dict[str, str]:
        """This process's environment without settings of naiad, one thread and a signing key of its own."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("NAIAD")}
        path = os.pathsep.join(filter(None, [str(self.root), os.environ.get("PYTHONPATH")]))
        own = {"OMP_NUM_THREADS": "1", "NAIAD_SIGNING_KEY": str(self.folder / "signing.pem")}
        own["PYTHONPATH"] = path  # a checkout need not be installed
        return {**inherited, **own, **(variables or {})}

    @contextmanager
    def serve(
        self, *arguments: object, port: int | None = None, variables: Variables | None = None
    ) -> Iterator[str]:
        """Serve on a free port of this machine until the block ends; yields the address once it is ready.

        With a `port` it is left to the settings, which must make the server listen there.
        """
        chosen = [] if port else ["--port", str(find_free_port())]
        address = f"http://127.0.0.1:{port or chosen[1]}"
        command = [*self._command, "serve", *map(str, arguments), *chosen]
        with self._run_server(command, address, variables):
            yield address

    @contextmanager
    def serve_module(self, module: str, *arguments: object) -> Iterator[str]:
        """Serve likewise with another program, a module that takes `--port` and answers `/ready`."""
        port = find_free_port()
        command = [self._python, "-m", module, *map(str, arguments), "--port", str(port)]
        address = f"http://127.0.0.1:{port}"
        with self._run_server(command, address, None):
            yield address

    @contextmanager
    def _run_server(self, command: list[str], address: str, variables: Variables | None) -> Iterator[None]:
        log = self.folder / f"server-{address.rpartition(':')[2]}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.folder,
                env=self._environment(variables),
            )  # fmt: skip
        try:
            _wait_until_ready(address, process, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def find_free_port() -> int:
    """Return a port of the loopback address that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        for known in (address, address.replace("127.0.0.1", "[::1]")):
            try:
                if httpx.get(f"{known}/ready", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
        time.sleep(0.2)
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    raise ServerFailed(re.sub(r"^naiad: ", "", lines[-1]))
