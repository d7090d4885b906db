"""Sends one request to a server with nekoai-api and prints the result. Run by a Python that has nekoai-api."""

import asyncio
import json
import sys

from nekoai import NovelAI
from nekoai.exceptions import NovelAIError
from nekoai.imaging import parse_image


async def perform(client: NovelAI, operation: str, folder: str, request: dict) -> dict:
    """Perform one operation; "login" reads the subscription, as the client has logged in before."""
    if operation in ("subscription", "login"):
        return await client.get_subscription()
    if operation == "data":
        return await client.get_user_data()
    quality = request.pop("quality")
    request |= {"model": "nai-diffusion-3", "qualityToggle": quality}
    if start := request.pop("start", None):
        request["action"] = kind = start.pop("kind")
        request["model"] += "-inpainting" if kind == "infill" else ""
        files = {name: start.pop(name) for name in ("image", "mask") if name in start}
        request |= start | {name: parse_image(file)[2] for name, file in files.items()}
    images = await client.generate_image(**request)
    for number, image in enumerate(images):
        image.save(folder, f"{number}.png")
    return {"images": len(images)}


async def main(address: str, token: str, operation: str, folder: str, request: str) -> None:
    """Send one request and print its result, or the name and message of the client's own exception."""
    credentials = {"username": "a@b.c", "password": token} if operation == "login" else {"token": token}
    client = NovelAI(**credentials, host=address, api_host=address)
    try:
        await client.init(timeout=240)  # the default is 30 seconds
        result = await perform(client, operation, folder, json.loads(request))
    except NovelAIError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    finally:
        await client.close()
    print(json.dumps(result))


asyncio.run(main(*sys.argv[1:]))
