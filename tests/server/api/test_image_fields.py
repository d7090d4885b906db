"""Images as parts of a form, and images that are named by a key after they were sent once."""

import json
import tracemalloc
from base64 import b64encode
from io import BytesIO
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from fake_model import GENERATE, build_state, read_comment, start_client, unzip_images
from PIL import Image

from pipelines.job import InitImage, UpscaleJob
from server.api.form import split_form
from server.api.image_cache import ImageCache
from server.api.image_fields import attach_parts, find_image_fields, recall_images
from server.errors import Rejected, UnknownKeys

SIZE = {"width": 64, "height": 64, "steps": 1, "seed": 7, "params_version": 4}


def build_png(color, size=(64, 64)):
    file = BytesIO()
    Image.new("RGB", size, color).save(file, "PNG")
    return file.getvalue()


RED, BLUE, WHITE = build_png("red"), build_png("blue"), build_png("white")


@pytest.fixture
def client(model, fake_model):
    state = build_state(model, fake_model)
    with start_client(state) as client:
        yield client


def build_form(request, order=None, **parts):
    """Return the files of a form, by default images first, as NAI's page sends it."""
    files = {name: ("blob", content, "image/png") for name, content in parts.items()}
    files["request"] = ("blob", json.dumps(request), "application/json")
    return [(name, files[name]) for name in order or files]


def build_request(action, **parameters):
    model = "nai-diffusion-3-inpainting" if action == "infill" else "nai-diffusion-3"
    return {"input": "1girl", "model": model, "action": action, "parameters": SIZE | parameters}


def post(client, request, path=GENERATE, order=None, **parts):
    return client.post(path, files=build_form(request, order, **parts))


def find_color(job):
    """The RGB color of the first pixel of a job's init image."""
    image = job.image if isinstance(job, UpscaleJob) else job.passes[0].init.image
    return tuple(image.rgb[:3])


@pytest.mark.parametrize("order", list(permutations(["image", "mask", "request"])))
def test_parts_are_found_by_name_in_any_order(client, fake_model, order):
    request = build_request("infill", image="image", mask="mask")
    response = post(client, request, order=order, image=RED, mask=WHITE)
    assert response.status_code == 200, response.text
    (job,) = fake_model.jobs
    assert find_color(job) == (255, 0, 0)
    assert set(job.passes[0].init.mask) == {255}
    assert read_comment(response)["request_type"] == "NativeInfillingRequest"


def test_a_part_may_have_any_name_and_be_named_twice(client, fake_model):
    request = build_request("infill", image="p.1 é", mask="p.1 é")
    parts: dict[str, Any] = {"p.1 é": WHITE, "other": b""}
    assert post(client, request, **parts).status_code == 200
    assert find_color(fake_model.jobs[0]) == (255, 255, 255)


def test_a_form_gives_the_same_image_as_json(client):
    sent = {"image": b64encode(RED).decode(), "strength": 0.5}
    json_response = client.post(GENERATE, json=build_request("img2img", **sent))
    form_response = post(client, build_request("img2img", **sent | {"image": "image"}), image=RED)
    assert read_comment(form_response) == read_comment(json_response)
    pixels = [unzip_images(response)["image_0.png"].tobytes() for response in (form_response, json_response)]
    assert pixels[0] == pixels[1]


@pytest.mark.parametrize(
    "text", [b64encode(RED).decode(), "data:image/png;base64," + b64encode(RED).decode()]
)
def test_base64_in_a_form_is_read(client, fake_model, text):
    response = post(client, build_request("img2img", image=text), unused=b"")
    assert response.status_code == 200, response.text
    assert find_color(fake_model.jobs[0]) == (255, 0, 0)


def test_a_plain_text_part_holds_the_request_too(client, fake_model):
    data = {"request": json.dumps(build_request("img2img", image="image"))}
    response = client.post(GENERATE, data=data, files={"image": ("blob", RED, "image/png")})
    assert response.status_code == 200, response.text
    assert isinstance(fake_model.jobs[0].passes[0].init, InitImage)


def test_the_upscaler_reads_parts(client, fake_model):
    request = {"image": "image", "model": "nai-diffusion-5-full", "declared_blur_sigma": 0}
    response = post(client, request, "/ai/upscale", image=BLUE)
    assert response.status_code == 200, response.text
    assert find_color(fake_model.jobs[0]) == (0, 0, 255)
    assert len(unzip_images(response)) == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"image": "picture"}, 'image field references unknown form part "picture"; parameters.image must name a part or be Base64; parts: \'image\''),
        ({"image": "mask"}, 'image field references unknown form part "mask"'),
        ({"image": "image", "mask": "https://example.org/a.png"}, 'mask field references unknown form part "https://example.org/a.png"'),
        ({"image": 'a"\n\x1b' + "b" * 190}, 'image field references unknown form part "a\\"\\n\\u001b' + "b" * 76 + '"'),
        ({"image": "image", "reference_image_multiple": ["image", "ref_multiple_1"]}, 'reference_image_multiple field references unknown form part "ref_multiple_1"; parameters.reference_image_multiple.1'),
        ({"image": "image", "director_reference_images_cached": [{"cache_secret_key": "k", "data": "ref"}]}, "parameters.director_reference_images_cached.0.data must"),
    ],
)  # fmt: skip
def test_an_unknown_part_is_refused_by_name(client, parameters, message):
    response = post(client, build_request("img2img", **parameters), image=RED)
    assert response.status_code == 400
    assert message in response.json()["message"]


def test_a_part_that_is_no_image_is_refused_as_an_image(client):
    response = post(client, build_request("img2img", image="image"), image=b"GIF89a")
    assert (response.status_code, response.json()["message"]) == (
        400,
        "parameters.image: not a PNG, WebP or JPEG image",
    )


def test_other_texts_are_no_names_of_parts():
    body = {"input": "image", "action": "mask", "parameters": {"prompt": "image", "image": "image", "extra": ["image"]}}  # fmt: skip
    attach_parts(body, {"image": RED, "mask": b""})
    assert body == {"input": "image", "action": "mask", "parameters": {"prompt": "image", "image": RED, "extra": ["image"]}}  # fmt: skip


def test_a_part_that_no_field_names_is_refused(client):
    response = post(client, build_request("img2img", image="image"), image=RED, mask=WHITE)
    message = 'form part "mask" is not named by any image field; name it in one, or leave it out'
    assert (response.status_code, response.json()["message"]) == (400, message)


def test_encoding_a_vibe_without_an_adapter_is_refused_by_name(client):
    response = client.post("/ai/encode-vibe", json={"image": "AAAA", "model": "nai-diffusion-4-5-full"})
    message = "image: remove the reference images; the model has no image adapter (`vibe` in the catalog)"
    assert (response.status_code, response.json()["message"]) == (400, message)


@pytest.mark.parametrize("parameters", [None, [], 1, {"reference_image_multiple": {"a": 1}, "director_reference_images_cached": [1, None, {}]}])  # fmt: skip
def test_sections_of_the_wrong_type_have_no_image_fields(parameters):
    assert all(field.value is None for field in find_image_fields({"parameters": parameters, "image": None}))


# the handshake of the cache


def sign_in(token):
    return {"headers": {"Authorization": f"Bearer {token}"}}


class PageClient:
    """Sends images as NAI's page does: once with data, then by key, and again with data when asked for it."""

    def __init__(self, client, token="pst-one"):
        self.client, self.options, self.sent, self.posts = client, sign_in(token), set(), 0

    def draw(self, **images):
        """Return the response to an img2img or infill of these images, by field."""
        response = self._post(images, {name for name in images if (name, images[name]) not in self.sent})
        if response.status_code == 400 and response.json()["message"] == "INVALID_CACHE_KEYS":
            asked = response.json()["details"]["invalidKeys"]
            response = self._post(images, {name for name in images if build_key(images[name]) in asked})
        if response.status_code == 200:
            self.sent |= set(images.items())
        return response

    def _post(self, images, names):
        self.posts += 1
        keys = {f"{name}_cache_secret_key": build_key(image) for name, image in images.items()}
        action = "infill" if "mask" in images else "img2img"
        request = build_request(action, **keys, **{name: name for name in names})
        files = build_form(request, **{name: images[name] for name in names})
        return self.client.post(GENERATE, files=files, **self.options)


def build_key(image):
    """A key of the client's own making: nothing the server can compute."""
    return f"key-{sum(image)}-{len(image)}"


def test_a_client_that_obeys_sends_an_image_once(client, fake_model):
    page = PageClient(client)
    assert [page.draw(image=RED, mask=WHITE).status_code for _ in range(3)] == [200] * 3
    assert page.draw(image=BLUE, mask=WHITE).status_code == 200
    assert page.posts == 4
    assert [find_color(job) for job in fake_model.jobs] == [(255, 0, 0)] * 3 + [(0, 0, 255)]


def test_a_client_that_obeys_sends_again_what_was_dropped(client, fake_model):
    page = PageClient(client)
    page.sent |= {("image", RED), ("mask", WHITE)}  # as after a restart of the server
    assert page.draw(image=RED, mask=WHITE).status_code == 200
    assert page.posts == 2
    assert page.draw(image=RED, mask=WHITE).status_code == 200
    assert page.posts == 3


def test_a_client_that_does_not_obey_gets_the_same_answer_again(client, fake_model):
    request = build_request("infill", image_cache_secret_key="a" * 64, mask_cache_secret_key="b" * 64)
    answers = [client.post(GENERATE, json=request) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {400}
    expected = {"statusCode": 400, "message": "INVALID_CACHE_KEYS", "details": {"invalidKeys": ["a" * 64, "b" * 64]}}  # fmt: skip
    assert [answer.json() for answer in answers] == [expected] * 5
    assert fake_model.jobs == []
    assert PageClient(client).draw(image=RED).status_code == 200


def test_each_token_has_entries_of_its_own(client):
    request = build_request("img2img", image="image", image_cache_secret_key="key")
    assert (
        client.post(GENERATE, files=build_form(request, image=RED), **sign_in("pst-one")).status_code == 200
    )
    del request["parameters"]["image"]
    assert client.post(GENERATE, json=request, **sign_in("pst-one")).status_code == 200
    for options in (sign_in("pst-two"), {}):
        assert client.post(GENERATE, json=request, **options).json()["message"] == "INVALID_CACHE_KEYS"


def test_json_with_base64_fills_the_cache_too(client, fake_model):
    body = build_request("img2img", image=b64encode(RED).decode(), image_cache_secret_key="key")
    assert client.post(GENERATE, json=body).status_code == 200
    body["parameters"]["image"] = None
    assert client.post(GENERATE, json=body).status_code == 200
    assert [find_color(job) for job in fake_model.jobs] == [(255, 0, 0)] * 2


def test_a_key_is_not_trusted_to_say_what_an_image_is(client, fake_model):
    for image in (RED, BLUE):
        request = build_request("img2img", image="image", image_cache_secret_key="key")
        assert post(client, request, image=image).status_code == 200
    del request["parameters"]["image"]
    assert client.post(GENERATE, json=request).status_code == 200
    assert [find_color(job) for job in fake_model.jobs] == [(255, 0, 0), (0, 0, 255), (0, 0, 255)]


@pytest.mark.parametrize("content", [b"junk", RED[:-30], b"\x89PNG\r\n\x1a\n"])
def test_what_cannot_be_decoded_is_not_kept(client, content):
    request = build_request("img2img", image="image", image_cache_secret_key="key")
    assert post(client, request, image=content).status_code == 400
    del request["parameters"]["image"]
    assert client.post(GENERATE, json=request).json()["message"] == "INVALID_CACHE_KEYS"


def test_a_field_that_is_not_used_may_hold_anything(client):
    keys = {"image_cache_secret_key": "image", "mask_cache_secret_key": "mask"}
    body = build_request("img2img", image=b64encode(RED).decode(), mask="junk", **keys)
    response = client.post(GENERATE, json=body)
    assert response.status_code == 200
    assert response.headers["X-Naiad-Warning"] == "mask: has no effect with img2img, only with infill"
    del body["parameters"]["image"], body["parameters"]["mask"]
    assert client.post(GENERATE, json=body).json()["details"] == {"invalidKeys": ["mask"]}


def test_a_switched_off_cache_asks_for_each_image(model, fake_model):
    state = build_state(model, fake_model, image_cache=0)
    with start_client(state) as client:
        page = PageClient(client)
        assert [page.draw(image=RED).status_code for _ in range(3)] == [200] * 3
        assert page.posts == 5


@pytest.mark.parametrize("key", [1, ["a"], "x" * 201])
def test_a_key_that_is_no_text_is_refused(client, key):
    response = client.post(GENERATE, json=build_request("img2img", image_cache_secret_key=key))
    assert response.status_code == 400
    assert response.json()["message"].startswith("parameters.image_cache_secret_key: ")
    assert response.json()["message"].endswith(" is not a text of at most 200 characters")


@pytest.mark.parametrize("key", [None, ""])
def test_an_empty_key_counts_as_none(client, key):
    assert (
        client.post(GENERATE, json=build_request("generate", image_cache_secret_key=key)).status_code == 200
    )


def test_an_image_from_the_cache_counts_as_memory_of_the_request():
    cache = ImageCache(1 << 20)
    cache.put(b"me", "key", RED)
    cached: Any = {"parameters": {"reference_image_multiple_cached": [{"cache_secret_key": "key"}]}}
    images = recall_images(cached, cache, b"me")
    assert images.recalled == len(RED)
    assert cached["parameters"]["reference_image_multiple_cached"][0]["data"] == RED


def test_all_missing_keys_are_named_once():
    lists = {"reference_image_multiple_cached": [{"cache_secret_key": key} for key in "aba"]}
    body = {
        "image_cache_secret_key": "c",
        "parameters": lists | {"image": "x", "image_cache_secret_key": "d"},
    }
    with pytest.raises(UnknownKeys) as caught:
        recall_images(body, ImageCache(1 << 20), b"me")
    assert caught.value.details == {"invalidKeys": ["c", "a", "b"]}


def test_a_random_body_of_the_wrong_shape_breaks_nothing():
    random = np.random.default_rng(1)
    values = [None, 1, "x", [], {}, [{"data": 1}], {"data": []}, True, [[]], "a" * 300]
    names = [
        "image",
        "mask",
        "reference_image_multiple",
        "reference_image_multiple_cached",
        "image_cache_secret_key",
    ]
    for _ in range(300):
        fields = {name: values[random.integers(len(values))] for name in names}
        body = {"parameters": fields, **fields}
        try:
            attach_parts(body, {"x": RED})
            recall_images(body, ImageCache(1 << 20), b"me")
        except (Rejected, UnknownKeys):
            pass


def test_a_form_is_copied_once():
    size = 8 << 20
    head = b'--line\r\nContent-Disposition: form-data; name="%s"\r\n\r\n'
    json_part = head % b"request" + b'{"image": "image"}'
    body = bytearray(head % b"image" + b"\x89\r\n--lin" * (size // 8) + b"\r\n" + json_part + b"\r\n--line--")
    tracemalloc.start()
    parts = split_form(body, "line")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(parts["image"]) == size
    assert peak < 1.5 * size
