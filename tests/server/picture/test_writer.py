import json
import logging
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.extractors import Eagerness

from pipelines.job import Guidance, Job, Prompts
from server.engine.engine import Result
from server.picture.comment import build_alpha_text
from server.picture.inspection import inspect
from server.picture.signature import verify_comment
from server.picture.writer import ENCODERS, MetadataPolicy, write_job_picture

JOB = Job(
    model="nai-diffusion-3",
    prompts=Prompts("1girl, {caf\u00e9}", "lowres"),
    width=192,
    height=256,
    steps=28,
    sampler="k_euler",
    schedule="native",
    guidance=Guidance(5.0),
    seeds=(7, 8),
)
NAI_ORDER = """
    prompt steps height width scale uncond_scale cfg_rescale seed n_samples hide_debug_overlay noise_schedule
    legacy_v3_extend reference_information_extracted_multiple reference_strength_multiple sampler
    controlnet_strength controlnet_model dynamic_thresholding dynamic_thresholding_percentile
    dynamic_thresholding_mimic_scale sm sm_dyn skip_cfg_below_sigma lora_unet_weights lora_clip_weights
""".split()  # noqa: SIM905  # 25 names are read as words
TEXT_KEYS = ["Title", "Description", "Software", "Source", "Generation time", "Comment", "Generator"]
FORMATS = sorted(ENCODERS)


def drawn(height=256, width=192):
    """What a device may have drawn for JOB, or a picture of another size."""
    random = np.random.default_rng(5)
    return Result(
        [random.integers(0, 256, (height, width, 3), np.uint8) for _ in JOB.seeds], (1.0, 0.0), 0.1, 4.25
    )


def written(level, image_format, key, result=None, index=0):
    """The file of a picture."""
    imprint = MetadataPolicy("00C0FFEE", key, level, "exact")
    return write_job_picture(imprint, JOB, result or drawn(), index, {"legacy": False}, image_format)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("level", ["full", "plain", "none"])
def test_every_level_and_format_keeps_the_colours(level, image_format, signing_key):
    for index, rgb in enumerate(drawn().pictures):
        found = inspect(written(level, image_format, signing_key, index=index))
        assert found.format == image_format.upper()
        assert np.array_equal(found.rgb, rgb)


@pytest.mark.parametrize("image_format", FORMATS)
def test_in_full_both_layers_tell_all_and_are_signed(image_format, signing_key):
    found = inspect(written("full", image_format, signing_key))
    assert sorted(found.text) == sorted([*TEXT_KEYS, "Signature key"])
    assert found.alpha == json.loads(build_alpha_text(found.text))
    assert found.text["Software"] == "NovelAI"
    assert found.text["Signature key"] == signing_key.public
    assert verify_comment(found.rgb, found.text["Comment"], signing_key.public)


@pytest.mark.parametrize("image_format", FORMATS)
def test_in_full_the_comment_has_nai_s_keys_in_nai_s_order_then_ours(image_format, signing_key):
    told = json.loads(inspect(written("full", image_format, signing_key)).text["Comment"])
    ours = ["legacy", "uc", "request_type", "naiad", "generator", "signed_hash"]
    assert list(told) == [*NAI_ORDER, *ours]


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("image_format", FORMATS)
def test_in_plain_nothing_is_signed_hidden_or_called_novelai_s(image_format, key, signing_key):
    file = written("plain", image_format, signing_key if key else None)
    found = inspect(file)
    assert sorted(found.text) == sorted(TEXT_KEYS)
    assert found.text["Software"].startswith("naiad ")
    told = json.loads(found.text["Comment"])
    assert list(told) == [*NAI_ORDER, "legacy", "uc", "request_type", "generator"]
    with Image.open(BytesIO(file)) as opened:
        assert opened.mode == "RGB"
    assert signing_key.public.encode() not in file


@pytest.mark.parametrize("image_format", FORMATS)
def test_none_writes_nothing_but_the_picture(image_format, signing_key):
    file = written("none", image_format, signing_key)
    found = inspect(file)
    assert (found.text, found.alpha) == ({}, None)
    assert b"naiad" not in file
    with Image.open(BytesIO(file)) as opened:
        assert opened.mode == "RGB"


def test_a_job_s_pictures_tell_their_own_seeds_and_have_their_own_signatures(signing_key):
    files = [written("full", "png", signing_key, index=index) for index in (0, 1)]
    told = [json.loads(inspect(file).text["Comment"]) for file in files]
    assert [comment["seed"] for comment in told] == [7, 8]
    assert told[0]["signed_hash"] != told[1]["signed_hash"]


def test_the_same_picture_is_the_same_file(signing_key):
    for image_format in FORMATS:
        assert written("full", image_format, signing_key) == written("full", image_format, signing_key)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_picture_too_small_for_alpha_keeps_its_signed_text_and_is_opaque(image_format, signing_key, caplog):
    with caplog.at_level(logging.WARNING, "naiad"):
        file = written("full", image_format, signing_key, drawn(64, 48))
    found = inspect(file)
    assert found.alpha is None
    assert verify_comment(found.rgb, found.text["Comment"], signing_key.public)
    assert "48x64" in caplog.text
    with Image.open(BytesIO(file)) as opened:
        assert opened.mode == (
            "RGBA" if image_format == "png" else "RGB"
        )  # a WebP drops an alpha that is full
        assert set(np.asarray(opened.convert("RGBA"))[..., 3].flat) == {255}


@pytest.mark.filterwarnings("ignore:.*getdata:DeprecationWarning")  # the reader's, not ours
def test_sd_parsers_reads_the_alpha_alone(signing_key):
    bare = BytesIO()
    with Image.open(BytesIO(written("full", "png", signing_key))) as opened:
        Image.fromarray(np.asarray(opened)).save(bare, "PNG")
    found = ParserManager(eagerness=Eagerness.EAGER).parse(bare)
    assert found is not None
    assert found.full_prompt == JOB.prompts.positive


def test_full_metadata_needs_a_key():
    with pytest.raises(ValueError, match="key"):
        MetadataPolicy("00C0FFEE", None, "full", "exact")
