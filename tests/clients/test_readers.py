"""Programs that read a picture's metadata, on the picture that a real server answers with."""

import io
from base64 import b64encode
from itertools import product

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from programs import Program, cases

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
READ = {"prompt": PROMPT, "negative": NEGATIVE, "seed": 4294967295, "steps": 3, "sampler": "k_dpmpp_2m"}


PARAMETERS = {
    "negative_prompt": NEGATIVE,
    **{key: READ[key] for key in ("seed", "steps", "sampler")},
    "width": 320,
    "height": 192,
}


@pytest.fixture(scope="module")
def draw(open_address):
    """Ask the server for a picture."""

    def draw(path="/ai/generate-image", **parameters):
        body = {"input": PROMPT, "model": "nai-diffusion-3", "parameters": PARAMETERS | parameters}
        answer = httpx.post(
            open_address + path,
            json=parameters if path == "/ai/upscale" else body,
            headers={"Accept": "image/png"},
            timeout=240,
        )
        assert answer.status_code == 200, answer.text
        return answer.content

    return draw


@pytest.fixture(scope="module")
def answered(draw):
    """The file that the server answers with."""
    return draw()


def without_text(data):
    """The same pixels without text chunks, as where a site has stripped them."""
    picture, kept = Image.open(io.BytesIO(data)), io.BytesIO()
    Image.frombytes(picture.mode, picture.size, picture.tobytes()).save(kept, "PNG")
    return kept.getvalue()


def without_alpha(data):
    """The same colours and texts, as where a program has dropped the alpha."""
    picture, kept = Image.open(io.BytesIO(data)), io.BytesIO()
    texts = PngInfo()
    for name, text in picture.info.items():
        texts.add_text(str(name), text)
    picture.convert("RGB").save(kept, "PNG", pnginfo=texts)
    return kept.getvalue()


@pytest.fixture
def file(request, answered, tmp_path):
    """The answer as it is, or what is left of it."""
    changed = {"whole": bytes, "alpha": without_text, "text": without_alpha}[request.param](answered)
    path = tmp_path / "picture.png"
    path.write_bytes(changed)
    return path


@pytest.mark.parametrize(
    ("reader", "file"),
    cases(
        *product((SD_PARSERS, IMGUTILS, PYTHON, SDK, PROMPT_READER), ("whole", "text", "alpha")),
        *product((NAIPNG,), ("whole", "text")),
    ),
    indirect=["file"],
)
def test_it_reads_what_was_asked_for(reader, file):
    assert reader.run(reader.name.replace("-", "_"), file) == READ


@pytest.fixture(scope="module")
def started(draw, answered):
    """Files of pictures that start from another, by their kind."""
    image = b64encode(answered).decode()
    white = Image.new("L", (320, 192))
    white.paste(255, (0, 0, 160, 192))
    mask = io.BytesIO()
    white.save(mask, "PNG")
    return {
        "img2img": draw(image=image, strength=0.5),
        "infill": draw(image=image, mask=b64encode(mask.getvalue()).decode()),
        "enhance": draw(enhance={"scale": 1.5, "magnitude": 1, "seed": READ["seed"]}),
        "upscale": draw("/ai/upscale", image=image, scale=2),
    }


@pytest.mark.parametrize(
    ("reader", "kind"),
    cases(
        *product(
            (SD_PARSERS, IMGUTILS, PYTHON, SDK, PROMPT_READER, NAIPNG),
            ("img2img", "infill", "enhance", "upscale"),
        )
    ),
)
def test_it_reads_pictures_that_start_from_another(reader, kind, started, tmp_path):
    (tmp_path / "picture.png").write_bytes(started[kind])
    assert reader.run(reader.name.replace("-", "_"), tmp_path / "picture.png") == READ


@pytest.mark.parametrize(("reader", "file"), cases((PYTHON, "whole"), (PYTHON, "alpha")), indirect=["file"])
def test_a_verifier_takes_our_key_and_never_novelais(reader, file, own_key):
    assert reader.run("novelai_python_verifier", file, own_key) == {"NovelAI": False, "given": True}
