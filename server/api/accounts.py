"""`tokens.toml`: who may log in, and the account pages that NAI's clients read before they draw.

There are no accounts in earnest here. Clients want to see a subscription that allows drawing, and some turn a
name and a password into an access key and log in with that: a listed key gets its token, any other gets 401.
"""

from collections.abc import Mapping
from hmac import compare_digest
from pathlib import Path
from typing import Annotated

from pydantic import Field

from server.api.access import generate_token
from server.config.toml import StrictModel, read_toml, validate
from server.errors import Rejected, Unauthorized

Secret = Annotated[str, Field(pattern=r"^[!-~]{8,200}$")]

PRIORITY = {"maxPriorityActions": 1000, "nextRefillAt": 0, "taskPriority": 10}
SUBSCRIPTION: Mapping[str, object] = {
    "tier": 3,
    "active": True,
    "expiresAt": 4_102_444_800,
    "isGracePeriod": False,
    "perks": {
        "maxPriorityActions": 1000,
        "startPriority": 10,
        "moduleTrainingSteps": 10_000,
        "unlimitedMaxPriority": True,
        "voiceGeneration": True,
        "imageGeneration": True,
        "unlimitedImageGeneration": True,
        "unlimitedImageGenerationLimits": [
            {"resolution": 4_194_304, "maxPrompts": 0},
            {"resolution": 1_048_576, "maxPrompts": 1},
        ],
        "contextTokens": 8192,
    },
    "paymentProcessorData": None,
    "trainingStepsLeft": {"fixedTrainingStepsLeft": 10_000, "purchasedTrainingSteps": 0},
    "accountType": 0,
}
INFORMATION = {
    "emailVerified": True,
    "emailVerificationLetterSent": True,
    "trialActivated": True,
    "trialActionsLeft": 0,
    "trialImagesLeft": 0,
    "accountCreatedAt": 0,
}
KEYSTORE = {"keystore": "", "changeIndex": 0}
PAGES: Mapping[str, Mapping[str, object]] = {
    "subscription": SUBSCRIPTION,
    "information": INFORMATION,
    "priority": PRIORITY,
    "keystore": KEYSTORE,
    "data": {
        "priority": PRIORITY,
        "subscription": SUBSCRIPTION,
        "keystore": KEYSTORE,
        "settings": "{}",
        "information": INFORMATION,
    },
}
"""What `/user/…` answers: a subscription of the highest tier, and otherwise an empty house."""


class Account(StrictModel):
    """One who may log in: the access key that clients make of a name and a password, and the token it is worth."""

    name: str
    key: Secret
    token: Secret


class Accounts(StrictModel):
    """The accounts of a server."""

    account: tuple[Account, ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """The token of each."""
        return tuple(account.token for account in self.account)


def load_accounts(file: Path) -> Accounts:
    """Read tokens.toml.

    Raises:
        ConfigError: an unknown key, or a key or token that cannot be one.
    """
    return validate(Accounts, read_toml(file), str(file))


def log_in(key: object, accounts: Accounts, is_open: bool) -> str:
    """The token a login is answered with; where everybody may come in a random one, which opens nothing.

    Raises:
        Rejected: the key is no text.
        Unauthorized: nobody with this key is listed.
    """
    if not isinstance(key, str):
        raise Rejected("key", "is required: the access key made of name and password")
    if is_open:
        return generate_token()
    sent = key.encode("utf-8", "replace")
    found = [account.token for account in accounts.account if compare_digest(sent, account.key.encode())]
    if not found:
        raise Unauthorized
    return found[0]
