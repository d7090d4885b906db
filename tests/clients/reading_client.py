"""Run by a metadata reader's own Python: prints what it makes of a picture, under names common to all readers."""

import json
import sys
from pathlib import Path


def of_comment(comment: dict) -> dict:
    """The facts in a Comment that a reader hands over whole."""
    return {
        "negative": comment["uc"],
        **{key: comment[key] for key in ("prompt", "seed", "steps", "sampler")},
    }


def sd_parsers(file: Path) -> dict:
    """Asked to look everywhere; by default it leaves the alpha alone."""
    from sd_parsers import ParserManager
    from sd_parsers.data import Generators
    from sd_parsers.extractors import Eagerness

    found = ParserManager(eagerness=Eagerness.EAGER).parse(file)
    assert found.generator is Generators.NOVELAI
    sampler = found.samplers[0]
    return {
        "prompt": found.full_prompt,
        "negative": found.full_negative_prompt,
        "seed": sampler.parameters["seed"],
        "steps": found.metadata["steps"],
        "sampler": sampler.name,
    }


def naipng(file: Path) -> dict:
    """Takes an open file: given bytes it fails on any PNG. Needs orjson, as `json` reads no memoryview."""
    from naipng import read_image_gen

    with file.open("rb") as opened:
        return of_comment(read_image_gen(opened))


def dghs_imgutils(file: Path) -> dict:
    """The alpha first, then the text."""
    from imgutils.sd import get_naimeta_from_image

    return of_comment(get_naimeta_from_image(str(file)).parameters)


def sd_prompt_reader(file: Path) -> dict:
    """Everything is text to it."""
    from sd_prompt_reader.image_data_reader import ImageDataReader

    found = ImageDataReader(file)
    assert found.tool == "NovelAI"
    return {
        "prompt": found.positive,
        "negative": found.negative,
        "seed": int(found.parameter["seed"]),
        "steps": int(found.parameter["steps"]),
        "sampler": found.parameter["sampler"],
    }


def novelai_python(file: Path) -> dict:
    """The alpha first, then the text."""
    from novelai_python.tool.image_metadata import ImageMetadata
    from PIL import Image

    return of_comment(ImageMetadata.load_image(Image.open(file)).Comment.model_dump())


def novelai_python_verifier(file: Path, key: str) -> dict:
    """Whether the picture is signed by NovelAI, whose key is built in, and whether by the key given."""
    from novelai_python.tool.image_metadata import ImageVerifier
    from PIL import Image

    image, verifier = Image.open(file), ImageVerifier()
    return {"NovelAI": verifier.verify(image)[0], "given": verifier.verify(image, key)[0]}


def novelai_sdk(file: Path) -> dict:
    """The text and the alpha, each as it is."""
    from novelai.utils.metadata import extract_metadata

    found = extract_metadata(file)
    text = found.png_info.get("Comment")
    return of_comment(found.alpha_info["Comment"] if text is None else json.loads(text))


reader, *arguments = sys.argv[1:]
print(json.dumps(globals()[reader](Path(arguments.pop(0)), *arguments)))
