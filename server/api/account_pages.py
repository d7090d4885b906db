"""The `/user/` routes: the account that NAI's clients read before they generate, and logging in.

The server keeps no accounts of its own. Clients require a subscription that allows generating.
"""

from collections.abc import Mapping

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from server.api.access import generate_token
from server.api.accounts import choose_login_token
from server.api.body import BodyLimits, read_body
from server.api.state import StateDependency, capacity, reservation

LOGIN_LIMIT = 16 * 1024
"""Bytes of a login's body: an access key of 64 characters, and some clients' captcha token."""
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
ACCOUNT_PAGES: Mapping[str, Mapping[str, object]] = {
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
"""Responses of `GET /user/...`: a subscription of the highest tier, everything else empty."""


class AccountResponse(JSONResponse):
    """JSON that names its charset, because an old client takes bare `application/json` for an error."""

    media_type = "application/json; charset=utf-8"


async def get_account_page(page: str) -> Response:
    """A page about the account, which NAI's clients read before they generate."""
    return AccountResponse(ACCOUNT_PAGES[page])


async def log_in(request: Request, state: StateDependency) -> Response:
    """Return the token of a listed access key; if the server needs no tokens, one that grants nothing."""
    limits = BodyLimits(LOGIN_LIMIT, state.body_timeout)
    body = await read_body(request, limits, reservation(request), capacity(request).parsing)
    token = choose_login_token(body.get("key"), state.accounts, needs_token=bool(state.access.tokens))
    return AccountResponse({"accessToken": token}, 201)


async def create_persistent_token(request: Request, state: StateDependency) -> Response:
    """Return the token that the request was authorized with, because it does not expire."""
    token = state.access.find_token(request.headers.get("authorization", ""))
    return AccountResponse({"token": token or generate_token()}, 201)
