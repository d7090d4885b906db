"""NAI's preset texts, transcribed from its web page by the reference, and when they are added."""

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.config.resources import configs
from server.config.toml import ConfigError
from server.errors import Rejected
from server.request.presets import Mode, PromptTexts, apply_presets, fold_tags, load_presets

FILE = configs() / "presets.toml"
PRESETS = load_presets(FILE)

V3 = ("nai-diffusion-3", "nai-diffusion-3-inpainting", "nai-diffusion-xl")
FURRY = ("nai-diffusion-furry-3", "nai-diffusion-furry-3-inpainting")
V2 = ("nai-diffusion-2",)
V1 = ("safe-diffusion", "safe-diffusion-inpainting", "nai-diffusion", "nai-diffusion-inpainting")
V1_FURRY = ("nai-diffusion-furry", "nai-diffusion-furry2", "furry-diffusion-inpainting")
V4_CURATED = ("nai-diffusion-4-curated-preview", "nai-diffusion-4-curated-inpainting")
V4 = ("nai-diffusion-4-full", "nai-diffusion-4-full-inpainting")
V45_CURATED = ("nai-diffusion-4-5-curated", "nai-diffusion-4-5-curated-inpainting")
V45 = ("nai-diffusion-4-5-full", "nai-diffusion-4-5-full-inpainting")
V5 = (
    *("nai-diffusion-5-full", "nai-diffusion-5-full-inpainting"),
    *("nai-diffusion-5-full-medium", "nai-diffusion-5-full-medium-inpainting"),
    *("nai-diffusion-5-curated", "nai-diffusion-5-curated-inpainting"),
)

QUALITY = {
    V3: "cat, best quality, amazing quality, very aesthetic, absurdres",
    FURRY: "cat, {best quality}, {amazing quality}",
    V2: "very aesthetic, best quality, absurdres, cat",
    V1: "masterpiece, best quality, cat",
    V1_FURRY: "masterpiece, best quality, cat",
    V4: "cat, no text, best quality, very aesthetic, absurdres",
    V4_CURATED: "cat, rating:general, best quality, very aesthetic, absurdres",
    V45: "cat, very aesthetic, masterpiece, no text",
    V5: "cat, very aesthetic, masterpiece, no text",
    V45_CURATED: "cat, very aesthetic, masterpiece, no text, -0.8::feet::, rating:general",
}

V3_HEAVY = (
    "lowres, {bad}, error, fewer, extra, missing, worst quality, jpeg artifacts, bad quality, watermark, unfinished, "
    "displeasing, chromatic aberration, signature, extra digits, artistic error, username, scan, [abstract]"
)
V3_LIGHT = "lowres, jpeg artifacts, worst quality, watermark, blurry, very displeasing"
V45_HEAVY = (
    "lowres, artistic error, film grain, scan artifacts, worst quality, bad quality, jpeg artifacts, very displeasing, "
    "chromatic aberration, dithering, halftone, screentone, multiple views, logo, too many watermarks, negative space, "
    "blank page"
)
V45_FURRY = (
    "{worst quality}, distracting watermark, unfinished, bad quality, {widescreen}, upscale, {sequence}, "
    "{{grandfathered content}}, blurred foreground, chromatic aberration, sketch, everyone, [sketch background], simple, "
    "[flat colors], ych (character), outline, multiple scenes, [[horror (theme)]], comic"
)
UNDESIRED = {
    V3: (
        ("heavy", V3_HEAVY),
        ("light", V3_LIGHT),
        (
            "human",
            f"{V3_HEAVY}, bad anatomy, bad hands, @_@, mismatched pupils, heart-shaped pupils, glowing eyes",
        ),
        ("none", "lowres"),
    ),
    FURRY: (
        (
            "heavy",
            "{{worst quality}}, [displeasing], {unusual pupils}, guide lines, {{unfinished}}, {bad}, url, artist name, "
            "{{tall image}}, mosaic, {sketch page}, comic panel, impact (font), [dated], {logo}, ych, {what}, "
            "{where is your god now}, {distorted text}, repeated text, {floating head}, {1994}, {widescreen}, "
            "absolutely everyone, sequence, {compression artifacts}, hard translated, {cropped}, {commissioner name}, "
            "unknown text, high contrast",
        ),
        (
            "light",
            "{worst quality}, guide lines, unfinished, bad, url, tall image, widescreen, compression artifacts, "
            "unknown text",
        ),
        ("none", "lowres"),
    ),
    V2: (
        (
            "heavy",
            "lowres, bad, text, error, missing, extra, fewer, cropped, jpeg artifacts, worst quality, bad quality, "
            "watermark, displeasing, unfinished, chromatic aberration, scan, scan artifacts",
        ),
        ("light", V3_LIGHT),
        ("none", "lowres"),
    ),
    V1: (
        (
            "heavy",
            "lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
            "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry",
        ),
        (
            "light",
            "lowres, text, cropped, worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, "
            "username, blurry",
        ),
        ("none", "lowres"),
    ),
    V1_FURRY: (
        (
            "light",
            "worst quality, low quality, what has science done, what, nightmare fuel, eldritch horror, "
            "where is your god now, why",
        ),
        (
            "heavy",
            "{worst quality}, low quality, distracting watermark, [nightmare fuel], {{unfinished}}, deformed, outline, "
            "pattern, simple background",
        ),
        ("none", "low res"),
    ),
    V4_CURATED: (
        (
            "heavy",
            "blurry, lowres, error, film grain, scan artifacts, worst quality, bad quality, jpeg artifacts, "
            "very displeasing, chromatic aberration, logo, dated, signature, multiple views, gigantic breasts, "
            "white blank page, blank page",
        ),
        (
            "light",
            "blurry, lowres, error, worst quality, bad quality, jpeg artifacts, very displeasing, logo, dated, "
            "signature, white blank page, blank page",
        ),
        ("none", ""),
    ),
    V4: (
        (
            "heavy",
            "blurry, lowres, error, film grain, scan artifacts, worst quality, bad quality, jpeg artifacts, "
            "very displeasing, chromatic aberration, multiple views, logo, too many watermarks, white blank page, "
            "blank page",
        ),
        (
            "light",
            "blurry, lowres, error, worst quality, bad quality, jpeg artifacts, very displeasing, white blank page, "
            "blank page",
        ),
        ("none", ""),
    ),
    V45_CURATED: (
        (
            "heavy",
            "blurry, lowres, upscaled, artistic error, film grain, scan artifacts, worst quality, bad quality, "
            "jpeg artifacts, very displeasing, chromatic aberration, halftone, multiple views, logo, "
            "too many watermarks, negative space, blank page",
        ),
        (
            "light",
            "blurry, lowres, upscaled, artistic error, scan artifacts, jpeg artifacts, logo, too many watermarks, "
            "negative space, blank page",
        ),
        (
            "human",
            "blurry, lowres, upscaled, artistic error, film grain, scan artifacts, bad anatomy, bad hands, "
            "worst quality, bad quality, jpeg artifacts, very displeasing, chromatic aberration, halftone, "
            "multiple views, logo, too many watermarks, @_@, mismatched pupils, glowing eyes, negative space, blank page",
        ),
        ("none", ""),
    ),
    V5: (
        ("heavy", V45_HEAVY),
        (
            "light",
            "lowres, bad hands, bad anatomy, artistic error, sepia, white haze, worst quality, very displeasing, "
            "jpeg artifacts, 0::ai-generated::",
        ),
        ("furry", V45_FURRY),
        ("human", f"{V45_HEAVY}, @_@, mismatched pupils, glowing eyes, bad anatomy"),
        ("none", ""),
    ),
    V45: (
        ("heavy", V45_HEAVY),
        (
            "light",
            "lowres, artistic error, scan artifacts, worst quality, bad quality, jpeg artifacts, multiple views, "
            "very displeasing, too many watermarks, negative space, blank page",
        ),
        ("furry", V45_FURRY),
        ("human", f"{V45_HEAVY}, @_@, mismatched pupils, glowing eyes, bad anatomy"),
        ("none", ""),
    ),
}
IDS = [model for group in UNDESIRED for model in group]
NEVER_NSFW = {
    *("safe-diffusion", "safe-diffusion-inpainting", "curated-diffusion-test", "custom"),
    *V4_CURATED,
    *V45_CURATED,
    *V5[4:],
}


def apply(
    positive="", negative="", quality=None, preset=None, model=V3[0], mode: Mode = "auto", syntax="nai"
):
    texts = apply_presets(PromptTexts(positive, negative, quality, preset), PRESETS, model, mode, syntax)
    return texts.positive, texts.negative


def add_quality(positive, model="nai-diffusion-3", syntax="nai"):
    return apply(positive, quality=True, model=model, syntax=syntax)[0]


def select_undesired(preset, **options):
    return apply(preset=preset, **options)[1]


def test_the_file_lists_exactly_the_ids_of_this_test():
    assert sorted(name for entry in PRESETS.models for name in entry.ids) == sorted(IDS)
    assert set(PRESETS.never_nsfw) == NEVER_NSFW


@pytest.mark.parametrize(("model", "text"), [(model, QUALITY[group]) for group in QUALITY for model in group])
def test_quality_tags_match_nais_text_and_position(model, text):
    assert add_quality("cat", model) == text
    assert PRESETS.for_model(model).quality_place == ("suffix" if text.startswith("cat") else "prefix")


@pytest.mark.parametrize("model", IDS)
def test_presets_match_nais_texts_in_nais_order(model):
    group = next(group for group in UNDESIRED if model in group)
    assert tuple((entry.id, entry.text) for entry in PRESETS.for_model(model).undesired) == UNDESIRED[group]


@pytest.mark.parametrize("model", IDS)
def test_a_preset_begins_with_nsfw_unless_it_is_none_or_the_model_is_curated(model):
    *texts, none = (text for _, text in UNDESIRED[next(group for group in UNDESIRED if model in group)])
    for index, text in enumerate(texts):
        expected = text if model in NEVER_NSFW else f"nsfw, {text}"
        assert select_undesired(index, positive="1girl", model=model) == expected
        assert select_undesired(index, positive="1girl, {NSFW}", model=model) == text
    assert select_undesired(len(texts), positive="1girl", model=model) == none


@pytest.mark.parametrize("model", ["custom", "curated-diffusion-test"])
def test_nais_experimental_models_use_the_fallback_without_nsfw(model):
    assert select_undesired(0, model=model) == V3_HEAVY


@pytest.mark.parametrize("model", ["nai-diffusion-6-full", "mine", ""])
def test_an_unlisted_id_uses_the_texts_of_v3(model):
    assert add_quality("cat", model) == QUALITY[V3]
    assert select_undesired(2, model=model) == "nsfw, " + UNDESIRED[V3][2][1]


@pytest.mark.parametrize(
    ("spelling", "model"),
    [
        ("nai-diffusion-3-furry", "nai-diffusion-furry-3"),
        ("nai-diffusion-3-furry-inpainting", "nai-diffusion-furry-3-inpainting"),
        ("nai-diffusion-4-curated", "nai-diffusion-4-curated-preview"),
        ("nai-diffusion-3", "nai-diffusion-3"),
        ("mine", "mine"),
    ],
)
def test_ids_that_clients_misspell_are_corrected(spelling, model):
    assert PRESETS.canonical(spelling) == model


Q = "best quality, amazing quality, very aesthetic, absurdres"
Q2 = "very aesthetic, best quality, absurdres"
Q4 = "no text, best quality, very aesthetic, absurdres"


@pytest.mark.parametrize(
    ("model", "before", "after"),
    [
        (V3[0], "cat|dog", f"cat, {Q}|dog, {Q}"),
        (V3[0], "cat|dog:0.5", f"cat, {Q}|dog, {Q}:0.5"),
        (V3[0], "cat:-1|dog:.5 ", f"cat, {Q}:-1|dog, {Q}:.5 "),
        (V3[0], "cat | dog :2", f"cat, {Q} | dog, {Q} :2"),
        (V3[0], "cat:1.5", f"cat:1.5, {Q}"),  # a single segment has no mix weight
        (V3[0], "cat||dog|:2| ", f"cat, {Q}||dog, {Q}|:2| "),
        (V3[0], "cat|dog, {{Best  QUALITY}}", f"cat, {Q}|dog, {{{{Best  QUALITY}}}}"),
        (V3[0], "absurdres|dog", f"absurdres|dog, {Q}"),
        (V3[0], "", Q),
        (V3[0], " ", Q),
        (V3[0], "cat,", f"cat, {Q}"),
        (V3[0], ", cat , ", f"cat, {Q} "),
        (V3[0], "|", "|"),
        (V2[0], "cat|dog:0.5", f"{Q2}, cat|{Q2}, dog:0.5"),
        (V2[0], "", Q2),
    ],
)
def test_each_segment_of_a_mix_gets_its_own_quality_tags(model, before, after):
    assert add_quality(before, model) == after


def test_a_bar_is_plain_text_in_a_syntax_without_mixes():
    assert add_quality("cat|dog:0.5", syntax="a1111") == f"cat|dog:0.5, {Q}"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("2girls|girl, hat:2", f"2girls, {Q4}|girl, hat:2"),
        ("ratio 16:9|girl", f"ratio 16:9, {Q4}|girl"),
        ("a||b|c||d|girl", f"a||b|c||d, {Q4}|girl"),
        ("sign, teXt: hello, you", f"sign, {Q4}, teXt: hello, you"),
        ("sign\nText: hello", f"sign, {Q4}, Text: hello"),
        ("Text: best quality", f"{Q4}, Text: best quality"),
        ("2::no text::\nText: hello", "2::no text::\nText: hello"),
        ("2::smile", f"2::smile, {Q4}"),
        ("|girl", f"{Q4}|girl"),
    ],
)
def test_in_the_syntax_of_v4_the_base_prompt_gets_the_tags_before_its_lettering(before, after):
    assert add_quality(before, V4[0], "nai4") == after
    assert add_quality(after, V4[0], "nai4") == after


@pytest.mark.parametrize(
    "tag",
    ["Best Quality", "{best quality}", "[[best   quality]]", "(best quality:1.2)", "1.3::best quality::", " best quality:2"],
)  # fmt: skip
def test_case_emphasis_and_spaces_of_a_tag_are_ignored(tag):
    assert add_quality(f"cat, {tag}, hat") == f"cat, {tag}, hat"


def test_a_similar_tag_is_a_different_tag():
    for tag in ("best quality!", "not best quality", "quality", "very"):
        assert add_quality(tag) == f"{tag}, {Q}"


HEAVY = f"nsfw, {V3_HEAVY}"


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        # auto: only for exact flags and only if the prompt has no such text
        ("auto", {}, ("cat", "")),
        ("auto", {"quality": True}, (f"cat, {Q}", "")),
        ("auto", {"quality": "true"}, ("cat", "")),
        ("auto", {"quality": 1}, ("cat", "")),
        ("auto", {"quality": False, "preset": 0}, ("cat", HEAVY)),
        ("auto", {"preset": 0, "negative": " \n"}, ("cat", HEAVY)),
        ("auto", {"preset": 0, "negative": "hat"}, ("cat", "hat")),
        ("auto", {"preset": 3}, ("cat", "lowres")),
        ("auto", {"preset": 4}, ("cat", "")),
        ("auto", {"preset": -1}, ("cat", "")),
        ("auto", {"preset": True}, ("cat", "")),
        ("auto", {"preset": "0"}, ("cat", "")),
        ("auto", {"preset": 1.0}, ("cat", "")),
        ("auto", {"preset": [0]}, ("cat", "")),
        # client: never adds anything
        ("client", {"quality": True, "preset": 0}, ("cat", "")),
        # always: unless the flag is false
        ("always", {}, (f"cat, {Q}", HEAVY)),
        ("always", {"quality": False}, ("cat", HEAVY)),
        ("always", {"quality": "False"}, ("cat", HEAVY)),
        ("always", {"preset": 1, "negative": "hat"}, (f"cat, {Q}", f"nsfw, {V3_LIGHT}, hat")),
        ("always", {"preset": 3, "negative": "hat"}, (f"cat, {Q}", "hat")),
        ("always", {"preset": 3}, (f"cat, {Q}", "lowres")),
        (
            "always",
            {"preset": 4, "negative": "hat"},
            (f"cat, {Q}", "hat"),
        ),  # 4, as novelai-api (Aedial) sends, is out of range and means "none"
        ("always", {"preset": -1}, (f"cat, {Q}", "lowres")),
        ("always", {"preset": "heavy"}, (f"cat, {Q}", HEAVY)),
        ("always", {"preset": 1, "negative": V3_LIGHT.upper()}, (f"cat, {Q}", V3_LIGHT.upper())),
    ],
)
def test_each_mode_adds_the_expected_texts(mode, options, expected):
    assert apply("cat", mode=mode, **options) == expected


def test_nsfw_is_searched_for_after_the_quality_tags_are_added():
    changed = PRESETS.model_copy(
        update={
            "models": (
                PRESETS.for_model(V3[0]).model_copy(update={"quality": {"standard": "not nsfw"}}),
                *PRESETS.models[1:],
            )
        }
    )
    assert apply_presets(PromptTexts("cat", "", True, 1), changed, V3[0], "auto").negative == V3_LIGHT
    assert (
        apply_presets(PromptTexts("cat", "", None, 1), changed, V3[0], "auto").negative == f"nsfw, {V3_LIGHT}"
    )


def apply_ids(
    positive="cat", negative="", quality=None, preset=None, model=V3[0], mode: Mode = "auto", **flags
):
    texts = PromptTexts(positive, negative, quality_id=quality, uc_id=preset, **flags)
    found = apply_presets(texts, PRESETS, model, mode)
    return found.positive, found.negative, found.warnings


@pytest.mark.parametrize("model", IDS)
def test_an_id_finds_the_text_that_its_index_finds(model):
    names = [name for name, _ in UNDESIRED[next(group for group in UNDESIRED if model in group)]]
    for index, name in enumerate(names):
        for spelling in {name, f"{name}Focus" if name in ("human", "furry") else name}:
            assert apply_ids(preset=spelling, model=model) == (*apply("cat", preset=index, model=model), ())
    assert apply_ids(quality="standard", model=model)[0] == add_quality("cat", model)
    assert apply_ids(quality="none", preset="", model=model) == ("cat", "", ())


def test_v5_has_light_quality_tags():
    light = "cat, very aesthetic, amazing quality, no text"
    assert apply_ids(quality="light", model=V5[0]) == (light, "", ())
    for quality in ("light", "standard"):  # the tags of neither text are added to those of the other
        assert apply_ids(light, quality=quality, model=V5[0])[0] == light
        assert apply_ids("amazing quality", quality=quality, model=V5[0])[0] == "amazing quality"


def test_the_curated_models_of_v5_never_get_nsfw():
    assert apply_ids(preset="heavy", model="nai-diffusion-5-full")[1] == f"nsfw, {V45_HEAVY}"
    assert apply_ids(preset="heavy", model="nai-diffusion-5-curated")[1] == V45_HEAVY


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # an older flag, even one that adds nothing, comes first
        ({"quality": "standard", "quality_toggle": False}, ("cat", "")),
        ({"quality": "none", "quality_toggle": True}, (f"cat, {Q}", "")),
        ({"preset": "light", "uc_preset": 3}, ("cat", "lowres")),
        ({"preset": "light", "uc_preset": 99}, ("cat", "")),
        # nothing is doubled
        ({"positive": f"cat, {Q}", "quality": "standard"}, (f"cat, {Q}", "")),
        ({"negative": "hat", "preset": "heavy"}, ("cat", "hat")),
        # the modes
        ({"quality": "standard", "preset": "heavy", "mode": "client"}, ("cat", "")),
        ({"mode": "always", "quality": "none", "preset": "light"}, ("cat", f"nsfw, {V3_LIGHT}")),
        ({"mode": "always", "negative": "hat", "preset": "light"}, (f"cat, {Q}", f"nsfw, {V3_LIGHT}, hat")),
        # an id that NAI does not have, where it is not needed
        ({"quality": "best", "quality_toggle": True}, (f"cat, {Q}", "")),
        ({"preset": "best", "negative": "hat"}, ("cat", "hat")),
        ({"quality": "best", "preset": "best", "mode": "client"}, ("cat", "")),
    ],
)
def test_ids_count_where_the_older_flags_are_missing(options, expected):
    assert apply_ids(**options)[:2] == expected


def test_an_id_that_the_model_lacks_is_warned_about():
    positive, negative, warnings = apply_ids(quality="light", preset="furryFocus")
    assert (positive, negative) == (f"cat, {Q}", "")
    assert warnings == (
        "qualityPresetId: this model has no quality tags 'light'; 'standard' was used",
        "ucPresetId: this model has no preset 'furryFocus', only heavy, light, human, none; none was added",
    )


@pytest.mark.parametrize("value", ["best", "Heavy", 1, True, ["heavy"], {}])
def test_an_id_that_nai_does_not_have_is_refused(value):
    with pytest.raises(
        Rejected, match=r"parameters\.qualityPresetId: .* is not one of standard, light, none"
    ):
        apply_ids(quality=value)
    with pytest.raises(
        Rejected, match=r"parameters\.ucPresetId: .* is not one of heavy, light, human, furry, none"
    ):
        apply_ids(preset=value)


def test_flags_are_kept_as_they_were_sent():
    texts = apply_presets(PromptTexts("cat", "", "yes", [1]), PRESETS, V3[0], "always")
    assert (texts.quality_toggle, texts.uc_preset) == ("yes", [1])


PROMPTS = ("", "cat", "cat|dog:0.5", "nsfw, cat", "{Best Quality}, cat|", "rating:general", "a, , b,", "|||")
NEGATIVES = ("", "hat", "lowres", "low res", f"nsfw, {V3_LIGHT}", "{Worst  Quality}", ", hat, ")


@pytest.mark.parametrize("mode", ["auto", "always", "client"])
@pytest.mark.parametrize("model", [*(group[0] for group in UNDESIRED), "nai-diffusion", "custom", "mine"])
def test_applying_presets_twice_equals_applying_them_once(model, mode):
    for positive, negative, flag, preset in product(PROMPTS, NEGATIVES, (True, False), (*range(6), -1, None)):
        options = {"quality": flag, "preset": preset, "model": model, "mode": mode}
        once = apply(positive, negative, **options)
        assert apply(*once, **options) == once, (positive, negative, flag, preset)


WORDS = st.sampled_from(
    ["1girl", "best quality", "masterpiece", "no text", "nsfw", "lowres", "", "-0.8::feet::"]
)
EMPHASIS = st.sampled_from(["{}", "{{{}}}", "[{}]", " {}  ", "({}:1.2)", "1.5::{}::", "{}:0.5", "({}"])
NONSENSE = st.sampled_from(["{}:", "::{}", ":{}:", "{}::1", "\n{}"])
CASE = st.sampled_from([str.lower, str.upper, str.title, lambda word: word.replace(" ", "  ")])
TAG = st.builds(lambda word, emphasis, case: emphasis.format(case(word)), WORDS, EMPHASIS | NONSENSE, CASE)
LIST = st.lists(TAG, max_size=6).map(", ".join) | st.lists(TAG, max_size=6).map(",".join)
PROMPT = st.lists(LIST, max_size=4).map("|".join)


def strip_separators(text):
    return re.sub(r"[\s,]+", "", text)


@given(PROMPT, LIST, st.sampled_from([True, False, None]), st.sampled_from([*range(6), None]), st.sampled_from(["auto", "always"]),
       st.sampled_from([group[0] for group in UNDESIRED]), st.sampled_from(["nai", "nai4", "a1111"]))  # fmt: skip
@settings(max_examples=300, derandomize=True)
def test_any_text_is_kept_and_presets_are_idempotent(positive, negative, flag, preset, mode, model, syntax):
    options = {"quality": flag, "preset": preset, "model": model, "mode": mode, "syntax": syntax}
    once = apply(positive, negative, **options)
    assert apply(*once, **options) == once
    assert strip_separators(
        once[0].replace(PRESETS.for_model(model).quality["standard"], "")
    ) == strip_separators(positive)
    assert strip_separators(once[1]).endswith(strip_separators(negative))
    if mode == "auto" and negative.strip():
        assert once[1] == negative


@given(st.sampled_from([group[0] for group in UNDESIRED]), st.data())
@settings(max_examples=100, derandomize=True)
def test_one_quality_tag_in_any_spelling_prevents_adding_them(model, data):
    tag = data.draw(st.sampled_from(sorted(fold_tags(PRESETS.for_model(model).quality["standard"]))))
    text = f"cat, {data.draw(EMPHASIS).format(data.draw(CASE)(tag))}, hat"
    assert add_quality(text, model) == text


def test_a_long_text_is_folded_in_linear_time():
    for text in (f"cat:1{' ' * 400_000}a", f"{'1' * 400_000}::a", f"cat::{' ' * 400_000}a"):
        assert len(fold_tags(text)) == 1


SHIPPED = FILE.read_text("utf-8")


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("quality_place", "quality_plac", "'models.0.quality_plac' is not a key here; did you mean 'models.0.quality_place'?"),
        ('"suffix"', '"middle"', "models.0.quality_place = 'middle': should be 'prefix' or 'suffix'"),
        ('fallback = "nai-diffusion-3"', 'fallback = "nai-diffusion-9"', "fallback = 'nai-diffusion-9' is not an id of any of the models"),
        ('id = "light"', 'id = "lite"', "models.0.undesired.1.id = 'lite': should be 'heavy', 'light', 'human', 'furry' or 'none'"),
        ("quality = { standard", "quality = { light", "models.0.quality: should have a text named standard"),
        ('quality = { standard = "best', 'quality { standard = "best', "should be a key and its value"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_rejected_with_file_and_line(tmp_path, right, wrong, message):
    file = tmp_path / "presets.toml"
    file.write_text(SHIPPED.replace(right, wrong, 1), "utf-8")
    start = SHIPPED.index(right)
    with pytest.raises(ConfigError) as error:
        load_presets(file)
    assert str(error.value).startswith(f"{file}:{SHIPPED.count(chr(10), 0, start) + 1}: {message}")


def test_a_model_without_presets_is_rejected(tmp_path):
    file = tmp_path / "presets.toml"
    table = 'fallback = "a"\nnever_nsfw = []\n[aliases]\n[[models]]\nids = ["a"]\nquality = { standard = "" }\nquality_place = "suffix"\n'
    file.write_text(f"{table}undesired = []\n")
    with pytest.raises(
        ConfigError, match=r"presets\.toml:8: models\.0\.undesired: should have at least 1 value$"
    ):
        load_presets(file)
    file.write_text(table)
    with pytest.raises(ConfigError, match=r"presets\.toml:4: models\.0\.undesired is required"):
        load_presets(file)
