from dataclasses import replace

from fake_model import FakeModel
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.weights.checkpoint import fingerprint
from pipelines.weights.header import read_header
from server.cli import generate
from server.cli.output import OutputChoice
from server.config.catalog import Catalog, ModelEntry
from server.config.profiles import Dialect
from server.config.settings import Settings
from server.engine.engine import Engine
from server.engine.model import detect_model


def test_a_request_is_resolved_for_the_model_as_it_is_known_after_loading(model, tmp_path, monkeypatch):
    fake_model = FakeModel()
    detection = replace(model.detection, prediction="eps", zsnr=False)
    named = replace(model, entry=model.entry.model_copy(update={"profile": "pony-v6"}))
    fake_model.model = named.with_detection(detection)
    monkeypatch.setattr(generate, "build_engine", lambda *_: Engine(lambda: fake_model))
    body = {"input": "a", "parameters": {"width": 64, "height": 64}}
    output = OutputChoice(tmp_path / "a.png", tmp_path / "out.png", force=False)
    generate.generate_to_file(model, Settings(metadata="none"), body, output)
    assert (tmp_path / "a.png").exists()
    assert fake_model.jobs[0].sampler == "k_euler_ancestral" != model.profile.defaults.sampler


def test_the_encoded_prompts_are_printed_if_they_differ(model, tmp_path, monkeypatch, capsys):
    fake_model = FakeModel()
    dialect = Dialect(default=True, artist="by {name}")
    model = replace(model, profile=model.profile.model_copy(update={"dialect": dialect}))
    monkeypatch.setattr(generate, "build_engine", lambda *_: Engine(lambda: fake_model))

    def print_prompts(prompt, number):
        output = OutputChoice(tmp_path / f"{number}.png", tmp_path / "out.png", force=False)
        body = {"input": prompt, "parameters": {"width": 64, "height": 64, "negative_prompt": "bad"}}
        generate.generate_to_file(model, Settings(metadata="none"), body, output)
        return [line for line in capsys.readouterr().err.splitlines() if not line.startswith("generating")]

    lines = ["prompt: artist:a", "negative: bad", "in the model's dialect:", "prompt: by a", "negative: bad"]
    assert print_prompts("artist:a", 1)[: len(lines)] == lines
    assert "in the model's dialect:" not in print_prompts("by a", 2)


def test_another_model_of_the_catalog_draws_and_is_recorded(demo_file, tmp_path, monkeypatch):
    other = tmp_path / "other.safetensors"
    save_file(load_file(demo_file), other, dict(read_header(demo_file).metadata) | {"title": "other"})
    entries = {"a": ModelEntry(path=demo_file), "b": ModelEntry(path=other, profile="pony-v6")}
    model, fake_model = detect_model(Catalog(default="a", models=entries).with_default("b")), FakeModel()
    monkeypatch.setattr(generate, "build_engine", lambda *_: Engine(lambda: fake_model))
    body = {"input": "a", "parameters": {"width": 64, "height": 64}}
    output = OutputChoice(tmp_path / "a.png", tmp_path / "out.png", force=False)
    generate.generate_to_file(model, Settings(metadata="plain"), body, output)
    assert (fake_model.jobs[0].model, fake_model.jobs[0].sampler) == ("b", "k_euler_ancestral")
    with Image.open(tmp_path / "a.png") as image:
        assert image.info["Source"].endswith(fingerprint(other))
