"""Small ONNX models made by hand, for the tests of ONNX files as a source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

if TYPE_CHECKING:
    from spdexport.conv import Array


def random(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def model(
    nodes: list[onnx.NodeProto],
    *,
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any] | None],
    weights: dict[str, Array],
    opset: int = 18,
    dtype: int = TensorProto.FLOAT,
    listed: tuple[str, ...] = (),
    ir_version: int = 8,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model; ``listed`` names the weights that are inputs too."""
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    declared = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()]
    declared += [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in stored if t.name in listed]
    ends = [helper.make_tensor_value_info(name, dtype, shape) for name, shape in outputs.items()]
    graph = helper.make_graph(nodes, "hand_made", declared, ends, stored)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="by_hand")


def network(opset: int = 18, *, dtype: str = "float32", **settings: Any) -> onnx.ModelProto:
    """Conv, Relu, Conv, a mean, Gemm, Relu, MatMul, Add; 8 by 8 images."""
    weights = {
        "net.conv1.weight": random(6, 3, 3, 3, dtype=dtype),
        "net.conv1.bias": random(6, dtype=dtype),
        "w2": random(5, 6, 1, 1, dtype=dtype),
        "fc.weight": random(4, 5, dtype=dtype),
        "fc.bias": random(4, dtype=dtype),
        "val_1": random(4, 3, dtype=dtype),
        "out.bias": random(3, dtype=dtype),
    }
    mean = helper.make_node("GlobalAveragePool", ["c2"], ["mean"])
    nodes = [
        helper.make_node("Conv", ["x", "net.conv1.weight", "net.conv1.bias"], ["c1"], name="n1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], name="second"),
        mean,
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["g"], name="gemm", transB=1),
        helper.make_node("Relu", ["g"], ["r2"]),
        helper.make_node("MatMul", ["r2", "val_1"], ["product"]),
        helper.make_node("Add", ["product", "out.bias"], ["y"]),
    ]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shapes = {"inputs": {"x": ["N", 3, 8, 8]}, "outputs": {"y": ["N", 3]}}
    return model(nodes, **shapes, weights=weights, opset=opset, dtype=element, **settings)


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save(proto, path)
    return path


def unsqueezes(shape: list[Any], *axes: list[int], tap: bool = False) -> ir.Model:
    """One Unsqueeze behind another; with ``tap`` the value between is an output too."""
    names = ["mask_a", *(f"v{number}" for number in range(len(axes)))]
    nodes = [
        helper.make_node("Unsqueeze", [names[i], f"axes{i}"], [names[i + 1]], name=f"n{i}") for i in range(len(axes))
    ]
    held = [helper.make_tensor(f"axes{i}", TensorProto.INT64, [len(a)], a) for i, a in enumerate(axes)]
    value = helper.make_tensor_value_info("mask_a", TensorProto.FLOAT, shape)
    outputs = [names[-1], *([names[1]] if tap else [])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", [value], ports, held)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


def exported(module: nn.Module, x: torch.Tensor, path: Path) -> Path:
    """The module's plain export, with a dynamic batch and all weights inside of the file."""
    torch.onnx.export(
        module, (x,), path, dynamo=True, external_data=False, verbose=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )  # fmt: skip
    return path


def outputs(path: Path, x: Array) -> Array:
    """What a file with one input and one output gives, on the CPU."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found
