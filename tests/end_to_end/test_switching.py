"""A mixed load over two models and three sets of LoRAs: every image is the one that a server with nothing else draws."""

import gc
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import pairwise, product
from random import Random

import numpy as np
import pytest
import torch
from checkpoint_files import CONV_OUT
from fake_model import BASE_URL, GENERATE, unzip_images
from fastapi.testclient import TestClient
from lora_files import random_lora, write_lora
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensor
from waiting import wait_until

from pipelines.weights.header import read_header
from server.app import create_app
from server.cli.bootstrap import build_app_state
from server.config.catalog import Catalog, ModelEntry
from server.config.settings import EngineSettings, Settings
from server.engine.model import detect_model, detect_others
from server.engine.resident import ResidentModels

pytestmark = pytest.mark.slow

UNET = {"lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q": (64, 64)}
TEXT = {"lora_te2_text_model_encoder_layers_1_mlp_fc1": (256, 64)}
SETS = {"none": [], "ink": ["ink"], "wash": ["wash"], "both": ["wash", {"name": "ink", "strength": 0.5}]}
KINDS = tuple(product(("a", "b"), SETS))
DEFAULTS = EngineSettings()
PLACES = {
    "memory": EngineSettings(device_memory=0),
    "disk": EngineSettings(device_memory=0, parked_memory=0, lora_memory=0),
}
"""Where the model waits that does not run; without memory for LoRAs the unchanged weights are read again."""


@pytest.fixture(scope="module")
def catalog(demo_file, tmp_path_factory):
    """The demo model, and one whose network predicts half as much, with two LoRAs."""
    folder = tmp_path_factory.mktemp("models")
    tensors = load_file(demo_file)
    tensors[CONV_OUT] = tensors[CONV_OUT] * 0.5
    save_file(tensors, folder / "half.safetensors", dict(read_header(demo_file).metadata))
    for seed, (name, layers) in enumerate({"ink": UNET | TEXT, "wash": UNET}.items()):
        write_lora(folder / "loras" / f"{name}.safetensors", random_lora(layers, seed=seed))
    entries = {"a": ModelEntry(path=demo_file), "b": ModelEntry(path=folder / "half.safetensors")}
    return Catalog(default="a", models=entries, lora_folder=folder / "loras")


@contextmanager
def open_client(catalog, folder, engine=DEFAULTS):
    """A client of a server in this process, whose default model is loaded."""
    others, problems = detect_others(catalog)
    assert not problems
    settings = Settings(engine=engine, signing_key=folder / "signing.pem")
    state = build_app_state(detect_model(catalog), settings, others)
    with TestClient(create_app(state), base_url=BASE_URL) as client:
        state.engine.wait_ready()
        yield client


def draw(client, kind):
    model, loras = kind
    parameters = {"width": 64, "height": 64, "steps": 1, "seed": 7, "loras": SETS[loras]}
    response = client.post(GENERATE, json={"input": "1girl", "model": model, "parameters": parameters})
    assert response.status_code == 200, response.text
    image = next(iter(unzip_images(response).values()))
    return np.asarray(image)[..., :3].tobytes(), image.info["Source"].split()[-1]


@pytest.fixture(scope="module")
def alone(catalog, tmp_path_factory):
    """The pixels and hash of each kind of request from a server that gets no other, and serves no other model."""
    drawn = {}
    for kind in KINDS:
        own = catalog.model_copy(update={"default": kind[0], "models": {kind[0]: catalog.models[kind[0]]}})
        with open_client(own, tmp_path_factory.mktemp("alone")) as client:
            drawn[kind] = draw(client, kind)
    assert len({pixels for pixels, _ in drawn.values()}) == len(KINDS)
    return drawn


@pytest.fixture
def record(monkeypatch):
    """The models of a server, and the jobs whose steps they took, in their order."""
    residents, jobs, activate = set(), [], ResidentModels.activate

    def record_activation(self, work, *others):
        residents.add(self)
        if not jobs or jobs[-1] is not work:
            jobs.append(work)
        return activate(self, work, *others)

    monkeypatch.setattr(ResidentModels, "activate", record_activation)
    return residents, jobs


def count_changes(values):
    return sum(old != new for old, new in pairwise(values))


def count_tensor_bytes():
    """Bytes of all tensors that Python code can reach, each storage once; a compiler's stand-ins have no memory."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    tensors = [each for each in tensors if not isinstance(each, FakeTensor)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("place", PLACES)
def test_a_mixed_load_gets_the_images_of_a_server_with_nothing_else(catalog, alone, record, tmp_path, place):
    residents, jobs = record
    order = list(KINDS) * (1 if place == "disk" else 2)
    Random(place).shuffle(order)
    with open_client(catalog, tmp_path, PLACES[place]) as client, ThreadPoolExecutor(6) as threads:

        def draw_all(kinds):
            return list(threads.map(partial(draw, client), kinds))

        sizes = []
        for mixed in (order, order[::-1]):
            assert draw_all(mixed) == [alone[kind] for kind in mixed]
            assert [draw(client, kind) for kind in KINDS] == [alone[kind] for kind in KINDS]
            sizes.append(count_tensor_bytes())
        wait_until(
            lambda: count_tensor_bytes() <= sizes[0]
        )  # the device thread may still hold the last image
    (resident,) = residents
    assert resident.switches == count_changes(["a", *(job.model for job in jobs)])
    loaded = resident._device | resident._memory
    assert sorted(loaded) == (["b"] if place == "disk" else ["a", "b"])
    for name, model in loaded.items():
        since = len(jobs) - len(SETS) if place == "disk" else 0
        sets = [(), *(job.loras for job in jobs[since:] if job.model == name)]
        assert model.pipeline.lora_swaps == count_changes(sets)
