"""Sends one request with OpenAI's own package, as a gateway does."""

from base64 import b64decode

from driver import Call, main
from openai import APIStatusError, OpenAI


def connect(call: Call) -> OpenAI:
    return OpenAI(base_url=f"{call.address}/v1", api_key=call.token, max_retries=0, timeout=240)


def generate(call: Call) -> dict:
    """Generate images; `size` is one that NAI has."""
    size = f"{call.request['width']}x{call.request['height']}"
    extra = call.pick("steps", "seed", "sampler")
    response = connect(call).images.generate(
        prompt=call.request["prompt"],
        model="gpt-image-1",
        n=call.request["n_samples"],
        size=size,
        extra_body=extra,
    )
    return call.save([b64decode(image.b64_json or "") for image in response.data or ()], size=response.size)


def refuse(call: Call) -> dict:
    """Ask for a URL."""
    connect(call).images.generate(prompt="a", response_format="url")
    return {}


def models(call: Call) -> dict:
    """List the models."""
    return {"models": [model.id for model in connect(call).models.list()]}


main({"generate": generate, "refuse": refuse, "models": models}, (APIStatusError,))
