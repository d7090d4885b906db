"""The `/user/` routes: the account that NAI's clients read before they generate, and logging in.

Clients require a subscription that allows generating. What they send to be stored is not.
"""

import logging
from collections.abc import Mapping

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from server.api.accounts import Account
from server.api.body import BodyLimits, read_body
from server.api.credentials import generate_token, read_bearer
from server.api.quota import AccountLimits
from server.api.responses import build_warning_headers
from server.api.state import StateDependency, get_account, get_capacity, get_reservation
from server.errors import Rejected, Unauthorized

log = logging.getLogger("naiad")
LOGIN_LIMIT = 16 * 1024
"""Bytes of a login's body: an access key of 64 characters, and some clients' captcha token."""
PRIORITY = {"maxPriorityActions": 1000, "nextRefillAt": 0, "taskPriority": 10}
PLENTY = 10_000
"""Images that an account without a limit is shown to have left."""
SUBSCRIPTION: dict[str, object] = {
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
TRIAL_STATUS: Mapping[str, object] = {
    "used_text_actions": 0,
    "remaining_text_actions": 0,
    "used_image_actions": 0,
    "remaining_image_actions": 0,
    "eligible_for_text_gens": False,
    "eligible_for_image_gens": False,
    "trial_activated": True,
}
"""A trial that has ended, because the subscription takes its place."""
ACCOUNT_PAGES = ("subscription", "information", "priority", "keystore", "giftkeys", "clientsettings", "data")
"""Pages below `/user/`: a subscription of the highest tier with the account's limit, everything else empty."""


class AccountResponse(JSONResponse):
    """JSON that names its charset, because an old client takes bare `application/json` for an error."""

    media_type = "application/json; charset=utf-8"


def build_account_page(page: str, account: Account | None, quotas: AccountLimits) -> Mapping[str, object]:
    """Return the content of one of `ACCOUNT_PAGES`. The account's name is in none of them."""
    subscription = SUBSCRIPTION | build_usage(account, quotas)
    pages: dict[str, Mapping[str, object]] = {
        "subscription": subscription,
        "information": INFORMATION,
        "priority": PRIORITY,
        "keystore": KEYSTORE,
        "giftkeys": {"giftKeys": []},
        "clientsettings": {},
        "data": {
            "priority": PRIORITY,
            "subscription": subscription,
            "keystore": KEYSTORE,
            "settings": "{}",
            "information": INFORMATION,
        },
    }
    return pages[page]


def build_usage(account: Account | None, quotas: AccountLimits) -> dict[str, object]:
    """Return the fields of a subscription that show how many images are left today.

    Clients show `trainingStepsLeft` as the balance, and `percent` as what is left of the allowance.
    """
    limit = None if account is None else account.limit
    if account is None or limit is None:
        left, percent, wait = PLENTY, 100, 0
    else:
        left = max(limit - quotas.count_images(account.name), 0)
        percent = -(-100 * left // limit)  # 0 only if none is left
        wait = 0 if left == limit else quotas.seconds_left()
    return {
        "trainingStepsLeft": {"fixedTrainingStepsLeft": left, "purchasedTrainingSteps": 0},
        "usage": {
            "percent": percent,
            "purchasedPercent": 0,
            "isNegative": left == 0,
            "timeUntilNextPercent": wait,
        },
    }


async def get_account_page(page: str, request: Request) -> Response:
    """A page about the account, which NAI's clients read before they generate."""
    return AccountResponse(build_account_page(page, get_account(request), get_capacity(request).quotas))


async def get_trial_status() -> Response:
    """The state of NAI's free trial, which its page reads."""
    return AccountResponse(TRIAL_STATUS)


async def get_objects(kind: str) -> Response:
    """The stored objects of a kind, such as `promptmacros`: none, because nothing is stored."""
    return AccountResponse({"objects": []})


async def put_client_settings() -> Response:
    """Accept the settings of NAI's page, which it sends unasked, without storing them."""
    return AccountResponse({}, headers=build_warning_headers(["clientsettings: not stored"]))


async def log_in(request: Request, state: StateDependency) -> Response:
    """Return the token of a listed access key; if the server needs no tokens, one that grants nothing."""
    logins, address = get_capacity(request).logins, "" if request.client is None else request.client.host
    logins.check(address)
    limits = BodyLimits(LOGIN_LIMIT, state.body_timeout)
    body = await read_body(request, limits, get_reservation(request), get_capacity(request).parsing)
    key, access = body.get("key"), state.access
    if not isinstance(key, str):
        raise Rejected("key", "is required: the access key derived from e-mail address and password")
    token = access.accounts.find_login_token(key) if access.has_tokens else generate_token()
    if token is None:
        logins.record_failure(address)
        log.warning("a login from %s has failed", address)
        raise Unauthorized
    return AccountResponse({"accessToken": token}, 201)


async def create_persistent_token(request: Request, state: StateDependency) -> Response:
    """Return the token that the request was authorized with, because it does not expire."""
    token = read_bearer(request.headers.get("authorization", "")) if state.access.has_tokens else None
    return AccountResponse({"token": token or generate_token()}, 201)
