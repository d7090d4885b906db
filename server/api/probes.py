"""Liveness and readiness probes, and what the server publishes: its models and its key."""

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from server.api.error_responses import ErrorResponse
from server.api.jobs import run_in_slot
from server.api.state import StateDependency, get_capacity
from server.engine.engine import State
from server.engine.inversions import build_inversion_cards
from server.engine.loras import build_lora_cards
from server.engine.model import ServedModel
from server.errors import NotFound


async def get_root() -> dict[str, str]:
    """Answer the clients that check whether the address responds."""
    return {"name": "naiad"}


async def get_live() -> dict[str, str]:
    """Liveness probe: 200 while the process responds, in any state of the engine."""
    return {"status": "alive"}


async def get_ready(state: StateDependency) -> JSONResponse:
    """Readiness probe: 200 when jobs are accepted, else 503."""
    engine = state.engine
    if engine.state is State.READY:
        return JSONResponse({"state": engine.state.value, "waiting": engine.waiting})
    state_name = engine.state.value
    message = engine.failure or f"the engine is {state_name}"
    return ErrorResponse(503, message, details={"state": state_name})


async def get_metrics(request: Request, state: StateDependency) -> Response:
    """The server's metrics in Prometheus' text format, or in OpenMetrics if `Accept` asks for it."""
    content, media_type = state.metrics.render(state.engine, request.headers.get("accept", ""))
    return Response(content, media_type=media_type)


async def get_models(request: Request, state: StateDependency) -> dict[str, object]:
    """The models with the evidence for what they are, and the LoRAs and textual inversions that requests may name."""
    policy, engine = state.current_policy(), state.engine
    cards = [each.card() | {"loaded": engine.find_place(each.id)} for each in policy.models]
    cards += [{"id": name, "problem": problem} for name, problem in policy.problems.items()]
    files = await run_in_slot(request, get_capacity(request).listing, _list_files, policy.model)
    return {"models": cards, **files}


def _list_files(model: ServedModel) -> dict[str, object]:
    """Return the entries of the files that requests may name; for large folders that takes minutes the first time."""
    loras, inversions = build_lora_cards(model.lora_folder), build_inversion_cards(model.inversion_folder)
    return {"loras": loras, "inversions": inversions}


async def get_key(state: StateDependency) -> JSONResponse:
    """The public key that this server signs its images with."""
    if state.metadata.key is None:
        raise NotFound("this server does not sign its images (setting metadata)")
    return JSONResponse({"algorithm": "Ed25519", "key": state.metadata.key.public})
