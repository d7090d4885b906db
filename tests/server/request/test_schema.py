"""What a body may hold, field by field, and the messages for everything else."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from server.api.body import parse_json_object
from server.errors import Rejected
from server.request.schema import LONGEST_TEXT, GenerateParameters, Parameters, clean_text, read_request
from server.request.vibes import VibeParameters

WORD = f"a text of at most {LONGEST_TEXT} characters"
NAME = "a name of at most 200 characters"
SIDE = "a multiple of 32 from 64 to 49152"
STEPS = "a whole number from 1 to 50"
SEED = "a whole number, taken modulo 2^32; 0 means any"
SAMPLES = "a whole number from 1 to 8, fewer for large pictures"
SIGMA = "a number, or null"
FLAG = "true or false"
FLAGS = (
    *("dynamic_thresholding", "sm", "sm_dyn", "prefer_brownian", "deliberate_euler_ancestral_bug"),
    *("legacy", "legacy_v3_extend", "deep_shrink", "dialect"),
)
REALS = {"scale": 50, "cfg_rescale": 1, "uncond_scale": 10, "uncond_zero": 10, "uncond_zero_sharpness": 2}
SIGMAS = ("skip_cfg_above_sigma", "skip_cfg_below_sigma")
TEXTS = ("prompt", "negative_prompt", "uc")
UNUSED = {
    "autoSmea": "auto_smea",
    "auto_smea": "auto_smea_too",
    "qualityToggle": "quality_toggle",
    "ucPreset": "uc_preset",
    "qualityPresetId": "quality_id",
    "ucPresetId": "uc_id",
    **{
        name: name
        for name in ("v4_prompt", "v4_negative_prompt", "image", "mask", "stream", "loras", "controls")
    },
    **{f"controlnet_{end}": f"controlnet_{end}" for end in ("condition", "model", "strength")},
    **{name: name for name in VibeParameters.model_fields},
    **{f"reference_image{end}": f"reference_image{end}" for end in ("", "_multiple", "_multiple_cached")},
}


def read(body):
    """Read a body: an object, or its JSON."""
    text = body if isinstance(body, str) else json.dumps(body)
    return read_request(parse_json_object(text.encode()))


def parameters(**fields):
    return GenerateParameters.model_validate(parse_json_object(json.dumps(fields).encode()))


def img2img(**fields) -> Any:
    return read({"parameters": {"image": "x"} | fields}).parameters


def infill(**fields) -> Any:
    return read({"parameters": {"image": "x", "mask": "x"} | fields}).parameters


def refusal(body):
    with pytest.raises(Rejected) as refused:
        read(body)
    return refused.value.message


KEPT = [
    *((side, value, value) for side in ("width", "height") for value in (64, 96, 832, 49152, None)),
    *((side, value, int(value)) for side in ("width", "height") for value in (64.0, 6.4e1, 832.0, 4.9152e4)),
    *(("steps", value, kept) for value, kept in ((1, 1), (50, 50), (5.0, 5), ("5", 5), (" 5 ", 5), (None, None))),
    *(("n_samples", value, kept) for value, kept in ((1, 1), (8, 8), (2.0, 2), ("3", 3), (None, None))),
    *(
        ("seed", value, kept)
        for value, kept in (
            *((0, 0), (-1, -1), (2**32, 2**32), (9999999999, 9999999999), (10**400, 10**400), (None, None)),
            *(("42", 42), ("-1", -1), (42.0, 42), (1e20, 10**20), (-0.0, 0), ("9" * 30, int("9" * 30))),
        )
    ),
    *((name, value, kept) for name, most in REALS.items() for value, kept in ((0, 0.0), (most, most), ("0.5", 0.5), (0.25, 0.25), (None, None))),
    *((name, value, value) for name in SIGMAS for value in (-1, 0, 19.343056794463642, 58, 1e300, None)),
    *(
        (name, value, kept)
        for name in FLAGS
        for value, kept in (
            *((True, True), (False, False), ("true", True), ("false", False), ("True", True), ("FALSE", False)),
            *((1, True), (0, False), (1.0, True), (None, None)),
        )
    ),
    *(
        (name, value, kept)
        for name in TEXTS
        for value, kept in (
            *(("", ""), (" , cat\n", " , cat\n"), ("猫 \U0001f638", "猫 \U0001f638"), (None, None)),
            *(("a\0b", "ab"), ("a\ud83d", "a"), ("\udc00b\udfff\ud800", "b"), ("a" * LONGEST_TEXT, "a" * LONGEST_TEXT)),
        )
    ),
    *((name, value, value) for name in ("sampler", "noise_schedule") for value in ("k_euler", "", "x" * 200, None)),
    *(("image_format", value, value) for value in ("png", "webp", None)),
    *((name, value, value) for name in UNUSED for value in (True, "yes", -1, [1, {"a": None}], {"x": 1e308}, None)),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "kept"), KEPT, ids=lambda value: repr(value)[:30])
def test_accepted_values(field, value, kept):
    found = getattr(parameters(**{field: value}), UNUSED.get(field) or field)
    assert found == kept
    assert type(found) is type(kept) or isinstance(found, float)


HUGE = "1" + "0" * 400
WRONG = [
    *(
        (side, value, shown, SIDE)
        for side in ("width", "height")
        for value, shown in (
            *(("0", "0"), ("-64", "-64"), ("32", "32"), ("63", "63"), ("80", "80"), ("49184", "49184")),
            *(("832.5", "832.5"), ("true", "true"), ('"832"', "'832'"), ("NaN", "nan"), ("[]", "an array"), ("{}", "an object"), (HUGE, HUGE[:77] + "...")),
        )
    ),
    *(
        ("steps", value, shown, STEPS)
        for value, shown in (
            *(("0", "0"), ("51", "51"), ("-1", "-1"), ("1000000000", "1000000000"), ("5.5", "5.5"), ('""', "''")),
            *(("Infinity", "inf"), ("NaN", "nan"), ("1e300", "1e+300"), ("[5]", "an array"), (HUGE, HUGE[:77] + "...")),
        )
    ),
    *(("n_samples", value, value, SAMPLES) for value in ("0", "9", "-1", "1000", "1.5")),
    *(
        ("seed", value, shown, SEED)
        for value, shown in (
            *(("1.5", "1.5"), ('"0x10"', "'0x10'"), ('""', "''"), ("NaN", "nan"), ("-Infinity", "-inf")),
            *(("[1]", "an array"), (f'"{"9" * 5000}"', "'" + "9" * 76 + "...")),
        )
    ),
    *(
        (name, value, shown, f"a number from 0 to {most}")
        for name, most in REALS.items()
        for value, shown in (
            *(("-0.1", "-0.1"), (f"{most}.1", f"{most}.1"), ("1e9", "1000000000.0"), ("1e400", "inf"), ("NaN", "nan")),
            *(("-Infinity", "-inf"), ('"NaN"', "'NaN'"), ('"much"', "'much'"), ("[]", "an array"), (HUGE, HUGE[:77] + "...")),
        )
    ),
    *(
        (name, value, shown, SIGMA)
        for name in SIGMAS
        for value, shown in (("Infinity", "inf"), ("NaN", "nan"), ('"off"', "'off'"), ("{}", "an object"), ("1e999", "inf"))
    ),
    *(
        (name, value, shown, FLAG)
        for name in FLAGS
        for value, shown in (("2", "2"), ('"maybe"', "'maybe'"), ('""', "''"), ("[]", "an array"), ("0.5", "0.5"))
    ),
    *(
        (name, value, shown, WORD)
        for name in TEXTS
        for value, shown in (
            *(("5", "5"), ('["cat"]', "an array"), ("{}", "an object"), ("NaN", "nan")),
            *((f'"{"x" * (LONGEST_TEXT + 1)}"', "'" + "x" * 76 + "..."), ('"' + "é" * 40_001 + '"', "'" + r"\xe9" * 19 + "...")),
        )
    ),
    *(
        (name, value, shown, NAME)
        for name in ("sampler", "noise_schedule")
        for value, shown in (("5", "5"), ("[]", "an array"), (f'"{"x" * 201}"', "'" + "x" * 76 + "..."), (r'"\ud83d"', r"'\ud83d'"))
    ),
    *(("image_format", value, shown, "png or webp") for value, shown in (('"PNG"', "'PNG'"), ("1", "1"), ('""', "''"))),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value", "shown", "allowed"), WRONG, ids=lambda value: str(value)[:20])
def test_refusals_name_the_field_the_value_and_what_is_allowed(field, value, shown, allowed):
    message = refusal(f'{{"parameters": {{"{field}": {value}}}}}')
    assert message == f"parameters.{field}: {shown} is not {allowed}"


@pytest.mark.parametrize("field", ["width", "steps", "n_samples", "seed", *REALS, *SIGMAS])
def test_a_boolean_is_not_a_number(field):
    message = refusal({"parameters": {field: True}})
    assert message.lower().startswith(f"parameters.{field}: true is not a")


@pytest.mark.parametrize("field", ["width", "height"])
def test_a_size_as_a_string_is_refused(field):
    assert refusal({"parameters": {field: "832"}}).startswith(f"parameters.{field}: '832' is not {SIDE}")


def test_every_field_is_in_these_tables():
    known = {field.alias or name for name, field in Parameters.model_fields.items()}
    assert known == {field for field, _, _ in KEPT}
    assert known - UNUSED.keys() == {field for field, *_ in WRONG}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"action": "imgtoimg"}, "action: 'imgtoimg' is not generate, img2img or infill; did you mean 'img2img'?"),
        ({"action": ""}, "action: '' is not generate, img2img or infill"),
        ({"action": 1}, "action: 1 is not generate, img2img or infill"),
        ({"input": 5}, f"input: 5 is not {WORD}"),
        ({"input": ["cat"]}, f"input: an array is not {WORD}"),
        ({"input": "x" * (LONGEST_TEXT + 1)}, f"input: '{'x' * 76}... is not {WORD}"),
        ({"model": 3}, "model: 3 is not a model id of at most 200 characters"),
        ({"model": "x" * 201}, f"model: '{'x' * 76}... is not a model id of at most 200 characters"),
        ({"parameters": None}, "parameters: null is not an object"),
        ({"parameters": []}, "parameters: an array is not an object"),
        ({"parameters": "{}"}, "parameters: '{}' is not an object"),
        ({"parameters": {"image_format": "wepb"}}, "parameters.image_format: 'wepb' is not png or webp; did you mean 'webp'?"),
    ],
)  # fmt: skip
def test_refusals_of_fields_outside_parameters(wrong, said):
    assert refusal({"input": "cat", "parameters": {}} | wrong) == said


def test_only_parameters_are_required():
    assert refusal({"input": "cat"}) == "parameters: is required"
    least = read({"parameters": {}})
    assert (least.input, least.model, least.task) == (None, None, "generate")
    assert set(least.parameters.model_dump().values()) == {None}


@pytest.mark.parametrize(
    ("action", "images", "task"),
    [
        *((action, (), "generate") for action in ("generate", None)),
        *((action, ("mask",), "generate") for action in ("generate", None)),
        *((action, ("image",), "img2img") for action in ("generate", "img2img", None)),
        *((action, ("image", "mask"), "img2img") for action in ("generate", "img2img")),
        *((action, ("image", "mask"), "infill") for action in ("infill", None)),
    ],
)
def test_action_and_images_decide_the_task(action, images, task):
    assert read({"action": action, "parameters": dict.fromkeys(images, "x")}).task == task


@pytest.mark.parametrize(
    ("action", "images", "message"),
    [
        ("img2img", (), "parameters.image: img2img needs an image"),
        ("img2img", ("mask",), "parameters.image: img2img needs an image"),
        *(
            ("infill", images, "parameters.mask: infill needs an image and a mask")
            for images in ((), ("image",), ("mask",))
        ),
    ],
)
def test_an_action_without_its_images_is_refused(action, images, message):
    assert refusal({"action": action, "parameters": dict.fromkeys(images, "x")}) == message


def test_only_the_first_error_is_reported():
    message = refusal({"input": 5, "parameters": {"steps": 0, "scale": -1}})
    assert message == f"input: 5 is not {WORD}"


def test_unknown_keys_are_ignored():
    junk = '"Steps": "x", "\\ud83d": 1, "model": [], "quality_toggle": true'
    found = read(f'{{"url": NaN, "parameters": {{"steps": 5, {junk}}}, "x": {{}}}}')
    assert found.parameters == GenerateParameters.model_validate({"steps": 5})


def test_the_last_of_two_equal_keys_is_used():
    assert read('{"parameters": {"steps": "x", "steps": 5}}').parameters.steps == 5


def test_unused_fields_may_be_nested_as_deep_as_json_allows():
    deep = "[" * 400 + "]" * 400
    found = read(f'{{"junk": {deep}, "parameters": {{"v4_prompt": {deep}, "junk": {deep}}}}}')
    assert found.parameters.v4_prompt == json.loads(deep)


@pytest.mark.parametrize("junk", ["[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "1" + "0" * 5000])
def test_values_beyond_the_json_reader_are_refused(junk):
    with pytest.raises(Rejected, match=r"body: .*(is not JSON in UTF-8|nested too deeply)"):
        read(f'{{"parameters": {{"junk": {junk}}}}}')


def test_a_request_is_frozen():
    found = parameters(steps=5)
    with pytest.raises(ValidationError, match="frozen"):
        found.steps = 6


SECTIONS = [
    *((img2img, name, value) for name in ("strength", "noise") for value in (-0.1, 1.1, "much", True, [])),
    *((img2img, "extra_noise_seed", value) for value in (0.5, "x", True)),
    *((infill, "inpaintImg2ImgStrength", value) for value in (0, -1, 1.5, "x")),
    *((infill, name, value) for name in ("add_original_image", "soft_mask") for value in (3, "maybe")),
    *((read, "color_correct", 3) for read in (img2img, infill)),
    (infill, "overlay", "medium"),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "name", "value"), SECTIONS)
def test_a_tasks_own_fields_are_validated_for_that_task_alone(reader, name, value):
    with pytest.raises(Rejected, match=rf"^parameters\.{name}: .* is not "):
        reader(**{name: value})
    assert not hasattr(read({"parameters": {name: value}}).parameters, name)


def test_a_tasks_own_fields_may_be_strings_or_missing():
    found = img2img(strength="0.5", noise=0, extra_noise_seed="7", color_correct="false")
    assert (found.strength, found.noise, found.extra_noise_seed, found.color_correct) == (0.5, 0.0, 7, False)
    found = infill(inpaintImg2ImgStrength="0.5", add_original_image="false")
    assert (found.strength, found.add_original_image, found.overlay) == (0.5, False, None)
    for empty in (img2img(), infill()):
        assert set(empty.model_dump(exclude={"image", "mask"}).values()) == {None}


def test_each_task_ignores_the_others_fields():
    wrong = {"strength": 9, "noise": "x", "overlay": 7, "inpaintImg2ImgStrength": 0, "soft_mask": "perhaps"}
    with pytest.raises(Rejected, match=r"parameters\.strength"):
        img2img(**wrong)
    with pytest.raises(Rejected, match=r"parameters\.inpaintImg2ImgStrength"):
        infill(**wrong)
    assert img2img(overlay=7, inpaintImg2ImgStrength=0).strength is None
    assert infill(strength=9, noise="x").strength is None


def test_a_text_that_is_refused_for_its_length_is_not_searched():
    assert clean_text("a\0b") == "ab"
    long = "\0" * (LONGEST_TEXT + 1)
    assert clean_text(long) is long
