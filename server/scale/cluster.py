"""Ray for the replicas: started on this machine or joined, with one application of Ray Serve in it."""

import logging
import os
import re
import socket
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from secrets import token_hex
from tempfile import TemporaryDirectory
from time import monotonic, sleep

from server.config.toml import ConfigError
from server.errors import Unavailable
from server.scale.proxy import CALLBACK
from server.scale.service import Scale, Service

log = logging.getLogger("naiad")
NAME = "naiad"
"""Name of the application in Ray Serve."""
POLL_SECONDS = 1.0
REASON = re.compile(r"server\.(errors\.Unavailable|config\.toml\.ConfigError): (.+)")
"""What a replica's check raised, in the text of Ray's error."""
CONNECT_SECONDS = 10.0
NO_CLUSTER = (
    "is not a Ray cluster that answers; is it running, and is RAY_AUTH_TOKEN or ~/.ray/auth_token its key?"
)
OBJECT_STORE = 512 << 20
"""Bytes of shared memory for large pieces of requests and responses; what does not fit goes to a file."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": CALLBACK,
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # a device that hangs never drains
    "RAY_SERVE_ENABLE_HA_PROXY": "0",  # it would listen on all addresses
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
}
"""What Ray's processes read when they start; a cluster that is joined must have been started with it."""
OWN = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: no cluster, and so all of Ray's ports are on loopback
    "RAY_AUTH_MODE": "token",  # these ports run anything for whoever may use them, which other users may not
}
"""The same for Ray on this machine alone."""


def require_ray() -> None:
    """Raise `ConfigError` if Ray Serve is not installed."""
    if find_spec("ray") is None:
        raise ConfigError("--replicas needs Ray Serve; install the extra: pip install 'naiad[scale]'")


@contextmanager
def start_ray(cpus: int) -> Generator[None]:
    """Run Ray on this machine, reachable from it alone and only with a key of this process."""
    os.environ.update(ENVIRONMENT, **OWN, RAY_AUTH_TOKEN=token_hex(32))
    import ray

    with TemporaryDirectory(prefix="naiad-") as folder:
        ray.init(
            "local",
            num_cpus=cpus,
            include_dashboard=False,
            logging_level=logging.WARNING,
            object_store_memory=OBJECT_STORE,
            _temp_dir=folder,
        )
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def join_ray(address: str) -> Generator[None]:
    """Connect to a Ray cluster that runs already; raise `ConfigError` if there is none."""
    _check_address(address)
    os.environ.update(ENVIRONMENT)
    import ray

    try:
        ray.init(address, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        log.debug("%s", error)
        raise ConfigError(f"--cluster {address!r} {NO_CLUSTER}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise `ConfigError` if nothing listens on an address, for which Ray would wait for many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"--cluster {address!r} is not like 10.0.0.1:6379, the address of Ray's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError):
        raise ConfigError(f"--cluster {address!r} {NO_CLUSTER}") from None


def count(resource: str) -> int:
    """Return how many of a resource, "CPU" or "GPU", Ray has on all machines."""
    import ray

    return int(ray.cluster_resources().get(resource, 0))


def deploy(service: Service, scale: Scale, host: str, port: int) -> None:
    """Start the replicas, or replace those that are running one after the other; return when all are ready.

    Raises `ConfigError` if a setting is why they cannot load the model, else `Unavailable`.
    """
    from ray import serve

    from server.scale.deployment import QUIET, build_application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": host, "port": port, "keep_alive_timeout_s": 90},
        logging_config=QUIET,
    )
    try:
        serve.run(build_application(service, scale), name=NAME, route_prefix="/")
    except RuntimeError as error:
        log.debug("%s", error)
        raise find_reason(str(error)) from None


def find_reason(text: str) -> ConfigError | Unavailable:
    """Return what the check of a replica raised, from the text of Ray's error."""
    found = REASON.search(text)
    if found is None:
        return Unavailable("the replicas could not start; see the lines above")
    return Unavailable(found[2]) if found[1].endswith("Unavailable") else ConfigError(found[2])


def wait_for_loss(patience: float) -> None:
    """Return after no replica has been ready for some seconds, in which Ray could not replace one."""
    last = monotonic()
    while monotonic() - last < patience:
        sleep(POLL_SECONDS)
        if count_ready():
            last = monotonic()


def count_ready() -> int:
    """Return the number of replicas that take requests; 0 if Ray does not answer."""
    from ray import serve
    from ray.exceptions import RayError

    try:
        application = serve.status().applications.get(NAME)
    except RayError:
        return 0
    deployments = () if application is None else application.deployments.values()
    return sum(each.replica_states.get("RUNNING", 0) for each in deployments)


def remove(drain_seconds: float) -> None:
    """Refuse further requests, wait until those that are accepted have been answered, and stop the replicas."""
    from ray import serve

    serve.delete(NAME, _blocking=False)  # not `serve.shutdown`, which ends the proxies before the replicas
    deadline = monotonic() + drain_seconds
    while NAME in serve.status().applications and monotonic() < deadline:
        sleep(POLL_SECONDS / 10)
