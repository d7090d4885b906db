"""Run by nekoai-api's own Python: asks a server for one thing and prints what the client made of the answer."""

import asyncio
import json
import sys

from nekoai import NovelAI
from nekoai.exceptions import NovelAIError
from nekoai.imaging import parse_image


async def ask(client: NovelAI, task: str, folder: str, request: dict) -> dict:
    """What the client made of the answer; a login has happened before, and is tried out here."""
    if task in ("subscription", "login"):
        return await client.get_subscription()
    if task == "data":
        return await client.get_user_data()
    quality = request.pop("quality")
    request |= {"model": "nai-diffusion-3", "qualityToggle": quality}
    if start := request.pop("start", None):
        request["action"] = kind = start.pop("kind")
        request["model"] += "-inpainting" if kind == "infill" else ""
        pictures = {name: start.pop(name) for name in ("image", "mask") if name in start}
        request |= start | {name: parse_image(file)[2] for name, file in pictures.items()}
    images = await client.generate_image(**request)
    for number, image in enumerate(images):
        image.save(folder, f"{number}.png")
    return {"pictures": len(images)}


async def main(address: str, token: str, task: str, folder: str, request: str) -> None:
    """Ask once; a refusal is told by the client's own kind of error."""
    known = {"username": "a@b.c", "password": token} if task == "login" else {"token": token}
    client = NovelAI(**known, host=address, api_host=address)
    try:
        await client.init(timeout=240)  # it gives up after 30 seconds otherwise
        said = await ask(client, task, folder, json.loads(request))
    except NovelAIError as error:
        said = {"error": type(error).__name__, "says": str(error)}
    finally:
        await client.close()
    print(json.dumps(said))


asyncio.run(main(*sys.argv[1:]))
