"""Sends one request with novelai-python, 0.7 or 0.9."""

from driver import Call, main
from novelai_python import (
    APIError,
    AugmentImageInfer,
    GenerateImageInfer,
    Information,
    Login,
    Subscription,
    SuggestTags,
    Upscale,
)
from novelai_python.credential import ApiCredential, SecretStr
from novelai_python.sdk.ai.augment_image import ReqType
from novelai_python.sdk.ai.generate_image import Model, Sampler


def log_in(call: Call, token: str = "") -> ApiCredential:
    """Return the credential that goes with every request."""
    return ApiCredential(api_token=SecretStr(token or call.token))


async def send(call: Call, request, token: str = ""):
    """Send one of the client's requests; the address is an attribute of each request."""
    request.endpoint = call.address
    return await request.request(session=log_in(call, token))


def build_request(call: Call, kind: str) -> GenerateImageInfer:
    """Return the client's own request."""
    model = Model.NAI_DIFFUSION_3_INPAINTING if kind == "infill" else Model.NAI_DIFFUSION_3
    fields = call.pick("prompt", "width", "height", "steps", "seed", "strength", "noise") | call.read_images()
    if kind == "generate" and (image := fields.pop("image", None)):
        fields |= {"reference_image_multiple": [image], "reference_strength_multiple": [0.6]}
        fields["reference_information_extracted_multiple"] = [1.0]
    options = {"sampler": Sampler(call.request["sampler"]), "qualityToggle": call.request["quality"]}
    generation = getattr(GenerateImageInfer, f"build_{kind}")(model=model, **options, **fields)
    generation.parameters.n_samples = call.request["n_samples"]
    generation.endpoint = call.address
    return generation


async def generate(call: Call, kind: str = "generate") -> dict:
    """Generate images, in one response."""
    response = await send(call, build_request(call, kind))
    return call.save([content for _, content in response.files])


async def stream(call: Call) -> dict:
    """Generate images as a stream of msgpack frames; 0.7 cannot."""
    events = [event async for event in build_request(call, "generate").request_stream(session=log_in(call))]
    finals = [event.image for event in events if event.is_final]
    return call.save(finals, previews=len(events) - len(finals))


async def suggest_tags(call: Call) -> dict:
    """Complete a tag; 0.7 needs an open session, it fails with a credential."""
    request = SuggestTags(model=Model.NAI_DIFFUSION_3, prompt=call.request["prompt"])
    request.endpoint = call.address
    response = await request.request(session=await log_in(call).get_session())
    return {"tags": [tag.tag for tag in response.tags]}


async def read(call: Call, request, token: str = "") -> dict:
    """Read one of the account's pages."""
    return (await send(call, request, token)).model_dump()


async def log_in_with_password(call: Call) -> dict:
    """Read the subscription with the token that a login returns."""
    login = await send(call, Login.build(user_name="a@b.c", password=call.token))
    return await read(call, Subscription(), login.accessToken)


async def upscale(call: Call) -> dict:
    """Upscale an image: 0.7 by the scale it sends, 0.9 without a scale."""
    response = await send(call, Upscale(image=call.read_images()["image"], scale=2))
    return call.save([response.files[1]])


async def director(call: Call) -> dict:
    """Draw an image as line art."""
    request = AugmentImageInfer.build(image=call.read_images()["image"], req_type=ReqType.LINEART)
    return call.save([content for _, content in (await send(call, request)).files])


main(
    {
        "generate": generate,
        "img2img": lambda call: generate(call, "img2img"),
        "infill": lambda call: generate(call, "infill"),
        "stream": stream,
        "tags": suggest_tags,
        "subscription": lambda call: read(call, Subscription()),
        "information": lambda call: read(call, Information()),
        "upscale": upscale,
        "director": director,
        "login": log_in_with_password,
    },
    (APIError,),
)
