"""Sends one request with nekoai-api."""

from driver import Call, main
from nekoai import NovelAI
from nekoai.constant import Model
from nekoai.exceptions import NovelAIError
from nekoai.imaging import parse_image


def connect(**settings) -> NovelAI:
    """Return a client that does not repeat a request that got status 429."""
    return NovelAI(max_retries=0, **settings)


async def open_client(call: Call, **credentials: str) -> NovelAI:
    """Return a client that is ready to send; the default timeout is 30 seconds."""
    client = connect(host=call.address, api_host=call.address, **credentials or {"token": call.token})
    await client.init(timeout=240)
    return client


def build_request(call: Call, **fields: object) -> dict:
    """Return the client's own names and values for the request."""
    request = call.pick(
        "prompt", "width", "height", "steps", "seed", "sampler", "n_samples", "strength", "noise"
    )
    images = {name: parse_image(content)[2] for name, content in call.read_images().items()}
    return request | images | {"qualityToggle": call.request["quality"]} | fields


async def generate(call: Call, **fields: object) -> dict:
    """Generate images with a V3 model, in one response."""
    async with await open_client(call) as client:
        fields = {"model": Model.V3} | fields
        images = await client.generate_image(**build_request(call, **fields))
    return call.save([image.data for image in images])


async def stream(call: Call) -> dict:
    """Generate images with a V4.5 model, the only ones that it requests as a stream."""
    async with await open_client(call) as client:
        events = client.generate_image_stream(**build_request(call, model=Model.V4_5))
        received = [(event.event_type.value, event.image.data) async for event in events]
    finals = [image for kind, image in received if kind == "final"]
    return call.save(finals, previews=len(received) - len(finals))


async def suggest_tags(call: Call) -> dict:
    """Complete a tag."""
    async with await open_client(call) as client:
        tags = await client.suggest_tags(call.request["prompt"], model=Model.V3)
    return {"tags": [tag["tag"] for tag in tags]}


async def subscription(call: Call, **credentials: str) -> dict:
    """Read the subscription."""
    async with await open_client(call, **credentials) as client:
        return await client.get_subscription()


async def data(call: Call) -> dict:
    """Read the account's data."""
    async with await open_client(call) as client:
        return await client.get_user_data()


async def upscale(call: Call) -> dict:
    """Upscale an image."""
    async with await open_client(call) as client:
        return call.save([(await client.upscale(call.request["image"], scale=2)).data])


async def director(call: Call) -> dict:
    """Draw an image as line art."""
    async with await open_client(call) as client:
        return call.save([(await client.lineart(call.request["image"])).data])


main(
    {
        "generate": generate,
        "img2img": lambda call: generate(call, action="img2img"),
        "infill": lambda call: generate(call, action="infill", model=Model.V3_INP),
        "stream": stream,
        "tags": suggest_tags,
        "subscription": subscription,
        "data": data,
        "upscale": upscale,
        "director": director,
        "login": lambda call: subscription(call, username="a@b.c", password=call.token),
    },
    (NovelAIError,),
)
