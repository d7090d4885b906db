"""Two small models in a catalog: their pixels never mix, and a switch that fails leaves the other one serving."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoint_files import CONV_OUT
from drive import run_job
from fake_model import GENERATE, read_comment, unzip_images
from fastapi.testclient import TestClient
from faults import Faulty, run_out_of_memory
from jobs import make_job
from safetensors.torch import load_file, save_file

from demo.checkpoint import DEMO, INPAINTING, VIBE
from pipelines.errors import OutOfMemory, PipelineError, UnknownName
from pipelines.job import RgbImage, UpscaleJob
from pipelines.weights.header import read_header
from server.app import create_app
from server.cli.bootstrap import build_app_state
from server.config.catalog import Catalog, ModelEntry, VibeFiles
from server.config.settings import EngineSettings, Settings
from server.engine import loading
from server.engine.loading import load_models, load_runner
from server.engine.model import ServedModel, detect_model, detect_others
from server.errors import Unavailable

pytestmark = pytest.mark.slow

PARKED, DROPPED = (
    EngineSettings(device_memory=0),
    EngineSettings(device_memory=0, parked_memory=0),
)
BOTH = EngineSettings()


@pytest.fixture(scope="module")
def catalog(demo_file, tmp_path_factory):
    """The demo model, and one whose network predicts half as much, with another profile."""
    file = tmp_path_factory.mktemp("models") / "half.safetensors"
    tensors = load_file(demo_file)
    tensors[CONV_OUT] = tensors[CONV_OUT] * 0.5
    save_file(tensors, file, dict(read_header(demo_file).metadata))
    entries = {"a": ModelEntry(path=demo_file), "b": ModelEntry(path=file, profile="noobai-vpred")}
    return Catalog(default="a", models=entries | {"b-again": entries["b"]})


@pytest.fixture(scope="module")
def models(catalog):
    others, problems = detect_others(catalog)
    assert not problems
    return detect_model(catalog), *others


@pytest.fixture(scope="module")
def expected(models):
    """Pixels of each model, loaded alone."""
    return {model.id: draw(load_runner(model, Settings()), model.id) for model in models}


def ask(model, **changes):
    return replace(make_job(width=64, height=64, steps=2, **changes), model=model)


def draw(loaded, model):
    return run_job(loaded, ask(model)).images[0]


def load(models, engine=BOTH):
    return load_models(models, Settings(engine=engine))


@pytest.mark.parametrize(("engine", "place"), [(BOTH, "device"), (PARKED, "memory"), (DROPPED, "disk")])
def test_a_model_draws_the_same_after_it_was_replaced(models, expected, engine, place):
    resident = load(models, engine)
    assert resident.find_place("b") == "disk"
    for name in ("a", "b", "a", "b", "b"):
        assert np.array_equal(draw(resident, name), expected[name])
    assert not np.array_equal(expected["a"], expected["b"])
    assert (resident.find_place("b"), resident.find_place("a"), resident.switches) == ("device", place, 3)


def test_an_upscale_needs_no_switch(models):
    resident = load(models, PARKED)
    draw(resident, "b")
    run_job(resident, UpscaleJob(RgbImage(8, 8, bytes(192)), 16, 16))
    assert (resident.switches, resident.find_place("b")) == (1, "device")


@pytest.mark.parametrize("engine", [BOTH, PARKED, DROPPED])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_failed_switch_leaves_the_other_model_serving(catalog, expected, tmp_path, engine, damage):
    file = tmp_path / "half.safetensors"
    file.write_bytes(catalog.models["b"].path.read_bytes())
    copy = Catalog(default="a", models={"a": catalog.models["a"], "b": ModelEntry(path=file)})
    resident = load((detect_model(copy), *detect_others(copy)[0]), engine)
    if damage == "missing":
        file.unlink()
    else:
        replaced = catalog.models["a"].path.read_bytes()
        file.write_bytes(replaced if damage == "changed" else replaced[:-100])
    for _ in range(2):
        with pytest.raises(
            PipelineError, match=r"model: 'b' could not be loaded: half\.safetensors: "
        ) as error:
            draw(resident, "b")
        assert str(tmp_path) not in str(error.value)
        assert np.array_equal(draw(resident, "a"), expected["a"])


def test_an_auxiliary_file_that_was_replaced_is_noticed_when_its_model_is_loaded_again(catalog, tmp_path):
    sources = {"vae": DEMO, "text_encoders": DEMO, "inpainting": INPAINTING, "vibe": VIBE}
    files = {key: tmp_path / f"{key}.safetensors" for key in sources}
    for key, source in sources.items():
        files[key].write_bytes(source.read_bytes())
    others = {"text_encoders": (files["text_encoders"],), "vibe": VibeFiles(path=files["vibe"])}
    entry = catalog.models["b"].model_copy(update=files | others)
    copy = Catalog(default="a", models={"a": catalog.models["a"], "b": entry})
    resident = load((detect_model(copy), detect_model(copy, "b")), DROPPED)
    before = draw(resident, "b")
    draw(resident, "a")
    for key, source in sources.items():
        save_file(load_file(source), files[key], dict(read_header(source).metadata) | {"title": "another"})
        with pytest.raises(
            PipelineError, match=rf"'b' could not be loaded: {key}\.safetensors: it has changed"
        ):
            draw(resident, "b")
        files[key].write_bytes(source.read_bytes())
    assert np.array_equal(draw(resident, "b"), before)


def test_lack_of_memory_is_named(models, expected, monkeypatch):
    resident = load(models)

    def fail(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate 5 GiB")

    monkeypatch.setattr("server.engine.loading.load_weights", fail)
    with pytest.raises(PipelineError, match="'b' could not be loaded: not enough memory") as error:
        draw(resident, "b")
    assert "CUDA" not in str(error.value)
    assert np.array_equal(draw(resident, "a"), expected["a"])


def test_a_model_for_which_memory_ran_out_is_loaded_once_the_others_are_gone(models, expected, monkeypatch):
    resident = load(models)
    draw(resident, "a")
    load_weights = Faulty(loading.load_weights, {1: run_out_of_memory})
    monkeypatch.setattr(loading, "load_weights", load_weights)
    with pytest.raises(OutOfMemory, match="model: 'b' could not be loaded: not enough memory"):
        draw(resident, "b")
    resident.free_memory(ask("b"), [])
    assert [resident.find_place(name) for name in "ab"] == ["disk", "disk"]
    for name in "ba":
        assert np.array_equal(draw(resident, name), expected[name])


@pytest.mark.parametrize(
    ("is_shared", "begun", "place"), [(False, (), "memory"), (True, "b", "memory"), (True, (), "disk")]
)
def test_freeing_memory_moves_models_that_a_job_does_not_need(models, expected, is_shared, begun, place):
    resident = load(models)
    resident._is_shared = is_shared
    for name in "ba":
        draw(resident, name)
    resident.free_memory(ask("a"), [ask(name) for name in begun])
    assert (resident.find_place("a"), resident.find_place("b")) == ("device", place)
    assert resident.is_active(ask("a"))
    assert not resident.is_active(ask("b"))
    assert np.array_equal(draw(resident, "b"), expected["b"])


def test_another_profile_after_loading_asks_for_the_request_again(models, expected):
    a, b = models
    resident = load((a, b))
    load_b = resident._load

    def load_otherwise(model) -> Any:
        loaded: Any = load_b(model)
        return replace(loaded, model=replace(b, profile=a.profile))

    resident._load = load_otherwise
    with pytest.raises(Unavailable, match="send the request again"):
        draw(resident, "b")
    assert resident.models["b"].profile == a.profile
    assert np.array_equal(draw(resident, "b"), expected["b"])


def test_an_unknown_model_is_refused(models):
    with pytest.raises(UnknownName, match="'c' is not a model"):
        draw(load(models), "c")


def test_files_that_cannot_be_served_are_reported(catalog, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    bad = {name: ModelEntry(path=tmp_path / f"{name}.safetensors") for name in ("bad", "gone")}
    others, problems = detect_others(Catalog(default="a", models={**catalog.models, **bad}))
    assert [model.id for model in others] == ["b"]
    assert set(problems) == {"bad", "gone"}
    assert str(tmp_path) not in str(problems)


@pytest.fixture
def client(catalog, tmp_path):
    settings = Settings(engine=DROPPED, signing_key=tmp_path / "signing.pem")
    others, problems = detect_others(catalog)
    state = build_app_state(detect_model(catalog), settings, others, {**problems, "c": "c.safetensors: bad"})
    with TestClient(create_app(state), base_url="http://127.0.0.1:4242") as client:
        state.engine.wait_ready()
        yield client


def post(client, model, seed=7):
    parameters = {"width": 64, "height": 64, "steps": 2, "seed": seed, "scale": 5}
    body = {"input": "1girl", "model": model, "parameters": parameters}
    return client.post(GENERATE, json=body)


def read(response):
    assert response.status_code == 200, response.text
    image = next(iter(unzip_images(response).values()))
    return np.asarray(image)[..., :3].tobytes(), image.info["Source"], read_comment(response)


def test_each_id_gets_its_own_model_s_pixels_source_and_defaults(client, models):
    names = ["a", "b", "b-again"]
    alone = {name: read(post(client, name)) for name in names}
    assert alone["b"][0] == alone["b-again"][0] != alone["a"][0]
    by_id: dict[str, ServedModel] = dict(zip(("a", "b"), models, strict=True))
    for name, (_, source, comment) in alone.items():
        assert source.endswith(by_id[name[0]].fingerprint)
        assert comment["noise_schedule"] == by_id[name[0]].profile.defaults.noise_schedule


def test_models_lists_all_and_where_they_are(client):
    read(post(client, "b"))
    cards = {card["id"]: card for card in client.get("/models").json()["models"]}
    assert {name: card.get("loaded") for name, card in cards.items()} == {
        "a": "disk",
        "b": "device",
        "c": None,
    }
    refused = post(client, "c")
    assert refused.status_code == 400
    assert (
        refused.json()["message"] == "model: 'c' cannot be served: c.safetensors: bad; served: a, b, b-again"
    )


def test_only_the_first_model_is_warmed_up_since_a_request_would_wait_for_others(models, monkeypatch):
    warmed = []
    monkeypatch.setattr(loading, "has_own_memory", lambda device: True)
    monkeypatch.setattr(loading, "warm_up", lambda draw, defaults, **options: warmed.append(defaults))
    residents = load(models)
    assert warmed == [models[0].profile.defaults]
    residents.activate(ask("b"))
    assert len(warmed) == 1


@pytest.mark.parametrize("warms_up", [True, False])
def test_what_draws_once_need_not_be_warmed_up_nor_compiled(model, monkeypatch, warms_up):
    prepared = []
    monkeypatch.setattr(loading, "has_own_memory", lambda device: True)
    monkeypatch.setattr(loading, "warm_up", lambda *_, **options: prepared.append("drawn"))
    monkeypatch.setattr(loading.Pipeline, "compile_decoder", lambda *_: prepared.append("compiled"))
    load_models((model,), Settings(device="cpu"), warms_up=warms_up)
    assert prepared == (["compiled", "drawn"] if warms_up else [])
