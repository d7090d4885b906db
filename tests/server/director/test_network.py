"""ONNX networks, of this project's own making."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from benchmarks.onnx_networks import write_matting_network, write_network
from server.config.catalog import ToolFile, ToolFiles
from server.config.toml import ConfigError
from server.director.network import IMAGENET, PLAIN, fit_size, load_network, load_networks

GRADIENT = np.linspace(0, 255, 96 * 64 * 3).reshape(96, 64, 3).astype(np.uint8)
IDENTITY = [("Identity", ["x"], "y", {})]


def load(path, tool="lineart", **options):
    return load_network(tool, ToolFile(path=path, **options))


def test_a_network_of_any_size_gets_the_image_at_its_own(tmp_path):
    network = load(write_network(tmp_path / "any.onnx", IDENTITY, {}))
    assert (network.size, network.scaling) == (None, PLAIN)
    output = network.run(GRADIENT)
    assert output.shape == (3, 96, 64)
    assert output.transpose(1, 2, 0) == pytest.approx(GRADIENT / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "size"), [((1, 3, 64, 32), (32, 64)), ((1, 64, 32, 3), (32, 64)), (("n", 3, 64, 64), (64, 64))]
)
def test_a_fixed_input_decides_the_size(tmp_path, shape, size):
    network = load(write_network(tmp_path / "fixed.onnx", IDENTITY, {}, shape))
    assert network.size == size
    assert network.run(GRADIENT).shape == (3, size[1], size[0])


def test_half_precision_is_fed_as_such(tmp_path):
    network = load(write_network(tmp_path / "half.onnx", IDENTITY, {}, kind=10))
    assert network.run(GRADIENT).dtype == np.float32


def test_scaling_comes_from_the_catalog_or_from_the_name_of_the_file(tmp_path):
    path = write_network(tmp_path / "BiRefNet-general.onnx", IDENTITY, {})
    assert load(path).scaling == IMAGENET
    chosen = load(path, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), size=64)
    assert chosen.run(np.full((8, 8, 3), 255, np.uint8)) == pytest.approx(1)
    assert (chosen.size, chosen.run(GRADIENT).shape) == ((64, 64), (3, 64, 64))


def test_a_matting_network_of_any_size_gets_1024_pixels(tmp_path):
    assert load(write_matting_network(tmp_path / "m.onnx", None), "matting").size == (1024, 1024)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(1000, 700, (992, 704)), (4096, 3072, (1440, 1088)), (1, 9, (32, 32)), (3_000_000, 1, (8192, 32))],
)
def test_sizes_are_multiples_of_32_and_bounded(width, height, size):
    assert fit_size(width, height) == size


@pytest.mark.parametrize(
    ("nodes", "shape", "reason"),
    [
        (IDENTITY, (1, 5, "h", "w"), "one input, a float image"),
        ([("ReduceMean", ["x"], "y", {"axes": [2, 3]})], (1, 3, 64, 64), ""),
        ([("Concat", ["x", "x"], "y", {"axis": 1})], (1, 3, "h", "w"), "not a picture with 1 or 3 channels"),
        ([("Concat", ["x", "x"], "y", {"axis": 0})], (1, 3, "h", "w"), "not a picture with 1 or 3 channels"),
        ([("Reshape", ["x", "shape"], "y", {})], (1, 3, "h", "w"), "fails on an image"),
    ],
)
def test_networks_of_another_kind_are_refused_by_name(tmp_path, nodes, shape, reason):
    constants = {"shape": np.array([1, 3, 7, 7])} if nodes[0][0] == "Reshape" else {}
    path = write_network(tmp_path / "other.onnx", nodes, constants, shape)
    if not reason:
        assert load(path).run(GRADIENT).shape == (3, 1, 1)
        return
    with pytest.raises(ConfigError, match=rf"tools\.lineart = '.*other\.onnx': .*{reason}"):
        load(path)


def test_a_size_that_a_fixed_input_does_not_have_is_refused(tmp_path):
    path = write_network(tmp_path / "a.onnx", IDENTITY, {}, (1, 3, 64, 64))
    with pytest.raises(ConfigError, match=r"tools\.lineart\.size = 320: the network's input is 64x64"):
        load(path, size=320)


def test_a_file_that_is_no_network_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"not a network")
    with pytest.raises(ConfigError, match="not an ONNX network that onnxruntime can run"):
        load(tmp_path / "a.onnx")


def test_without_onnxruntime_the_extra_is_named_and_nothing_is_imported_without_tools(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert load_networks(ToolFiles()) == {}
    with pytest.raises(ConfigError, match=r"tools\.matting: needs onnxruntime.*naiad\[tools\]"):
        load_networks(ToolFiles(matting=ToolFile(path=Path("a.onnx"))))
