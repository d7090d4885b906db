"""Sends one request to a server with novelai-python and prints the result. Run by a Python that has novelai-python."""

import asyncio
import json
import sys
from pathlib import Path

from novelai_python import APIError, GenerateImageInfer, Information, Login, Subscription
from novelai_python.credential import ApiCredential, SecretStr
from novelai_python.sdk.ai.generate_image import Model, Sampler


async def send(request, address: str, token: str):
    """Send one of the client's requests; the address is an attribute of each request."""
    request.endpoint = address
    return await request.request(session=ApiCredential(api_token=SecretStr(token)))


async def generate(address: str, token: str, folder: Path, request: dict) -> dict:
    """Generate images and save their files unchanged."""
    options = {"sampler": Sampler(request.pop("sampler")), "qualityToggle": request.pop("quality")}
    samples, start = request.pop("n_samples"), request.pop("start", {"kind": "generate"})
    kind = start.pop("kind")
    model = Model.NAI_DIFFUSION_3_INPAINTING if kind == "infill" else Model.NAI_DIFFUSION_3
    options |= start | {name: Path(start[name]).read_bytes() for name in ("image", "mask") if name in start}
    generation = getattr(GenerateImageInfer, f"build_{kind}")(model=model, **options, **request)
    generation.parameters.n_samples = samples
    response = await send(generation, address, token)
    for number, (_, content) in enumerate(response.files):
        (folder / f"{number}.png").write_bytes(content)
    return {"images": len(response.files)}


async def perform(address: str, token: str, operation: str, folder: str, parameters: str) -> dict:
    """Perform one operation; "login" reads the subscription with the token it receives."""
    if operation == "generate":
        return await generate(address, token, Path(folder), json.loads(parameters))
    if operation == "login":
        token = (await send(Login.build(user_name="a@b.c", password=token), address, token)).accessToken
    request = Information() if operation == "information" else Subscription()
    return (await send(request, address, token)).model_dump()


async def main(*arguments: str) -> None:
    """Send one request and print its result, or the name and message of the client's own exception."""
    try:
        result = await perform(*arguments)
    except APIError as error:
        result = {"error": type(error).__name__, "message": error.message, "code": error.code}
    print(json.dumps(result))


asyncio.run(main(*sys.argv[1:]))
