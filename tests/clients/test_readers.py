"""Third-party metadata readers, on images from a server process."""

import io
from base64 import b64encode
from itertools import product

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from programs import Program, build_cases

SCRIPT = "reading_client.py"
SD_PARSERS = Program("sd-parsers", SCRIPT, "NAIAD_READER_SD_PARSERS")
NAIPNG = Program("naipng", SCRIPT, "NAIAD_READER_NAIPNG")
IMGUTILS = Program("dghs-imgutils", SCRIPT, "NAIAD_READER_IMGUTILS")
PROMPT_READER = Program("sd-prompt-reader", SCRIPT, "NAIAD_READER_SD_PROMPT_READER")
PYTHON = Program("novelai-python", SCRIPT, "NAIAD_CLIENT_NOVELAI_PYTHON")
SDK = Program("novelai-sdk", SCRIPT, "NAIAD_CLIENT_NOVELAI_SDK")

pytestmark = pytest.mark.clients

PROMPT = '1girl, {{smile}}, "quoted", café, 初音ミク ☂\nsecond line, it\'s'
NEGATIVE = 'lowres, [bad], "worst"\nñ 雨'
EXPECTED = {"prompt": PROMPT, "negative": NEGATIVE, "seed": 4294967295, "steps": 3, "sampler": "k_dpmpp_2m"}


PARAMETERS = {
    "negative_prompt": NEGATIVE,
    **{key: EXPECTED[key] for key in ("seed", "steps", "sampler")},
    "width": 320,
    "height": 192,
}


@pytest.fixture(scope="module")
def generate(open_address):
    """A function that requests an image from the server and returns its file."""

    def generate(path="/ai/generate-image", **parameters):
        body = {"input": PROMPT, "model": "nai-diffusion-3", "parameters": PARAMETERS | parameters}
        response = httpx.post(
            open_address + path,
            json=parameters if path == "/ai/upscale" else body,
            headers={"Accept": "image/png"},
            timeout=240,
        )
        assert response.status_code == 200, response.text
        return response.content

    return generate


@pytest.fixture(scope="module")
def image_file(generate):
    """An image file as the server sends it."""
    return generate()


def remove_text(data):
    """Keep the pixels but not the text chunks, as sites do that strip metadata."""
    image, file = Image.open(io.BytesIO(data)), io.BytesIO()
    Image.frombytes(image.mode, image.size, image.tobytes()).save(file, "PNG")
    return file.getvalue()


def remove_alpha(data):
    """Keep the colors and the text chunks but not the alpha, as some programs do."""
    image, file = Image.open(io.BytesIO(data)), io.BytesIO()
    texts = PngInfo()
    for name, text in image.info.items():
        texts.add_text(str(name), text)
    image.convert("RGB").save(file, "PNG", pnginfo=texts)
    return file.getvalue()


@pytest.fixture
def file(request, image_file, tmp_path):
    """The path of an image with both layers, or with only its alpha or text."""
    change = {"both": bytes, "alpha": remove_text, "text": remove_alpha}[request.param]
    path = tmp_path / "image.png"
    path.write_bytes(change(image_file))
    return path


@pytest.mark.parametrize(
    ("reader", "file"),
    build_cases(
        *product((SD_PARSERS, IMGUTILS, PYTHON, SDK, PROMPT_READER), ("both", "text", "alpha")),
        *product((NAIPNG,), ("both", "text")),
    ),
    indirect=["file"],
)
def test_it_reads_the_requested_settings(reader, file):
    assert reader.run(reader.name.replace("-", "_"), file) == EXPECTED


@pytest.fixture(scope="module")
def derived_files(generate, image_file):
    """Files of images that start from another image, by the kind of request."""
    image = b64encode(image_file).decode()
    mask_image = Image.new("L", (320, 192))
    mask_image.paste(255, (0, 0, 160, 192))
    mask = io.BytesIO()
    mask_image.save(mask, "PNG")
    return {
        "img2img": generate(image=image, strength=0.5),
        "infill": generate(image=image, mask=b64encode(mask.getvalue()).decode()),
        "enhance": generate(enhance={"scale": 1.5, "magnitude": 1, "seed": EXPECTED["seed"]}),
        "upscale": generate("/ai/upscale", image=image, scale=2),
    }


@pytest.mark.parametrize(
    ("reader", "kind"),
    build_cases(
        *product(
            (SD_PARSERS, IMGUTILS, PYTHON, SDK, PROMPT_READER, NAIPNG),
            ("img2img", "infill", "enhance", "upscale"),
        )
    ),
)
def test_it_reads_images_that_start_from_another(reader, kind, derived_files, tmp_path):
    (tmp_path / "image.png").write_bytes(derived_files[kind])
    assert reader.run(reader.name.replace("-", "_"), tmp_path / "image.png") == EXPECTED


@pytest.mark.parametrize(
    ("reader", "file"), build_cases((PYTHON, "both"), (PYTHON, "alpha")), indirect=["file"]
)
def test_a_verifier_accepts_our_key_and_not_novelais(reader, file, server_key):
    assert reader.run("novelai_python_verifier", file, server_key) == {"NovelAI": False, "given": True}
