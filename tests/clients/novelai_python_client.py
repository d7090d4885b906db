"""Run by novelai-python's own Python: asks a server for one thing and prints what the client made of the answer."""

import asyncio
import json
import sys
from pathlib import Path

from novelai_python import APIError, GenerateImageInfer, Information, Login, Subscription
from novelai_python.credential import ApiCredential, SecretStr
from novelai_python.sdk.ai.generate_image import Model, Sampler


async def ask(asked, address: str, token: str):
    """The client's answer to one of its requests, each of which has an address of its own."""
    asked.endpoint = address
    return await asked.request(session=ApiCredential(api_token=SecretStr(token)))


async def draw(address: str, token: str, folder: Path, request: dict) -> dict:
    """Pictures, saved as they came."""
    own = {"sampler": Sampler(request.pop("sampler")), "qualityToggle": request.pop("quality")}
    samples, start = request.pop("n_samples"), request.pop("start", {"kind": "generate"})
    kind = start.pop("kind")
    model = Model.NAI_DIFFUSION_3_INPAINTING if kind == "infill" else Model.NAI_DIFFUSION_3
    own |= start | {name: Path(start[name]).read_bytes() for name in ("image", "mask") if name in start}
    asked = getattr(GenerateImageInfer, f"build_{kind}")(model=model, **own, **request)
    asked.parameters.n_samples = samples
    answer = await ask(asked, address, token)
    for number, (_, content) in enumerate(answer.files):
        (folder / f"{number}.png").write_bytes(content)
    return {"pictures": len(answer.files)}


async def perform(address: str, token: str, task: str, folder: str, request: str) -> dict:
    """What the client made of the answer; the token of a login is tried out."""
    if task == "picture":
        return await draw(address, token, Path(folder), json.loads(request))
    if task == "login":
        token = (await ask(Login.build(user_name="a@b.c", password=token), address, token)).accessToken
    page = Information() if task == "information" else Subscription()
    return (await ask(page, address, token)).model_dump()


async def main(*arguments: str) -> None:
    """Ask once; a refusal is told by the client's own kind of error."""
    try:
        said = await perform(*arguments)
    except APIError as error:
        said = {"error": type(error).__name__, "says": error.message, "code": error.code}
    print(json.dumps(said))


asyncio.run(main(*sys.argv[1:]))
