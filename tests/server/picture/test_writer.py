import json
import logging
from io import BytesIO

import numpy as np
import pytest
from jobs import make_job
from PIL import Image
from sd_parsers import ParserManager
from sd_parsers.extractors import Eagerness

from pipelines.job import Guidance, Prompts
from server.engine.ticket import Result
from server.picture.comment import build_alpha_text
from server.picture.inspection import inspect
from server.picture.signature import verify_comment
from server.picture.writer import ENCODERS, MetadataPolicy, write_job_picture
from server.request.resolve import ResolvedRequest

JOB = make_job(
    192, 256, Prompts("1girl, {caf\u00e9}", "lowres"), steps=28, guidance=Guidance(5.0), seeds=(7, 8)
)
NAI_ORDER = """
    prompt steps height width scale uncond_scale cfg_rescale seed n_samples hide_debug_overlay noise_schedule
    legacy_v3_extend reference_information_extracted_multiple reference_strength_multiple sampler
    controlnet_strength controlnet_model dynamic_thresholding dynamic_thresholding_percentile
    dynamic_thresholding_mimic_scale sm sm_dyn skip_cfg_below_sigma lora_unet_weights lora_clip_weights
""".split()  # noqa: SIM905  # 25 names are easier to read as words
TEXT_KEYS = ["Title", "Description", "Software", "Source", "Generation time", "Comment", "Generator"]
FORMATS = sorted(ENCODERS)


def build_result(height=256, width=192):
    """A result as the engine returns it for JOB, or one of another size."""
    random = np.random.default_rng(5)
    return Result(
        [random.integers(0, 256, (height, width, 3), np.uint8) for _ in JOB.passes[0].seeds],
        (1.0, 0.0),
        0.1,
        4.25,
    )


def write(level, image_format, key, result=None, index=0):
    """The file of an image."""
    policy = MetadataPolicy("00C0FFEE", key, level, "exact")
    resolved = ResolvedRequest(JOB, image_format, {"legacy": False}, ())
    return write_job_picture(policy, resolved, result or build_result(), index)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("level", ["full", "plain", "none"])
def test_every_level_and_format_keeps_the_colors(level, image_format, signing_key):
    for index, rgb in enumerate(build_result().images):
        inspection = inspect(write(level, image_format, signing_key, index=index))
        assert inspection.format == image_format.upper()
        assert np.array_equal(inspection.rgb, rgb)


@pytest.mark.parametrize("image_format", FORMATS)
def test_full_writes_and_signs_all_fields_in_both_layers(image_format, signing_key):
    inspection = inspect(write("full", image_format, signing_key))
    assert sorted(inspection.text) == sorted([*TEXT_KEYS, "Signature key"])
    assert inspection.alpha == json.loads(build_alpha_text(inspection.text))
    assert inspection.text["Software"] == "NovelAI"
    assert inspection.text["Signature key"] == signing_key.public
    assert verify_comment(inspection.rgb, inspection.text["Comment"], signing_key.public)


@pytest.mark.parametrize("image_format", FORMATS)
def test_full_writes_nai_s_comment_keys_in_nai_s_order_then_our_own(image_format, signing_key):
    comment = json.loads(inspect(write("full", image_format, signing_key)).text["Comment"])
    ours = ["legacy", "uc", "request_type", "naiad", "generator", "signed_hash"]
    assert list(comment) == [*NAI_ORDER, *ours]


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("image_format", FORMATS)
def test_plain_has_no_signature_no_alpha_and_its_own_software_name(image_format, key, signing_key):
    file = write("plain", image_format, signing_key if key else None)
    inspection = inspect(file)
    assert sorted(inspection.text) == sorted(TEXT_KEYS)
    assert inspection.text["Software"].startswith("naiad ")
    comment = json.loads(inspection.text["Comment"])
    assert list(comment) == [*NAI_ORDER, "legacy", "uc", "request_type", "generator"]
    with Image.open(BytesIO(file)) as image:
        assert image.mode == "RGB"
    assert signing_key.public.encode() not in file


@pytest.mark.parametrize("image_format", FORMATS)
def test_none_writes_no_metadata(image_format, signing_key):
    file = write("none", image_format, signing_key)
    inspection = inspect(file)
    assert (inspection.text, inspection.alpha) == ({}, None)
    assert b"naiad" not in file
    with Image.open(BytesIO(file)) as image:
        assert image.mode == "RGB"


def test_images_of_a_job_have_their_own_seeds_and_signatures(signing_key):
    files = [write("full", "png", signing_key, index=index) for index in (0, 1)]
    comments = [json.loads(inspect(file).text["Comment"]) for file in files]
    assert [comment["seed"] for comment in comments] == [7, 8]
    assert comments[0]["signed_hash"] != comments[1]["signed_hash"]


def test_the_same_image_gives_the_same_file(signing_key):
    for image_format in FORMATS:
        assert write("full", image_format, signing_key) == write("full", image_format, signing_key)


@pytest.mark.parametrize("image_format", FORMATS)
def test_an_image_too_small_for_alpha_keeps_its_signed_text_and_is_opaque(image_format, signing_key, caplog):
    with caplog.at_level(logging.WARNING, "naiad"):
        file = write("full", image_format, signing_key, build_result(64, 48))
    inspection = inspect(file)
    assert inspection.alpha is None
    assert verify_comment(inspection.rgb, inspection.text["Comment"], signing_key.public)
    assert "48x64" in caplog.text
    with Image.open(BytesIO(file)) as image:
        # a WebP drops an opaque alpha
        assert image.mode == ("RGBA" if image_format == "png" else "RGB")
        assert set(np.asarray(image.convert("RGBA"))[..., 3].flat) == {255}


@pytest.mark.filterwarnings("ignore:.*getdata:DeprecationWarning")  # from sd-parsers
def test_sd_parsers_reads_the_alpha_alone(signing_key):
    stripped = BytesIO()
    with Image.open(BytesIO(write("full", "png", signing_key))) as image:
        Image.fromarray(np.asarray(image)).save(stripped, "PNG")
    metadata = ParserManager(eagerness=Eagerness.EAGER).parse(stripped)
    assert metadata is not None
    assert metadata.full_prompt == JOB.prompts.positive


def test_full_metadata_needs_a_key():
    with pytest.raises(ValueError, match="key"):
        MetadataPolicy("00C0FFEE", None, "full", "exact")
