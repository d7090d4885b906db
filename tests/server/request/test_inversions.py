"""Textual inversions by name in a request's prompts."""

import os
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from server.config.catalog import single_model_catalog
from server.config.resources import configs
from server.engine.inversions import build_inversion_cards, describe_inversions
from server.engine.model import detect_model
from server.engine.named_files import list_names
from server.errors import Rejected
from server.picture.comment import describe_job
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy, resolve
from server.request.schema import read_request


@pytest.fixture
def folder(tmp_path, demo_file):
    widths = detect_model(single_model_catalog(demo_file)).text_widths
    vectors = {key: torch.ones(3, width) for key, width in zip(("clip_l", "clip_g"), widths, strict=True)}
    save_file(vectors, tmp_path / "Bad-Hands.safetensors")
    save_file({"emb_params": torch.ones(2, 768)}, tmp_path / "sd15.safetensors")
    save_file({"a": torch.ones(2), "b": torch.ones(2)}, tmp_path / "broken.safetensors")
    (tmp_path / "old.pt").write_bytes(b"PK")
    for name in ("Twin", "twin", "style (ink)"):
        save_file(vectors, tmp_path / f"{name}.safetensors")
    shutil.copy(tmp_path / "Twin.safetensors", os.fsdecode(os.fsencode(tmp_path) + b"/\xff.safetensors"))
    return tmp_path


@pytest.fixture
def ask(demo_file, folder):
    def ask(prompt, negative="", folder=folder, syntax="nai"):
        model = replace(detect_model(single_model_catalog(demo_file)), inversion_folder=folder)
        model = replace(model, profile=model.profile.model_copy(update={"syntax": syntax}))
        policy = RequestPolicy(model, load_presets(configs() / "presets.toml"))
        return resolve(
            read_request({"input": prompt, "parameters": {"negative_prompt": negative, "seed": 1}}), policy
        )

    return ask


def describe_prompts(job):
    described: Any = describe_job(job, (1.0,), "exact", "00C0FFEE")
    return described["job"]["prompts"]


def test_a_word_in_either_prompt_is_found(ask, folder):
    for sent in (("cat, bad-hands", ""), ("cat", "{{embedding:Bad-Hands}}, lowres")):
        (found,) = ask(*sent).job.prompts.inversions
        assert (found.name, found.count, found.path) == ("Bad-Hands", 3, folder / "Bad-Hands.safetensors")
    assert ask("cat, bad hands").job.prompts.inversions == ()


def test_the_parsed_prompt_is_searched(ask):
    found = ask(r"\(style\), style \(ink\)", syntax="a1111").job.prompts.inversions
    assert [word.name for word in found] == ["style (ink)"]


def test_more_than_32_are_refused(ask, folder):
    for number in range(33):
        save_file({"clip_l": torch.ones(1, 32)}, folder / f"n{number}.safetensors")
    names = [f"n{number}" for number in range(33)]
    assert len(ask(" ".join(names[:32] * 9)).job.prompts.inversions) == 32
    with pytest.raises(Rejected, match="more than 32 textual inversions"):
        ask(" ".join(names))


def test_its_vectors_count_as_tokens(ask):
    assert ask("cat " * 223 + ", bad-hands").warnings[-1] == "input: 227 tokens, cut after 225"


def test_the_metadata_name_the_file_by_its_hash(ask):
    job = ask("cat, bad-hands").job
    assert describe_prompts(job)["inversions"] == [
        {"name": "Bad-Hands", "hash": job.prompts.inversions[0].fingerprint}
    ]
    assert "inversions" not in describe_prompts(ask("cat").job)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "embedding:bad-hand",
            "input: 'bad-hand' is not one of the 6 textual inversions; did you mean 'Bad-Hands'?",
        ),
        ("embedding:zzz", "input: 'zzz' is not one of the 6 textual inversions; GET /models lists all"),
        ("cat, Twin", "input: the textual inversions 'Twin' and 'twin' are one word; rename a file"),
        ("embedding: bad-hands", "input: `embedding:` without a name; GET /models lists"),
        ("embedding:../x", "input: '..' is not one of the 6"),
        ("cat, sd15", "input: the textual inversion 'sd15' cannot be used: its vectors have 768 values"),
        ("cat, broken", "input: the textual inversion 'broken' cannot be used: not a textual inversion"),
        ("embedding:old", "input: 'old' is not one of the 6"),
    ],
)
def test_what_cannot_be_used_is_refused(ask, prompt, message):
    with pytest.raises(Rejected) as refused:
        ask(prompt)
    assert refused.value.message.startswith(message)


def test_a_folder_that_cannot_be_read_gives_a_warning(ask, folder):
    asked = ask("cat, bad-hands", folder=folder / "gone")
    assert asked.job.prompts.inversions == ()
    reason = "the folder cannot be read: No such file or directory"
    assert f"input: names of textual inversions are read as text: {reason}" in asked.warnings


def test_without_a_folder_every_word_is_text(ask):
    assert ask("cat, bad-hands, embedding:bad-hands", folder=None).job.prompts.inversions == ()


def test_the_folder_is_listed(folder):
    assert "\udcff" not in list_names(folder)
    cards = {card["name"]: card for card in build_inversion_cards(folder)}
    assert cards["Bad-Hands"]["tokens"] == 3
    assert str(cards["broken"]["problem"]).startswith("not a textual inversion")
    assert "inversion sd15: 2 tokens" in list(describe_inversions(folder))
