"""Dialects: NAI's vocabulary in a model's words, and the documented settings of the models that have one."""

from dataclasses import replace
from typing import Any

import pytest
from checkpoint_files import SD1, SDXL, hollow
from hypothesis import given
from hypothesis import strategies as st

from pipelines.job import Character, Inversion, Prompts
from pipelines.text.prompt import SYNTAXES, parse
from server.config.catalog import single_model_catalog
from server.config.profiles import Dialect, load_profiles
from server.config.resources import configs
from server.engine.model import detect_model
from server.request.dialect import build_vocabulary, translate, translate_prompts
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import read_request
from server.tags.table import load_renames

PRESETS = load_presets(configs() / "presets.toml")
RENAMES = load_renames(configs() / "tag_renames.toml")
PROFILES = {profile.name: profile for profile in load_profiles(configs() / "profiles")}
AIDXL: Any = PROFILES["aidxl"].dialect
EVERY = [
    build_vocabulary(profile.dialect, RENAMES, syntax)
    for profile in PROFILES.values()
    if profile.dialect is not None
    for syntax in SYNTAXES
]
WORDS = [
    *("artist:", "artist:a_b", "Artist: v", "artist:best quality", "best quality", "Amazing_Quality", "masterpiece"),
    *("great quality", "bad quality", "very aesthetic", "rating:explicit", "year 2014", "peace sign", "v", "bar eyes"),
]  # fmt: skip
PLAIN = [
    "smile",
    "a girl, who smiles. ",
    "text: x",
    "<lora:best quality:1>",
    "by a",
    ":3",
    "the best quality",
    "9",
]
MARKUP = [
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ":1.5)",
    "1.5::",
    "-2::",
    "::",
    "\\(",
    "\\)",
    "|",
    "||",
    ":2",
    " ",
    "\n",
]


def write_texts(words):
    """Texts of these words and emphasis."""
    return st.lists(st.sampled_from([*words, *MARKUP, *[", "] * 8]), max_size=30).map("".join)


def say(text, dialect=AIDXL, syntax="nai+a1111", kept=()):
    return translate(text, build_vocabulary(dialect, RENAMES, syntax, kept))


@given(write_texts([*WORDS, *PLAIN]), st.sampled_from(EVERY))
def test_translating_twice_equals_translating_once(text, vocabulary):
    once = translate(text, vocabulary)
    assert translate(once, vocabulary) == once


@given(write_texts(PLAIN), st.sampled_from(EVERY))
def test_text_without_a_word_of_the_dialect_is_untouched(text, vocabulary):
    assert translate(text, vocabulary) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("artist:foo", "by foo"),
        ("Artist: Foo_(bar)", "by Foo (bar)"),
        ("artist:artist:foo, by foo, foo", "by foo, foo"),
        ("{artist:foo, best quality}", "{by foo, (amazing quality:1.5)}"),
        ("[[artist:foo]], smile", "[[by foo]], smile"),
        ("(artist:foo:1.2), (best quality:1.3)", "(by foo:1.2), (amazing quality:1.3)"),
        ("BEST_Quality,smile", "(amazing quality:1.5),smile"),
        ("great quality, high quality", "high quality"),
        ("best quality, amazing quality, absurdres", "(amazing quality:1.5), absurdres"),
        ("best quality, {amazing quality}, (amazing quality:1.2)", "(amazing quality:1.2)"),
        ("a:2|best quality:.5|", "a:2|(amazing quality:1.5):.5|"),
        ("best quality|amazing quality", "(amazing quality:1.5)|(amazing quality:1.5)"),
        ("best quality, :3, amazing quality|a", "(amazing quality:1.5), :3:1|a"),
        ("peace sign, bar eyes", "v, bar eyes"),
        ("artist:, artist:{foo}, the artist:foo", "artist:, artist:{foo}, the artist:foo"),
        ("a girl of the best quality, in the best quality dress", None),
        ("<lora:best quality:1>, best qualityy, bishop \\(chess\\)", None),
    ],
)
def test_whole_tags_are_replaced_and_emphasis_stays(text, expected):
    assert say(text) == (text if expected is None else expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.5::artist:foo, best quality::, hat", "1.5::by foo, amazing quality::, hat"),
        ("-1::bad quality ::", "-1::low quality ::"),
        ("cat|artist:foo|a ||artist:b|c||", "cat|by foo|a ||artist:b|c||"),
        ("best quality, text: artist:foo, best quality", "amazing quality, text: artist:foo, best quality"),
        ("(best quality:1.2)", None),
    ],
)
def test_the_syntax_of_v4_keeps_its_weights_and_lettering(text, expected):
    assert say(text, syntax="nai4") == (text if expected is None else expected)


def test_tags_with_bars_are_renamed_only_where_a_bar_is_text():
    assert say("neutral face, bar eyes, {v}", syntax="a1111") == ":|, |_|, {v}"
    assert say("neutral face, bar eyes, {v}", syntax="nai") == "neutral face, bar eyes, {v}"
    nai = Dialect(renamed_tags="nai")
    assert say(":|, {v}, tachi-e", nai, "a1111") == "neutral face, {v}, character image"
    assert say("{v}, Double_V, tachi-e, :|", nai, "nai") == "{peace sign}, double peace, character image, :|"


def test_a_tag_may_become_several_or_nothing():
    dialect = Dialect(tags={"best quality": "score_9, score_8", "no text": ""})
    assert say("{best quality}, a, score_8", dialect, "nai") == "{score_9}, a, score_8"
    assert say("1.2::best quality::", dialect, "nai4") == "1.2::score_9, score_8 ::"
    assert say("a, {no text, b}, no text", dialect, "nai") == "a, {b}"
    assert say("no text", dialect, "nai") == ""


def test_names_of_textual_inversions_are_kept():
    assert say("best quality, {peace sign}, amazing quality", kept=("peace sign",)) == (
        "(amazing quality:1.5), {peace sign}"
    )
    assert say("artist:foo, embedding:foo", kept=("foo",)) == "artist:foo, embedding:foo"


def test_translated_prompts_keep_the_written_ones(tmp_path):
    word = Inversion("V", tmp_path, "00C0FFEE", 1)
    people = (Character("artist:a", "great quality", 0.1, 0.2),)
    prompts = Prompts(
        "best quality, peace sign", "bad quality, v", "nai4", characters=people, inversions=(word,)
    )
    found = translate_prompts(prompts, AIDXL, RENAMES)
    assert (found.positive, found.negative) == ("amazing quality, v", "low quality, v")
    assert found.characters == (Character("by a", "high quality", 0.1, 0.2),)
    assert (found.written, found.inversions) == (prompts, (word,))
    plain = Prompts("smile")
    assert translate_prompts(plain, AIDXL, RENAMES) is plain


# from requests to jobs


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Resolve a request to the model in an empty file with this name."""
    folder = tmp_path_factory.mktemp("models")

    def ask(file, body, profile=None):
        path = folder / file
        if not path.exists():
            hollow(path, SD1 if file in (V1_FILE, V2_FILE) else SDXL)
        model = detect_model(single_model_catalog(path))
        model = replace(model, profile=profile or model.profile)
        return resolve(read_request(body), RequestPolicy(model, PRESETS, renames=RENAMES), lambda: 7)

    return ask


def describe(job):
    first = job.passes[0]
    return job.sampler, job.schedule, job.steps, job.guidance.scale, first.width, first.height


V3_TAGS = "best quality, amazing quality, very aesthetic, absurdres"
AIDXL_FILE, V1_FILE, V2_FILE = (
    f"{name}.safetensors" for name in ("AIDXLv0.8", "nai-anime-v1-full", "novelaiDiffusionV2_novelaiV2")
)


def test_aidxl_is_asked_as_its_page_recommends(ask):
    # artists with "by", characters as name (series), quality at the end with more weight; Euler a or DPM++ 2M Karras
    prompt = "artist:yoneyama_mai, [artist:chi4], 1girl, frieren (sousou no frieren), elf, cowboy shot, impasto, peace sign"
    sent = {
        "qualityToggle": True,
        "ucPreset": 1,
        "negative_prompt": "nsfw, lowres, worst quality, bad quality",
    }
    found = ask(AIDXL_FILE, {"input": f"{prompt}, {V3_TAGS}", "model": "nai-diffusion-3", "parameters": sent})
    prompts = found.job.prompts
    assert prompts.positive == (
        "by yoneyama mai, [by chi4], 1girl, frieren (sousou no frieren), elf, cowboy shot, impasto, v, "
        "(amazing quality:1.5), very aesthetic, absurdres"
    )
    assert prompts.negative == "nsfw, lowres, worst quality, low quality"
    assert prompts.written == Prompts(f"{prompt}, {V3_TAGS}", sent["negative_prompt"], "nai+a1111")
    runs = {text.strip(", "): weight for text, weight in parse(prompts.positive, prompts.syntax)[0].runs}
    assert runs["by chi4"] == pytest.approx(1 / 1.05)
    assert runs["amazing quality"] == 1.5
    assert "frieren (sousou no frieren)" in next(text for text in runs if "1girl" in text)
    assert describe(found.job) == ("k_euler_ancestral", "native", 28, 7.0, 832, 1216)
    sent = {
        "sampler": "k_dpmpp_2m",
        "noise_schedule": "karras",
        "steps": 35,
        "scale": 11,
        "width": 1024,
        "height": 1024,
    }
    found = ask(AIDXL_FILE, {"input": "cat", "parameters": sent})
    assert describe(found.job) == ("k_dpmpp_2m", "karras", 35, 11.0, 1024, 1024)
    assert found.warnings == ()


def test_the_prompts_on_the_page_of_aidxl_are_encoded_as_they_are_meant(ask):
    text = "chun-li, amazing quality, (by yoneyama mai:0.9), (by chi4:0.8), by ask, by modare, (by ikky:0.9)"
    prompts = ask(AIDXL_FILE, {"input": text, "parameters": {"dialect": False}}).job.prompts
    assert (prompts.positive, prompts.written) == (text, None)
    assert parse(prompts.positive, prompts.syntax)[0].runs == (
        *(("chun-li, amazing quality, ", 1.0), ("by yoneyama mai", 0.9), (", ", 1.0), ("by chi4", 0.8)),
        *((", by ask, by modare, ", 1.0), ("by ikky", 0.9)),
    )
    # "it is recommended to add extra weight to quality tags"
    translated = ask(AIDXL_FILE, {"input": text, "parameters": {}}).job.prompts.positive
    assert translated == text.replace("amazing quality", "(amazing quality:1.5)")
    escaped = ask(AIDXL_FILE, {"input": r"bishop \(chess\), lucy (cyberpunk)", "parameters": {}}).job.prompts
    assert parse(escaped.positive, escaped.syntax)[0].runs == (("bishop (chess), lucy (cyberpunk)", 1.0),)


def test_v2_is_asked_as_its_page_recommends(ask):
    # Danbooru's names are replaced by NAI's, quality tags come first; Euler ancestral at 832x1216 or 1024x1536
    sent = {"qualityToggle": True, "ucPreset": 0, "sm": False}
    body = {"input": "1girl, {v}, double v, tachi-e, eyepatch bikini, year 2014", "model": "nai-diffusion-2"}
    found = ask(V2_FILE, body | {"parameters": sent})
    prompts = found.job.prompts
    assert prompts.positive == (
        "very aesthetic, best quality, absurdres, "
        "1girl, {peace sign}, double peace, character image, square bikini, year 2014"
    )
    assert prompts.negative == (
        "nsfw, lowres, bad, text, error, missing, extra, fewer, cropped, jpeg artifacts, worst quality, bad quality, "
        "watermark, displeasing, unfinished, chromatic aberration, scan, scan artifacts"
    )
    assert prompts.written is not None
    assert prompts.written.positive == f"very aesthetic, best quality, absurdres, {body['input']}"
    assert describe(found.job) == ("k_euler_ancestral", "native", 28, 10.0, 832, 1216)
    sent = {"sampler": "k_dpmpp_sde", "steps": 14, "scale": 8, "width": 1024, "height": 1536}
    found = ask(V2_FILE, body | {"parameters": sent})
    assert describe(found.job) == ("k_dpmpp_sde", "native", 14, 8.0, 1024, 1536)


def test_v1_is_asked_as_nai_s_page_did(ask):
    body = {"input": "1girl, peace sign, [smile]", "model": "nai-diffusion"}
    found = ask(V1_FILE, body | {"parameters": {"qualityToggle": True, "ucPreset": 0}})
    prompts = found.job.prompts
    assert prompts.positive == "masterpiece, best quality, 1girl, v, [smile]"
    assert prompts.negative == (
        "nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, "
        "worst quality, low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry"
    )
    assert prompts.written is not None
    assert prompts.written.positive == "masterpiece, best quality, 1girl, peace sign, [smile]"
    assert describe(found.job) == ("k_euler_ancestral", "native", 28, 10.0, 512, 768)
    body |= {"model": "safe-diffusion", "parameters": {"ucPreset": 1, "negative_prompt": ""}}
    assert ask(V1_FILE, body).job.prompts.negative.startswith(
        "lowres, text, cropped, worst quality, low quality"
    )


def test_the_tags_of_a_v3_client_become_those_that_a_model_s_card_asks_for(ask):
    def encode(file):
        return ask(
            f"{file}.safetensors", {"input": f"1girl, {V3_TAGS}", "parameters": {}}
        ).job.prompts.positive

    assert encode("NoobAI-XL-v1.1") == "1girl, best quality, masterpiece, very awa, absurdres"
    assert encode("animagine-xl-4.0-opt") == "1girl, masterpiece, high score, great score, absurdres"
    assert encode("animagine-xl-3.1") == "1girl, best quality, masterpiece, very aesthetic, absurdres"
    scores = "score_9, score_8_up, score_7_up, score_6_up, score_5_up, score_4_up"
    assert encode("ponyDiffusionV6XL_v6StartWithThisOne") == f"1girl, {scores}, very aesthetic, absurdres"
    assert encode("sd_xl_base_1.0") == f"1girl, {V3_TAGS}"


def test_a_request_turns_the_dialect_on_or_off(ask):
    def encode(dialect, file=AIDXL_FILE):
        found = ask(file, {"input": "artist:a", "parameters": {"dialect": dialect}})
        return found.job.prompts.positive, found.warnings

    assert encode(None) == encode(True) == encode("true") == ("by a", ())
    assert encode(False) == ("artist:a", ())
    warning = "dialect: the profile 'sdxl-base' has none; the prompts are encoded as they are"
    assert encode(True, "sd_xl_base_1.0.safetensors") == ("artist:a", (warning,))
    assert encode(None, "sd_xl_base_1.0.safetensors") == ("artist:a", ())


def test_a_dialect_that_is_not_the_default_has_to_be_asked_for(ask):
    quiet = PROFILES["aidxl"].model_copy(update={"dialect": Dialect(artist="by {name}")})
    texts = [
        ask(
            AIDXL_FILE, {"input": "artist:a", "parameters": {"dialect": wanted}}, profile=quiet
        ).job.prompts.positive
        for wanted in (None, False, True)
    ]
    assert texts == ["artist:a", "artist:a", "by a"]


def test_characters_by_place_are_translated_too(ask):
    captions = [
        {"char_caption": f"artist:{name}", "centers": [{"x": x, "y": 0.5}]}
        for name, x in (("a", 0.1), ("b", 0.9))
    ]
    prompt = {
        "caption": {"base_caption": "2girls, great quality", "char_captions": captions},
        "use_coords": True,
    }
    body = {"model": "nai-diffusion-4-full", "parameters": {"v4_prompt": prompt}}
    prompts = ask(AIDXL_FILE, body).job.prompts
    assert (prompts.positive, prompts.syntax) == ("2girls, high quality", "nai4")
    assert [character.positive for character in prompts.characters] == ["by a", "by b"]
