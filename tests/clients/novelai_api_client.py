"""Sends one request with novelai-api, whose addresses are constants."""

import io
from base64 import b64encode
from pathlib import Path

import novelai_api._low_level
from aiohttp import ClientSession, ClientTimeout
from driver import Call, main
from novelai_api import NovelAIAPI
from novelai_api.DirectorToolsPreset import DirectorToolsPreset
from novelai_api.ImagePreset import ImageGenerationType, ImageModel, ImagePreset, ImageSampler
from novelai_api.NovelAIError import NovelAIError
from PIL import Image


async def perform(call: Call, operation, password: str = "") -> dict:
    """Perform an operation with a client that has logged in."""
    NovelAIAPI.BASE_ADDRESS = novelai_api._low_level.IMAGE_API_ADDRESS = call.address
    async with ClientSession(timeout=ClientTimeout(240)) as session:
        api = NovelAIAPI(session)
        if password:
            await api.high_level.login("a@b.c", password)
        else:
            await api.high_level.login_with_token(call.token)
        return await operation(call, api)


async def generate(call: Call, api: NovelAIAPI) -> dict:
    """Generate images; the kind follows from the images in the request."""
    images = {name: b64encode(content).decode() for name, content in call.read_images().items()}
    kind = {0: "NORMAL", 1: "IMG2IMG", 2: "INPAINTING"}[len(images)]
    model = ImageModel.Inpainting_Anime_v3 if kind == "INPAINTING" else ImageModel.Anime_v3
    preset = ImagePreset.from_default_config(model)
    preset.update(call.pick("steps", "seed", "n_samples", "strength", "noise") | images)
    preset.resolution = (call.request["width"], call.request["height"])
    preset.sampler, preset.quality_toggle = ImageSampler(call.request["sampler"]), call.request["quality"]
    action = ImageGenerationType[kind]
    received = api.high_level.generate_image(call.request["prompt"], model, preset, action)
    return call.save([content async for _, content in received])


async def suggest_tags(call: Call, api: NovelAIAPI) -> dict:
    """Complete a tag."""
    response = await api.low_level.suggest_tags(call.request["prompt"], ImageModel.Anime_v3)
    return {"tags": [tag["tag"] for tag in response["tags"]]}


async def subscription(_: Call, api: NovelAIAPI) -> dict:
    """Read the subscription."""
    return await api.low_level.get_subscription()


async def upscale(call: Call, api: NovelAIAPI) -> dict:
    """Upscale an image."""
    content = call.read_images()["image"]
    size = Image.open(io.BytesIO(content)).size
    return call.save([(await api.low_level.upscale_image(b64encode(content).decode(), *size, 2))[1]])


async def director(call: Call, api: NovelAIAPI) -> dict:
    """Draw an image as line art."""
    preset = DirectorToolsPreset.from_image(Path(call.request["image"]))
    return call.save([(await api.high_level.line_art(preset))[1]])


main(
    {
        "generate": lambda call: perform(call, generate),
        "img2img": lambda call: perform(call, generate),
        "infill": lambda call: perform(call, generate),
        "tags": lambda call: perform(call, suggest_tags),
        "subscription": lambda call: perform(call, subscription),
        "upscale": lambda call: perform(call, upscale),
        "director": lambda call: perform(call, director),
        "login": lambda call: perform(call, subscription, call.token),
    },
    (NovelAIError,),
)
