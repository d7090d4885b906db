from dataclasses import replace

from fake_model import FakeModel

from server.cli import generate
from server.cli.output import OutputChoice
from server.config.settings import Settings
from server.engine.engine import Engine


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
