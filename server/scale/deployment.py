"""The server as a deployment of Ray Serve: each replica is a process with an engine and an application of its own."""

import asyncio
from dataclasses import replace

import ray
from ray import serve
from ray.serve import Application
from ray.serve.config import DeploymentActorConfig, RequestRouterConfig
from starlette.types import ASGIApp

from server.app import create_app
from server.cli.bootstrap import build_app_state
from server.cli.logs import configure_logging
from server.scale.limits import NAME as LEDGER
from server.scale.limits import Ledger, SharedLimits
from server.scale.router import FewestOpen
from server.scale.service import Scale, Service

LOAD_ATTEMPTS = 2
"""Attempts to load the model, per replica, before the first replica is ready; after them the deployment has failed."""
CHECK_SECONDS = 2.0
"""Seconds between health checks. Three failures in a row replace a replica."""
CHECK_TIMEOUT = 10.0
"""Seconds within which a replica's event loop must answer a check."""
BUSY = 4
"""Open requests per replica above which replicas are added."""
GROWTH_SECONDS = 10.0
SHRINK_SECONDS = 600.0
"""Seconds for which there are more, or fewer, requests before replicas are added, or stopped."""

QUIET = {"log_level": "WARNING", "enable_access_log": False}
"""Logging of Ray Serve; replicas log their requests themselves."""


class Replica:
    """One replica. Ray makes a new one if its process ends or its health checks fail."""

    def __init__(self, service: Service) -> None:
        configure_logging(service.settings.log_format)
        state = build_app_state(service.model, service.settings, service.others, service.problems)
        self._limits = SharedLimits(serve.get_replica_context().replica_tag)
        self._state = state if service.settings.tokens is None else replace(state, limits=self._limits)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._state)

    async def check_health(self) -> None:
        """Wait until the model is loaded; raise what `Engine.wait_ready` does, also if the device has failed since.

        A replica gets no requests before its first check has ended.
        """
        await asyncio.to_thread(self._state.engine.wait_ready)
        if self._state.limits is not None:
            await asyncio.to_thread(self._limits.renew)


def build_application(service: Service, scale: Scale) -> Application:
    """Return what `serve.run` deploys. A replica's engine refuses requests, with its own errors, before Ray does."""
    settings = service.settings
    deployment = serve.deployment(serve.ingress()(Replica)).options(
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": scale.gpus},
        max_ongoing_requests=settings.api.connections + settings.engine.queue_limit,
        max_queued_requests=settings.api.connections,
        request_router_config=RequestRouterConfig(request_router_class=FewestOpen),
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        health_check_period_s=CHECK_SECONDS,
        health_check_timeout_s=CHECK_TIMEOUT,
        max_constructor_retry_count=LOAD_ATTEMPTS,
        max_surge_percent=-(-100 // scale.replicas) if scale.has_spare else 0,
        logging_config=QUIET,
        deployment_actors=[] if settings.tokens is None else [build_ledger()],
        **_build_counts(scale),
    )
    return deployment.bind(service)


def build_ledger() -> DeploymentActorConfig:
    """Return the process that keeps the limits of accounts; Ray replaces it, with all at 0, if it ends."""
    return DeploymentActorConfig(name=LEDGER, actor_class=ray.remote(Ledger), actor_options={"num_cpus": 0})


def _build_counts(scale: Scale) -> dict[str, object]:
    """Return the options for the number of replicas."""
    if scale.most == scale.replicas:
        return {"num_replicas": scale.replicas}
    autoscaling = {
        "min_replicas": scale.replicas,
        "max_replicas": scale.most,
        "target_ongoing_requests": BUSY,
        "upscale_delay_s": GROWTH_SECONDS,
        "downscale_delay_s": SHRINK_SECONDS,
    }
    return {"autoscaling_config": autoscaling}
