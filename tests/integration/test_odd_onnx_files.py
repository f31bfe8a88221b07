"""ONNX files that say ordinary things in unusual ways: every command takes them, and no answer contradicts another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_command import spdexport
from onnx import TensorProto, helper, numpy_helper


def odd_file(kind: str, path: Path) -> Path:
    """A 3x3 convolution of x (N, 3, 8, 8) to 6 channels, and one thing behind it."""
    weight = np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)
    held = {"w": weight}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4)]
    shape: list[str | int] | None = ["N", 6, 8, 8]
    match kind:
        case "reversed":
            numbers = {"starts": [-1], "ends": [np.iinfo(np.int64).min], "axes": [3], "steps": [-1]}
            held |= {name: np.array(values, np.int64) for name, values in numbers.items()}
            nodes.append(helper.make_node("Slice", ["c", *numbers], ["y"]))
        case "summed backwards":
            held["axis"] = np.array(2, np.int64)
            nodes.append(helper.make_node("CumSum", ["c", "axis"], ["y"], reverse=1))
        case "outputs without a name":
            nodes.append(helper.make_node("MaxPool", ["c"], ["p", ""], kernel_shape=[2, 2]))
            nodes.append(helper.make_node("Dropout", ["p", "", ""], ["y", ""]))
            shape = ["N", 6, 7, 7]
        case "an output without a shape":
            nodes.append(helper.make_node("Relu", ["c"], ["y"]))
            shape = None
        case "an axis of size -1":
            nodes.append(helper.make_node("Relu", ["c"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    if "-1" in kind:
        x.type.tensor_type.shape.dim[0].dim_value = -1
    tensors = [numpy_helper.from_array(values, name) for name, values in held.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    "kind",
    ["reversed", "summed backwards", "outputs without a name", "an output without a shape", "an axis of size -1"],
)
def test_every_command_takes_it(kind: str, tmp_path: Path) -> None:
    path = odd_file(kind, tmp_path / "m.onnx")
    converted, folded = tmp_path / "c.onnx", tmp_path / "f.onnx"
    for command in (
        ("inspect", path),
        ("verify", path),
        ("convert", path, "-o", converted),
        ("verify", converted, "--against", path),
        ("verify", converted),
        ("convert", path, "-o", tmp_path / "a.onnx", "--form", "auto"),
        ("fold", converted, "-o", folded),
        ("verify", folded, "--against", path),
    ):
        result = spdexport(*command, *(() if command[0] == "inspect" else ("--provider", "cpu")))
        assert result.exit_code == 0, (command, result.output)
