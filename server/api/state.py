"""The state that every request shares, and the dependency through which routes get it."""

from dataclasses import dataclass, field, replace
from typing import Annotated, cast

from fastapi import Depends, Request

from server.api.access import AccessRules
from server.api.accounts import Accounts
from server.config.settings import ZipType
from server.engine.engine import Engine
from server.picture.writer import MetadataPolicy
from server.request.resolve import RequestPolicy


@dataclass(frozen=True, slots=True)
class AppState:
    """The engine, and how requests are admitted, read and answered."""

    engine: Engine
    policy: RequestPolicy
    metadata: MetadataPolicy
    access: AccessRules = field(default_factory=AccessRules)
    accounts: Accounts = field(default_factory=Accounts)
    zip_type: ZipType = "auto"  # media type of ZIP responses to `Accept: */*`
    body_limit: int = 64  # MiB
    body_timeout: float = 60.0  # seconds within which the entire body must have arrived
    decode_limit: int = 2  # how many requests may decode images at a time; each may take 0.5 GB meanwhile

    def current_policy(self) -> RequestPolicy:
        """Return the policy for the model as it is known now: what some predict is known only after loading."""
        model = self.engine.model
        return self.policy if model is None else replace(self.policy, model=model)


def app_state(request: Request) -> AppState:
    """Return the state of the application that received a request."""
    return cast("AppState", request.app.state.naiad)


StateDependency = Annotated[AppState, Depends(app_state)]
