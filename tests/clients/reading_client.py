"""Reads an image with a third-party metadata reader and prints the result under common names.

Run by a Python that has the reader.
"""

import json
import sys
from pathlib import Path


def select_settings(comment: dict) -> dict:
    """Return the settings from a Comment, for readers that return all of it."""
    return {
        "negative": comment["uc"],
        **{key: comment[key] for key in ("prompt", "seed", "steps", "sampler")},
    }


def sd_parsers(file: Path) -> dict:
    """Read with sd-parsers; EAGER is needed for the alpha, which it ignores by default."""
    from sd_parsers import ParserManager
    from sd_parsers.data import Generators
    from sd_parsers.extractors import Eagerness

    result = ParserManager(eagerness=Eagerness.EAGER).parse(file)
    assert result.generator is Generators.NOVELAI
    sampler = result.samplers[0]
    return {
        "prompt": result.full_prompt,
        "negative": result.full_negative_prompt,
        "seed": sampler.parameters["seed"],
        "steps": result.metadata["steps"],
        "sampler": sampler.name,
    }


def naipng(file: Path) -> dict:
    """Read with naipng from an open file; given bytes, it fails on any PNG.

    It needs orjson, as `json` reads no memoryview.
    """
    from naipng import read_image_gen

    with file.open("rb") as stream:
        return select_settings(read_image_gen(stream))


def dghs_imgutils(file: Path) -> dict:
    """Read with dghs-imgutils, which prefers the alpha to the text."""
    from imgutils.sd import get_naimeta_from_image

    return select_settings(get_naimeta_from_image(str(file)).parameters)


def sd_prompt_reader(file: Path) -> dict:
    """Read with sd-prompt-reader, which returns all values as text."""
    from sd_prompt_reader.image_data_reader import ImageDataReader

    result = ImageDataReader(file)
    assert result.tool == "NovelAI"
    return {
        "prompt": result.positive,
        "negative": result.negative,
        "seed": int(result.parameter["seed"]),
        "steps": int(result.parameter["steps"]),
        "sampler": result.parameter["sampler"],
    }


def novelai_python(file: Path) -> dict:
    """Read with novelai-python, which prefers the alpha to the text."""
    from novelai_python.tool.image_metadata import ImageMetadata
    from PIL import Image

    return select_settings(ImageMetadata.load_image(Image.open(file)).Comment.model_dump())


def novelai_python_verifier(file: Path, key: str) -> dict:
    """Verify against NovelAI's key, which is built in, and against the given key."""
    from novelai_python.tool.image_metadata import ImageVerifier
    from PIL import Image

    image, verifier = Image.open(file), ImageVerifier()
    return {"NovelAI": verifier.verify(image)[0], "given": verifier.verify(image, key)[0]}


def novelai_sdk(file: Path) -> dict:
    """Read with novelai-sdk, which returns text and alpha separately."""
    from novelai.utils.metadata import extract_metadata

    result = extract_metadata(file)
    text = result.png_info.get("Comment")
    return select_settings(result.alpha_info["Comment"] if text is None else json.loads(text))


reader, *arguments = sys.argv[1:]
print(json.dumps(globals()[reader](Path(arguments.pop(0)), *arguments)))
