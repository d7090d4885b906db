"""Every key that a known client sends is read, ignored on purpose, warned about or refused."""

import json
import re
from pathlib import Path

import pytest
from paths import ROOT

from server.api.annotate import AnnotateBody, AnnotateParameters
from server.api.image_fields import IMAGE_LISTS, IMAGES
from server.api.upscale import UpscaleRequest
from server.errors import Rejected
from server.request.schema import PARAMETERS, GenerateBody, read_request
from server.request.unoffered import REFUSED, REFUSED_FLAGS, WARNED_FLAGS, has_content

KEYS = json.loads((Path(__file__).parent / "client_keys.json").read_text("utf-8"))
DOCS = (ROOT / "docs" / "api.md").read_text("utf-8")


def read_ignored():
    """The fields of /ai/generate-image and those of /ai/upscale in the docs' table of ignored fields."""
    table = DOCS[DOCS.index("| ignored fields |") :].partition("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines()[2:]]
    upscale = [row for row in rows if "/ai/upscale" in row]
    generate = [row for row in rows if row not in upscale]
    return [set(re.findall(r"`(?:parameters\.)?(\w+)`", " ".join(part))) for part in (generate, upscale)]


IGNORED, IGNORED_BY_UPSCALE = read_ignored()


def list_names(model):
    return {field.alias or name for name, field in model.model_fields.items()}


READ = {name for model in PARAMETERS.values() for name in list_names(model)}
CACHED = {f"{name}_cache_secret_key" for name in IMAGES} | {f"{name}_cached" for name in IMAGE_LISTS}
HANDLED = READ | CACHED | IGNORED | set(REFUSED) | set(REFUSED_FLAGS) | set(WARNED_FLAGS)


@pytest.mark.parametrize("client", KEYS)
def test_no_key_of_a_client_is_overlooked(client):
    keys = KEYS[client]
    assert set(keys["generate-image"]["body"]) <= list_names(GenerateBody) | IGNORED
    assert set(keys["generate-image"]["parameters"]) <= HANDLED
    assert set(keys["upscale"]["body"]) <= list_names(UpscaleRequest) | IGNORED_BY_UPSCALE
    for part, model in (("body", AnnotateBody), ("parameters", AnnotateParameters)):
        assert set(keys.get("annotate-image", {}).get(part, [])) <= list_names(model)


def test_the_list_of_ignored_fields_names_no_field_that_is_refused():
    assert len(IGNORED) > 15
    assert not IGNORED & {*REFUSED, *REFUSED_FLAGS, *WARNED_FLAGS}
    assert {
        name for keys in KEYS.values() for part in keys["generate-image"].values() for name in part
    } >= IGNORED


def test_the_documentation_names_every_field_that_is_refused_or_warned_about():
    section = DOCS[DOCS.index("### What is refused") :].partition("| ignored fields |")[0]
    for name in (*REFUSED, *REFUSED_FLAGS, *WARNED_FLAGS):
        assert f"`{name.removesuffix('_cached')}`" in section


def read(**parameters):
    return read_request({"input": "a", "parameters": parameters})


EMPTY = [None, "", [], {}, False, 0, [""], [None, []], {"a": []}, b""]


@pytest.mark.parametrize("name", REFUSED)
def test_a_reference_is_refused_by_its_name_first(name):
    for value in (
        "AAAA",
        b"PNG",
        ["AAAA"],
        [None, b"PNG"],
        [{"cache_secret_key": "k", "data": "AAAA"}],
        {"a": 1},
    ):
        with pytest.raises(Rejected) as refused:
            read(**{name: value})
        assert re.match(rf"parameters\.{name}: (remove|send) ", refused.value.message)
    for value in EMPTY:
        assert read(**{name: value}).warnings == ()


@pytest.mark.parametrize("name", [*REFUSED_FLAGS, *WARNED_FLAGS])
def test_a_flag_counts_if_it_is_true(name):
    for value in (True, "true", {"declared_blur_sigma": 1}):
        if name in REFUSED_FLAGS:
            with pytest.raises(Rejected, match=rf"parameters\.{name}: "):
                read(**{name: value})
        else:
            assert [warning.partition(":")[0] for warning in read(**{name: value}).warnings] == [name]
    for value in (*EMPTY, "junk", 1, "false"):
        assert read(**{name: value}).warnings == ()


@pytest.mark.parametrize("name", sorted(IGNORED - READ))
def test_an_ignored_field_is_neither_refused_nor_warned_about(name):
    for value in ("junk", 1, True, [1], {"a": 1}, None):
        assert read(**{name: value}) == read()


def test_a_mask_that_is_not_used_is_warned_about():
    warning = "mask: has no effect with {}, only with infill"
    assert read(mask="x").warnings == (warning.format("generate"),)
    assert read(mask="x", image="x").warnings == ()
    masked = {"parameters": {"image": "x", "mask": "x"}, "action": "img2img"}
    assert read_request(masked).warnings == (warning.format("img2img"),)


@pytest.mark.parametrize("value", EMPTY)
def test_nothing_in_a_list_or_an_object_is_nothing(value):
    assert not has_content(value)
    assert not has_content([value, {"a": value}])
    assert has_content([value, 1])
