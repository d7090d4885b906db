"""Prints the keys that a client can send, as JSON by endpoint. Run by a Python that has the client.

    CLIENT/bin/python tests/clients/list_keys.py

`tests/server/request/client_keys.json` holds the output for each client under its name and version.
"""

import asyncio
import json
from base64 import b64encode
from importlib.metadata import version
from importlib.util import find_spec
from struct import pack

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + pack(">II", 64, 64) + b"\x08\x02\0\0\0"
IMAGE = b64encode(PNG).decode()


def list_novelai_python():
    """The keys of novelai-python: those of its request models, and those it adds to a form."""
    from novelai_python.sdk.ai.augment_image import AugmentImageInfer
    from novelai_python.sdk.ai.encode_vibe import EncodeVibe
    from novelai_python.sdk.ai.generate_image import GenerateImageInfer, split_image_parts
    from novelai_python.sdk.ai.generate_image.params import Params
    from novelai_python.sdk.ai.upscale import Upscale

    images = dict.fromkeys(("image", "mask", "reference_image"), IMAGE)
    lists = {name: [IMAGE] for name in ("reference_image_multiple", "director_reference_images")}
    request = {"parameters": dict.fromkeys(Params.model_fields) | images | lists | {"stream": "msgpack"}}
    split_image_parts(request)
    models = {"upscale": Upscale, "augment-image": AugmentImageInfer, "encode-vibe": EncodeVibe}
    return {
        "generate-image": {
            "body": set(GenerateImageInfer.model_fields) - {"auto_text"},
            "parameters": set(request["parameters"]) | set(Params.model_fields),
        },
        **{name: {"body": set(model.model_fields)} for name, model in models.items()},
    }


class Recorder:
    """Stands in for the HTTP client of novelai-image-mcp and records what it is given to send."""

    is_closed = False

    def __init__(self):
        self.bodies = {}

    async def request(self, method, url, json=None, **_):
        self.bodies[url.rpartition("/")[2]] = json
        return type("Response", (), {"status_code": 200, "content": PNG})


def list_novelai_image_mcp():
    """The keys of novelai-image-mcp: those of requests in which everything is set."""
    from novelai_image_mcp.nai import client, models, payload
    from novelai_image_mcp.nai.auth import NovelAICredentials
    from novelai_image_mcp.nai.constants import Action, ControlNetModel, DirectorTool, Model

    images = dict.fromkeys(("image", "mask", "controlnet_condition"), IMAGE) | {"controlnet_model": "hed"}
    references = {"references": (IMAGE,), "reference_information": (1,), "reference_strengths": (1,)}
    options = {"smea": True, "smea_dynamic": True, "straight_alpha": True, "inpaint_img2img_strength": 1}
    characters = (models.CharacterPrompt("a"),)
    body, parameters = set(), set()
    for model in (Model.V3_INPAINT, Model.V4_5_INPAINT, Model.V5_INPAINT):
        request = models.GenerationRequest(
            "a", model=model, action=Action.INPAINT, character_prompts=characters, **images, **references, **options
        )  # fmt: skip
        sent = payload.build_generation_payload(request)
        body |= set(sent)
        parameters |= set(sent["parameters"])
    plan = models.NovelAIGenerationPlan("a", "b", 64, 64, 1, 5, "k_euler", 1, "a", (), (), use_coords=False)
    for model in (Model.V4_5, Model.V5):
        parameters |= set(payload.build_payload(plan, model=model.value)["parameters"])
    recorder = Recorder()
    nai = client.NovelAIClient(NovelAICredentials(token="pst-" + "a" * 64), http_client=recorder)

    async def call():
        await nai.director(DirectorTool.COLORIZE, PNG)
        await nai.upscale(PNG)
        await nai.annotate(PNG, ControlNetModel.PALETTE_SWAP)
        await nai.encode_vibe(IMAGE, information_extracted=1, model=Model.V4_5)

    asyncio.run(call())
    others = {name: {"body": set(sent)} for name, sent in recorder.bodies.items()}
    others["annotate-image"]["parameters"] = set(recorder.bodies["annotate-image"]["parameters"])
    return {"generate-image": {"body": body, "parameters": parameters}, **others}


CLIENTS = {"novelai_python": list_novelai_python, "novelai_image_mcp": list_novelai_image_mcp}
name = next(module for module in CLIENTS if find_spec(module))
keys = {f"{name.replace('_', '-')} {version(name.replace('_', '-'))}": CLIENTS[name]()}
print(json.dumps(keys, default=sorted, indent=1))
