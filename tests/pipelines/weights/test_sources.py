"""Which of the names that a network's weights may have are a file's."""

import pytest
import torch
from safetensors.torch import save_file

from pipelines.weights.checkpoint import open_checkpoint
from pipelines.weights.key_map import MappedKey
from pipelines.weights.naming import Naming
from pipelines.weights.sources import Component, find_weights


def name(prefix):
    return Naming(prefix, {key: (MappedKey(prefix + key),) for key in ("a", "b")})


@pytest.fixture
def source(tmp_path):
    save_file({f"new.{key}": torch.zeros(1) for key in ("a", "b")}, tmp_path / "a.safetensors")
    return open_checkpoint(tmp_path / "a.safetensors")


def find_keys(source, namings):
    found = find_weights(source, [Component("network", {"a": (1,), "b": (1,)}, namings)])
    return [weight.mapped.key for weight in found["network"].values()]


def test_the_naming_with_the_most_weights_is_the_files(source):
    half = Naming("new.", {"a": (MappedKey("new.a"),), "b": (MappedKey("c"),)})
    assert find_keys(source, [name("old."), half, name("new.")]) == ["new.a", "new.b"]


def test_no_naming_is_built_after_one_that_has_all_weights(source):
    def build_namings():
        yield name("old.")
        yield name("new.")
        pytest.fail("it is not needed")

    assert find_keys(source, build_namings()) == ["new.a", "new.b"]
