"""Prompts from the fields of different programs."""

import json

import pytest

from server.picture.prompts import is_infotext, read_settings

INFOTEXT = (
    "1girl, (smile:1.2)\nsecond line\nNegative prompt: lowres,\nbad\nSteps: 20, Sampler: Euler a, Seed: 1"
)


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"Comment": '{"prompt": "a", "uc": "b"}', "Description": "x"}, {"prompt": "a", "uc": "b"}),
        ({"Comment": '{"steps": 4, "uc": "b"}', "Description": "x"}, {"prompt": "x", "steps": 4, "uc": "b"}),
        ({"Comment": '{"prompt": null}', "Description": "x"}, {"prompt": "x"}),
        ({"Comment": "Created with GIMP", "Description": "x"}, {"prompt": "x"}),
        ({"parameters": INFOTEXT}, {"prompt": "1girl, (smile:1.2)\nsecond line", "uc": "lowres,\nbad"}),
        ({"parameters": "cat\r\nSteps: 2"}, {"prompt": "cat", "uc": ""}),
        ({"parameters": "Steps: 2"}, {"prompt": "", "uc": ""}),
        ({"parameters": "Negative prompt: b\nSteps: 2"}, {"prompt": "", "uc": "b"}),
        ({"parameters": "holiday"}, {}),
        ({"parameters": INFOTEXT, "Comment": '{"prompt": "a"}'}, {"prompt": "a"}),
        ({"Software": "x"}, {}),
        ({}, {}),
    ],
)
def test_the_prompts_are_found_where_each_program_writes_them(fields, settings):
    assert read_settings(fields) == settings


def test_json_is_no_infotext():
    assert not is_infotext(json.dumps({"prompt": "a\nSteps: 2"}))
