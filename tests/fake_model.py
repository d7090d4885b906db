"""A model without networks, and application state around it: the server can be tested without torch."""

import io
import json
import zipfile
from collections.abc import Mapping
from contextlib import contextmanager
from threading import Semaphore
from types import MappingProxyType

import numpy as np
from fastapi.testclient import TestClient
from PIL import Image
from waiting import LIMIT

from pipelines.job import EncodedVibe, Job, UpscaleJob, VibeJob
from pipelines.steps import Run, Step
from pipelines.types import Output, Preview, Progress
from server.api.state import AppState
from server.app import create_app
from server.config.resources import configs
from server.engine.engine import Engine
from server.engine.model import ServedModel
from server.metrics.metrics import Metrics
from server.picture.writer import MetadataPolicy
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy

GENERATE = "/ai/generate-image"
BASE_URL = "http://127.0.0.1:4242"


class FakeModel:
    """Returns noise of the job's size and seed, or raises `failure`; records what it was asked for.

    Args:
        gate: acquired in each evaluation, so that a test decides when it ends.
    """

    model: ServedModel | None = None

    def __init__(self, gate=None):
        self.gate: Semaphore | None = gate
        self.preview: bytes | None = make_jpeg()  # sent after each evaluation; none if it is None
        self.failure: Exception | None = None
        self.jobs = []  # that began
        self.evaluations = []  # (job, step)
        self.finished = []
        self.prepared = []  # while another one ran

    models: Mapping[str, ServedModel] = MappingProxyType({})
    device_memory: Mapping[str, int] = MappingProxyType({})

    def find_place(self, name):
        return "device"

    def prepare(self, job):
        self.prepared.append(job)

    def is_active(self, job):
        return True

    def activate(self, job, others):
        pass

    def free_memory(self, job, others):
        pass

    def begin(self, job, on_preview=None):
        self.jobs.append(job)
        return Run([self._generate(job, on_preview)], lambda outputs: outputs[0])

    def run(self, job, on_step=None):
        return self.begin(job).complete(on_step)

    def _evaluate(self, steps):
        ((job, step, on_preview),) = steps
        self.evaluations.append((job, step))
        if self.gate is not None:
            assert self.gate.acquire(timeout=LIMIT)
        if on_preview is not None and self.preview is not None and isinstance(job, Job):
            for image in range(len(job.passes[0].seeds)):
                sigma = float("inf") if step == 1 else 1.0
                on_preview(Preview(image, step, sigma, bytes(bytearray(self.preview))))
        return [None]

    def _generate(self, job, on_preview):
        steps = job.steps if isinstance(job, Job) else 1
        for step in range(1, steps + 1):
            yield Step(Progress(0, step, steps, 1.0), self._evaluate, (job, step, on_preview))
        if self.failure is not None:
            raise self.failure
        self.finished.append(job)
        if isinstance(job, UpscaleJob):
            source = Image.frombytes("RGB", (job.image.width, job.image.height), job.image.rgb)
            return Output([np.asarray(source.resize((job.width, job.height), Image.Resampling.NEAREST))], ())
        if isinstance(job, VibeJob):
            values = np.full((8, 96), job.image.rgb[len(job.image.rgb) // 2], "<f4").tobytes()
            return Output((), (), EncodedVibe(8, 96, values, job.information_extracted))
        size = (job.passes[-1].height, job.passes[-1].width, 3)
        images = [
            np.random.default_rng(seed).integers(0, 255, size, np.uint8) for seed in job.passes[-1].seeds
        ]
        return Output(images, (float("inf"), 1.0, 0.0))


def make_jpeg():
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "blue").save(file, "JPEG")
    return file.getvalue()


def build_state(model, fake_model, key=None, **changes):
    """Application state with default settings; `changes` are fields of AppState, or RequestPolicy's mode and unknown_models."""
    presets = load_presets(configs() / "presets.toml")
    choices = {name: changes.pop(name) for name in ("mode", "unknown_models") if name in changes}
    metadata = MetadataPolicy(model.fingerprint, key, "plain" if key is None else "full", "exact")
    metrics = Metrics()
    engine = Engine(lambda: fake_model, on_event=metrics.observe)
    return AppState(engine, RequestPolicy(model, presets, **choices), metadata, metrics=metrics, **changes)


@contextmanager
def start_client(state, **options):
    """Yield a client of the application with this state, whose model is loaded."""
    with TestClient(create_app(state), base_url=BASE_URL, **options) as client:
        state.engine.wait_ready()
        yield client


def unzip_images(response):
    """The images in a ZIP, by their names."""
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    return {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}


def read_comment(response):
    """The Comment of a ZIP's first image."""
    return json.loads(next(iter(unzip_images(response).values())).info["Comment"])
