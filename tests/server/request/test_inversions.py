"""Textual inversions by name in a request's prompts."""

import os
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from lora_files import random_lora, write_lora
from safetensors.torch import save_file

from server.config.catalog import single_model_catalog
from server.config.resources import configs
from server.engine.inversions import build_inversion_cards, describe_inversions
from server.engine.loras import build_lora_cards, describe_loras
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
def lora_folder(tmp_path, demo_file):
    """Two LoRAs, each with a textual inversion `hero`; the first also has one that cannot be used."""
    widths = detect_model(single_model_catalog(demo_file)).text_widths
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"
    for name, count in (("first", 4), ("second", 5)):
        bundle = {
            f"bundle_emb.hero.{key}": torch.ones(count, width)
            for key, width in zip(("clip_l", "clip_g"), widths, strict=True)
        }
        odd = {"bundle_emb.Odd.emb_params": torch.ones(2, 768)} if name == "first" else {}
        write_lora(tmp_path / "loras" / f"{name}.safetensors", random_lora({layer: (64, 96)}) | bundle | odd)
    return tmp_path / "loras"


@pytest.fixture
def ask(demo_file, folder, lora_folder):
    def ask(prompt, negative="", folder=folder, loras=(), syntax="nai"):
        model = detect_model(single_model_catalog(demo_file))
        model = replace(model, profile=model.profile.model_copy(update={"syntax": syntax}))
        model = replace(model, inversion_folder=folder, lora_folder=lora_folder)
        policy = RequestPolicy(model, load_presets(configs() / "presets.toml"))
        parameters = {"negative_prompt": negative, "seed": 1, "loras": list(loras)}
        return resolve(read_request({"input": prompt, "parameters": parameters}), policy)

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
    with pytest.raises(Rejected, match="33 textual inversions; at most 32"):
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
            "input: 'bad-hand' is not one of the 5 textual inversions; did you mean 'Bad-Hands'?",
        ),
        ("embedding:zzz", "input: 'zzz' is not one of the 5 textual inversions; GET /models lists all"),
        ("cat, Twin", "input: the textual inversions 'Twin' and 'twin' are one word; rename a file"),
        ("embedding: bad-hands", "input: `embedding:` without a name; GET /models lists"),
        ("embedding:../x", "input: '..' is not one of the 5"),
        ("cat, sd15", "input: the textual inversion 'sd15' cannot be used: its vectors have 768 values"),
        ("cat, broken", "input: the textual inversion 'broken' cannot be used: not a textual inversion"),
        ("embedding:old", "input: 'old' is not one of the 5"),
    ],
)
def test_what_cannot_be_used_is_refused(ask, prompt, message):
    with pytest.raises(Rejected) as refused:
        ask(prompt)
    assert refused.value.message.startswith(message)


def test_a_folder_that_cannot_be_read_gives_a_warning(ask, folder):
    asked = ask("cat, bad-hands, embedding:bad-hands", folder=folder / "gone")
    assert asked.job.prompts.inversions == ()
    reason = "the folder cannot be read: No such file or directory"
    assert f"input: names of textual inversions are read as text: {reason}" in asked.warnings


def test_without_a_folder_every_word_is_text(ask):
    assert ask("cat, bad-hands, embedding:bad-hands", folder=None).job.prompts.inversions == ()


@pytest.mark.parametrize("with_folder", [True, False])
def test_a_word_in_the_file_of_a_lora_of_the_request_is_found(ask, folder, lora_folder, with_folder):
    folder = folder if with_folder else None
    resolved = ask("cat, embedding:Hero", folder=folder, loras=["first"])
    (found,), (lora,) = resolved.job.prompts.inversions, resolved.job.loras
    assert (found.name, found.count, found.is_bundled) == ("hero", 4, True)
    assert (found.path, found.fingerprint) == (lora_folder / "first.safetensors", lora.fingerprint)
    assert resolved.warnings == ()
    assert ask("cat, hero", folder=folder).job.prompts.inversions == ()
    assert ask("cat", folder=folder, loras=["first"]).job.prompts.inversions == ()


def test_the_first_loras_word_counts_and_comes_before_the_folders(ask, folder, demo_file):
    widths = detect_model(single_model_catalog(demo_file)).text_widths
    save_file({"clip_l": torch.ones(7, widths[0])}, folder / "Hero.safetensors")
    for loras, count in ((["second", "first"], 5), (["first", "second"], 4), ([], 7)):
        (found,) = ask("hero", loras=loras).job.prompts.inversions
        assert found.count == count


def test_only_naming_an_unusable_word_of_a_lora_is_refused(ask):
    with pytest.raises(Rejected) as refused:
        ask("cat, odd", loras=["first"])
    assert refused.value.message.startswith("input: the textual inversion 'Odd' cannot be used: its vectors")


def test_loras_are_listed_with_the_words_in_their_files(lora_folder):
    cards = build_lora_cards(lora_folder)
    assert [card["inversions"] for card in cards] == [["Odd", "hero"], ["hero"]]
    assert next(describe_loras(lora_folder)).endswith("; textual inversions: Odd, hero")


def test_the_folder_is_listed(folder):
    assert "\udcff" not in list_names(folder)
    cards = {card["name"]: card for card in build_inversion_cards(folder)}
    assert cards["Bad-Hands"]["tokens"] == 3
    assert str(cards["broken"]["problem"]).startswith("not a textual inversion")
    assert "inversion sd15: 2 tokens" in list(describe_inversions(folder))
