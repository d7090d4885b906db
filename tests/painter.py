"""A model that only paints, and a house around it: everything of the server but the networks."""

import io
import json
import zipfile

import numpy as np
from PIL import Image

from pipelines.job import RgbImage, UpscaleJob, second_pass
from server.app import AppState
from server.config.resources import configs
from server.engine.engine import Engine
from server.picture.writer import MetadataPolicy
from server.request.presets import load_presets
from server.request.resolve import RequestPolicy

URL = "/ai/generate-image"
HERE = "http://127.0.0.1:4242"


class Painter:
    """Paints noise of the size and seed asked for, or fails; remembers the jobs it was given."""

    def __init__(self):
        self.failure = None
        self.jobs = []

    def ladder(self, job):
        return (float("inf"), 1.0, 0.0)

    def run(self, job, watch):
        self.jobs.append(job)
        if self.failure is not None:
            raise self.failure
        if isinstance(job, UpscaleJob):
            size = (job.width, job.height)
            own = Image.frombytes("RGB", (job.picture.width, job.picture.height), job.picture.rgb)
            return [np.asarray(own.resize(size, Image.Resampling.NEAREST))]
        if job.enhance is not None:
            job = second_pass(job, job.enhance, 0, RgbImage(0, 0, b""))
        return [
            np.random.default_rng(seed).integers(0, 255, (job.height, job.width, 3), np.uint8)
            for seed in job.seeds
        ]


def house(served, painter, key=None, **changes):
    """A house with the default settings; `changes` are House's fields, or Policy's mode and unknown_models."""
    presets = load_presets(configs() / "presets.toml")
    choices = {name: changes.pop(name) for name in ("mode", "unknown_models") if name in changes}
    imprint = MetadataPolicy(served.fingerprint, key, "plain" if key is None else "full", "exact")
    return AppState(Engine(lambda: painter), RequestPolicy(served, presets, **choices), imprint, **changes)


def pictures(answer):
    """The pictures in a ZIP, by their names."""
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    return {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}


def comment(answer):
    """The Comment of a ZIP's first picture."""
    return json.loads(next(iter(pictures(answer).values())).info["Comment"])
