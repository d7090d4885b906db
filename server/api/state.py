"""The state that every request shares, and the dependencies through which routes get it."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, cast

from fastapi import Depends, Request

from server.api.access import AccessRules
from server.api.accounts import Account
from server.api.active_jobs import ActiveJobs
from server.api.body import BodyLimits
from server.api.image_cache import ImageCache
from server.api.login_attempts import LoginAttempts
from server.api.memory import DECODE_LIMIT, MIB, Memory, Reservation, memory_for_bodies
from server.api.quota import AccountLimits, Quotas
from server.api.tracing import Tracing
from server.archive.archive import Archive
from server.config.settings import OnDisconnect, ZipType
from server.director.toolbox import Toolbox
from server.engine.engine import Engine
from server.metrics.metrics import Metrics
from server.picture.writer import MetadataPolicy
from server.request.resolve import RequestPolicy
from server.tags.library import TagLibrary, read_known_tags


@dataclass(frozen=True, slots=True)
class AppState:
    """The engine, and how requests are admitted, read and answered."""

    engine: Engine
    policy: RequestPolicy
    metadata: MetadataPolicy
    access: AccessRules = field(default_factory=AccessRules)
    tags: TagLibrary = field(default_factory=lambda: TagLibrary(read_known_tags))
    zip_type: ZipType = "auto"  # media type of ZIP responses to `Accept: */*`
    prefixes: tuple[str, ...] = ()  # that may precede a path, as `normalize_prefix` returns them
    body_limit: int = 64  # MiB
    body_timeout: float = 60.0  # seconds within which the entire body must have arrived
    memory_limit: int = 4096  # MiB that all requests together may hold
    image_cache: int = 64  # MiB of images that are kept for clients that send them again by a key
    decode_limit: int = DECODE_LIMIT  # how many requests may decode images or draw by a tool at a time
    on_disconnect: OnDisconnect = "cancel"  # what becomes of a request whose client is gone
    deadline: float = 0  # seconds that a request may take; 0 for any number
    toolbox: Toolbox = field(default_factory=Toolbox)
    archive: Archive | None = None
    limits: AccountLimits | None = None  # of accounts; None: those of this process
    metrics: Metrics = field(default_factory=Metrics)  # that count the engine's events too
    tracing: Tracing | None = None

    def current_policy(self) -> RequestPolicy:
        """Return the policy for the model as it is known now: what some predict is known only after loading."""
        model, known = self.engine.model, self.engine.models
        if model is None:
            return self.policy
        others = tuple(known.get(other.id, other) for other in self.policy.others)
        return replace(self.policy, model=model, others=others)

    def metadata_for(self, name: str) -> MetadataPolicy:
        """Return the metadata policy for the images of a model."""
        other = next((model for model in self.policy.others if model.id == name), None)
        return self.metadata if other is None else self.metadata.for_model(other)

    def metadata_for_source(self, fields: Mapping[str, str]) -> MetadataPolicy:
        """Return the metadata policy for what is made from an image with these text fields, without the model.

        It is that of the model that drew the image, if that is one of these here, else of the default model.
        """
        hashes = fields.get("Source", "").split()[-1:]
        drawn_by = (model.id for model in self.policy.models if [model.fingerprint] == hashes)
        return self.metadata_for(next(drawn_by, self.policy.model.id))

    @property
    def body_limits(self) -> BodyLimits:
        """Limits of the bodies that may hold images."""
        return BodyLimits(self.body_limit * MIB, self.body_timeout)


class Capacity:
    """What all requests share: memory, cached images, quotas, jobs, and slots for what takes long."""

    def __init__(self, state: AppState) -> None:
        limits = state.memory_limit, state.body_limit, state.image_cache
        self.memory = Memory(memory_for_bodies(*limits, state.decode_limit) * MIB)
        self.images = ImageCache(state.image_cache * MIB)
        self.quotas, self.jobs = state.limits or Quotas(), ActiveJobs()
        self.logins = LoginAttempts()
        self.parsing = asyncio.Semaphore()
        self.listing = asyncio.Semaphore()
        self.searching = asyncio.Semaphore()
        self.decoding = asyncio.Semaphore(state.decode_limit)


def get_app_state(request: Request) -> AppState:
    """Return the state of the application that received a request."""
    return cast("AppState", request.app.state.naiad)


def get_capacity(request: Request) -> Capacity:
    """Return the capacity of the application that received a request."""
    return cast("Capacity", request.app.state.capacity)


def get_reservation(request: Request) -> Reservation:
    """Return what a request holds of the memory; the middleware gives it back once the response has been sent."""
    return cast("Reservation", request.scope["reservation"])


def get_account(request: Request) -> Account | None:
    """Return the account whose token a request carries; None has no limits."""
    return cast("Account | None", request.scope.get("account"))


StateDependency = Annotated[AppState, Depends(get_app_state)]
