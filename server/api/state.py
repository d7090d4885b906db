"""The state that every request shares, and the dependencies through which routes get it."""

import asyncio
from dataclasses import dataclass, field, replace
from typing import Annotated, cast

from fastapi import Depends, Request

from server.api.access import AccessRules
from server.api.accounts import Accounts
from server.api.body import BodyLimits
from server.api.memory import DECODE_LIMIT, MIB, Memory, Reservation, memory_for_bodies
from server.config.settings import ZipType
from server.engine.engine import Engine
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
    accounts: Accounts = field(default_factory=Accounts)
    tags: TagLibrary = field(default_factory=lambda: TagLibrary(read_known_tags))
    zip_type: ZipType = "auto"  # media type of ZIP responses to `Accept: */*`
    body_limit: int = 64  # MiB
    body_timeout: float = 60.0  # seconds within which the entire body must have arrived
    memory_limit: int = 4096  # MiB that all requests together may hold
    decode_limit: int = DECODE_LIMIT  # how many requests may decode images at a time

    def current_policy(self) -> RequestPolicy:
        """Return the policy for the model as it is known now: what some predict is known only after loading."""
        model = self.engine.model
        return self.policy if model is None else replace(self.policy, model=model)

    @property
    def body_limits(self) -> BodyLimits:
        """Limits of the bodies that may hold images."""
        return BodyLimits(self.body_limit * MIB, self.body_timeout)


class Capacity:
    """What all requests share: memory, one slot for parsing a body, and slots for decoding images."""

    def __init__(self, state: AppState) -> None:
        size = memory_for_bodies(state.memory_limit, state.body_limit, state.decode_limit)
        self.memory = Memory(size * MIB)
        self.parsing = asyncio.Semaphore()
        self.decoding = asyncio.Semaphore(state.decode_limit)


def app_state(request: Request) -> AppState:
    """Return the state of the application that received a request."""
    return cast("AppState", request.app.state.naiad)


def capacity(request: Request) -> Capacity:
    """Return the capacity of the application that received a request."""
    return cast("Capacity", request.app.state.capacity)


def reservation(request: Request) -> Reservation:
    """Return what a request holds of the memory; the middleware gives it back once the response has been sent."""
    return cast("Reservation", request.scope["reservation"])


StateDependency = Annotated[AppState, Depends(app_state)]
