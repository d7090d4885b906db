"""`naiad serve --replicas`: check the setup, deploy the replicas, and stop them when a signal arrives."""

import logging
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import NoReturn

import typer

from server.api.state import AppState
from server.cli.bootstrap import (
    build_access_rules,
    build_engine,
    build_metadata_policy,
    build_request_policy,
    check_memory,
)
from server.cli.listeners import bind
from server.cli.logs import configure_logging
from server.cli.serve import announce
from server.cli.status import FAILED
from server.config.settings import Settings, listen_port
from server.config.toml import ConfigError
from server.engine.threads import choose_threads
from server.errors import Unavailable
from server.scale import cluster
from server.scale.service import Scale, Service

log = logging.getLogger("naiad")
PATIENCE = 600.0
"""Seconds without any replica after which the server exits; loading a model takes a minute or two."""


@dataclass(frozen=True, slots=True)
class ReplicaFlags:
    """How many replicas the command line asks for, and where: on this machine, or on a Ray cluster."""

    replicas: int
    most: int | None = None
    cluster: str | None = None


class Interrupted(Exception):
    """A signal asks the server to stop."""


def run_replicas(service: Service, flags: ReplicaFlags) -> None:
    """Serve with replicas: on this machine until a signal arrives, or on a cluster, where they stay.

    Raises `ConfigError` for a setup that cannot be served, or that replicas do not support.
    """
    configure_logging(service.settings.log_format)
    cluster.require_ray()
    _check_support(service.settings, flags)
    try:
        if flags.cluster is None:
            _serve_here(service, flags)
        else:
            _deploy_on(flags.cluster, service, flags)
    except Unavailable as error:
        log.critical("%s; the server stops with status %d", error, FAILED)
        raise typer.Exit(FAILED) from None


def _serve_here(service: Service, flags: ReplicaFlags) -> None:
    """Serve until a signal arrives, or raise `Unavailable` if no replica is left."""
    settings, state = service.settings, _build_state(service)
    host, port = _find_address(settings)
    most = flags.most or flags.replicas
    threads = _divide_threads(settings, most)
    service = _complete(service, state, threads)
    # Ray first, because it sets handlers of its own; a signal while the model is loaded finds nothing to finish
    with cluster.start_ray(most * threads), _interrupt_on_signals(), suppress(Interrupted):
        cluster.deploy(service, _plan(settings, flags, threads), host, port)
        announce(service.model, state, settings, port)
        _serve_until_signal(settings.drain_seconds)


def _serve_until_signal(drain_seconds: float) -> None:
    """Wait for a signal and drain the replicas, or raise `Unavailable` if none is left."""
    try:
        cluster.wait_for_loss(PATIENCE)
    except Interrupted:
        cluster.remove(drain_seconds)
    else:
        raise Unavailable(f"no replica was ready for {PATIENCE:g} seconds")


def _deploy_on(address: str, service: Service, flags: ReplicaFlags) -> None:
    """Deploy the replicas on a cluster, in place of those it has, and return; with 0 replicas, remove those it has."""
    settings, state = service.settings, _build_state(service)
    threads = settings.threads if isinstance(settings.threads, int) else 1
    with cluster.join_ray(address):
        if flags.replicas == 0:
            cluster.remove(settings.drain_seconds)
            return
        service = _complete(service, state, threads)
        cluster.deploy(service, _plan(settings, flags, threads), settings.host[0], listen_port(settings))
        announce(service.model, state, settings, listen_port(settings))


def _check_support(settings: Settings, flags: ReplicaFlags) -> None:
    """Raise `ConfigError` for settings that replicas do not support."""
    if len(settings.host) > 1:
        raise ConfigError(f"host = {', '.join(settings.host)}: with --replicas, name one address")
    if settings.tls:
        raise ConfigError("tls = true: --replicas speaks HTTP only; put a proxy with TLS in front of it")
    if settings.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device = {settings.device!r}: with --replicas, set auto, cpu or cuda")
    if flags.cluster is None and flags.replicas == 0:
        raise ConfigError("--replicas 0 stops those of a cluster; name it with --cluster")
    if flags.most is not None and flags.most < flags.replicas:
        raise ConfigError(f"--max-replicas {flags.most} is less than --replicas {flags.replicas}")
    if flags.cluster is not None and listen_port(settings) == 0:
        raise ConfigError("port = 0: the machines of a cluster listen on one port; choose it")
    if flags.cluster is not None and settings.token is None and settings.tokens is None:
        raise ConfigError(
            "--cluster: other machines can reach it; set token or tokens, the same for each start"
        )


def _build_state(service: Service) -> AppState:
    """Return the state of an application that is never started, so that all that is wrong shows before Ray starts."""
    model, settings = service.model, service.settings
    check_memory(settings)
    return AppState(
        engine=build_engine(model, settings, service.others),
        policy=build_request_policy(model, settings, service.others, service.problems),
        metadata=build_metadata_policy(model, settings),
        access=build_access_rules(settings),
    )


def _complete(service: Service, state: AppState, threads: int) -> Service:
    """Return what is served with the settings that must be the same in all replicas: the token and the threads."""
    token = service.settings.token or next(iter(state.access.tokens), None)
    return replace(service, settings=service.settings.model_copy(update={"token": token, "threads": threads}))


def _plan(settings: Settings, flags: ReplicaFlags, threads: int) -> Scale:
    """Return the number of replicas and what each takes: a GPU, or the threads of a CPU."""
    gpus, most = cluster.count("GPU"), flags.most or flags.replicas
    if settings.device == "cuda" or (settings.device == "auto" and gpus):
        if gpus < most:
            raise ConfigError(f"--replicas: {most} need a GPU each, and Ray has {gpus}")
        return Scale(flags.replicas, most, cpus=1, gpus=1, has_spare=gpus > most)
    return Scale(flags.replicas, most, cpus=threads, has_spare=cluster.count("CPU") >= (most + 1) * threads)


def _divide_threads(settings: Settings, replicas: int) -> int:
    """Return the CPU threads of each replica on this machine."""
    if isinstance(settings.threads, int):
        return settings.threads
    return max(1, (choose_threads("auto", {}) or 1) // replicas)


def _find_address(settings: Settings) -> tuple[str, int]:
    """Return the address and the port that Ray is to listen on; raise `ConfigError` if they are not free."""
    listeners = bind(settings.host, listen_port(settings))
    names = [listener.getsockname()[:2] for listener in listeners]
    for listener in listeners:
        listener.close()
    return names[0]


@contextmanager
def _interrupt_on_signals() -> Generator[None]:
    """Raise `Interrupted` at the first signal that asks to stop; end the process at the second."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        numbers.append(hangup)
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _frame: FrameType | None) -> NoReturn:
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _exit_now)
    raise Interrupted


def _exit_now(number: int, _frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)
