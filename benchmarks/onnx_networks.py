"""Small ONNX networks of this project's own making, in place of the ones that people download.

The matting network finds what differs from the color of the image's top corners. Used by the sheet of the director
tools and by tests.
"""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

Node = tuple[str, list[str], str, dict[str, Any]]


def write_network(
    path: Path,
    nodes: list[Node],
    constants: dict[str, np.ndarray],
    shape: tuple[int | str, ...] = (1, 3, "h", "w"),
    kind: int = TensorProto.FLOAT,
) -> Path:
    """Write a network from the input `x` to the output `y`; a node has an operation, inputs, an output, attributes."""
    graph = helper.make_graph(
        [
            helper.make_node(operation, inputs, [output], **attributes)
            for operation, inputs, output, attributes in nodes
        ],
        "network",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, ["n", "c", "h2", "w2"])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    save(model, str(path))
    return path


def write_matting_network(path: Path, side: int | None = 320) -> Path:
    """Write a matting network: logits of how much a pixel differs from the top corners, with an input of `side`."""
    whole = lambda *values: np.array(values, np.int64)  # noqa: E731
    nodes: list[Node] = [
        (
            "AveragePool",
            ["x"],
            "soft",
            {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2], "count_include_pad": 0},
        ),
        ("Slice", ["soft", "start", "stop", "axes"], "top", {}),
        ("ReduceMean", ["top"], "background", {"axes": [2, 3]}),
        ("Sub", ["soft", "background"], "difference", {}),
        ("Abs", ["difference"], "distance", {}),
        ("ReduceMax", ["distance"], "largest", {"axes": [1]}),
        ("Mul", ["largest", "gain"], "scaled", {}),
        ("Sub", ["scaled", "bias"], "y", {}),
    ]
    constants = {
        "start": whole(0),
        "stop": whole(8),
        "axes": whole(2),
        "gain": np.array(14, np.float32),
        "bias": np.array(6, np.float32),
    }
    return write_network(path, nodes, constants, (1, 3, side or "h", side or "w"))
