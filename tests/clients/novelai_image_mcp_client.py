"""Calls one tool of novelai-image-mcp, as a model's host does, with only its environment variables set."""

import ast
import json
import os
from base64 import b64encode
from pathlib import Path

from driver import Call, main
from fastmcp import Client
from fastmcp.exceptions import ToolError
from novelai_image_mcp.nai import GenerationRequest, Model, NovelAIClient, NovelAICredentials, NovelAIError
from novelai_image_mcp.server import mcp


def set_environment(call: Call, **credentials: str) -> None:
    """Set the variables that novelai-image-mcp reads when its server starts."""
    addresses = dict.fromkeys(("IMAGE_BASE_URL", "ACCOUNT_BASE_URL", "LEGACY_IMAGE_BASE_URL"), call.address)
    settings = addresses | {"OUTPUT_DIR": str(call.folder)} | (credentials or {"TOKEN": call.token})
    os.environ.update({f"NOVELAI_{name}": value for name, value in settings.items()})


async def call_tool(call: Call, name: str, credentials: dict[str, str] | None = None, **arguments: object):
    """Call a tool and return its content."""
    set_environment(call, **credentials or {})
    async with Client(mcp) as client:
        return (await client.call_tool(name, arguments)).content


def save(call: Call, content: list) -> dict:
    """Save the images that the tool has written, whose paths its text lists."""
    paths = content[-1].text.partition(": ")[2]
    files = ast.literal_eval(paths) if paths.startswith("[") else [paths]
    return call.save([Path(file).read_bytes() for file in files])


def encode_images(call: Call) -> dict[str, str]:
    """Return the request's images in Base64."""
    return {name: b64encode(content).decode() for name, content in call.read_images().items()}


async def generate(call: Call, tool: str, model: str) -> dict:
    """Generate images with one of the tools."""
    names = (
        "prompt",
        "width",
        "height",
        "steps",
        "seed",
        "sampler",
        "n_samples",
        "quality",
        "strength",
        "noise",
    )
    arguments = call.pick(*names) | encode_images(call)
    return save(call, await call_tool(call, tool, model=model, **arguments))


async def stream(call: Call) -> dict:
    """Generate images with a V4.5 model, which its client requests as a stream."""
    request = GenerationRequest(
        model=Model.V4_5,
        **call.pick("prompt", "quality", "width", "height", "steps", "seed", "sampler", "n_samples"),
    )
    client = NovelAIClient(NovelAICredentials(token=call.token), image_base_url=call.address)
    events = [event async for event in client.stream_generation(request)]
    await client.aclose()
    finals = [event.image.data for event in events if event.event_type == "final"]
    return call.save(finals, previews=len(events) - len(finals))


async def read(call: Call, tool: str, credentials: dict[str, str] | None = None) -> dict:
    """Read one of the account's pages."""
    return json.loads((await call_tool(call, tool, credentials))[0].text)


async def suggest_tags(call: Call) -> dict:
    """Complete a tag."""
    content = await call_tool(call, "suggest_tags", prompt=call.request["prompt"], model="nai-diffusion-3")
    return {"tags": [tag["tag"] for tag in json.loads(content[0].text)]}


async def transform(call: Call, name: str, **arguments: object) -> dict:
    """Upscale an image, or use a director tool."""
    return save(call, await call_tool(call, name, **encode_images(call), **arguments))


main(
    {
        "generate": lambda call: generate(call, "generate_image", "nai-diffusion-3"),
        "img2img": lambda call: generate(call, "image_to_image", "nai-diffusion-3"),
        "infill": lambda call: generate(call, "inpaint", "nai-diffusion-3-inpainting"),
        "stream": stream,
        "tags": suggest_tags,
        "subscription": lambda call: read(call, "get_subscription"),
        "data": lambda call: read(call, "get_user_data"),
        "upscale": lambda call: transform(call, "upscale_image"),
        "director": lambda call: transform(call, "director_tool", tool="lineart"),
        "login": lambda call: read(call, "get_subscription", {"USERNAME": "a@b.c", "PASSWORD": call.token}),
    },
    (ToolError, NovelAIError),
)
