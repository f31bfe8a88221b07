"""Models for what is stored, made without torch, so that a process of its own has them at once."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir


def sum_of(*weights: np.ndarray, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """Return a model that holds these weights, and does nothing with them."""
    values = []
    for number, weight in enumerate(weights):
        tensor = ir.Tensor(weight, dtype=dtype, name=f"w{number}")
        values.append(ir.Value(name=f"w{number}", const_value=tensor, shape=tensor.shape, type=ir.TensorType(dtype)))
    node = ir.Node("", "Identity", [values[0]])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", ir.TensorType(dtype), values[0].shape
    graph = ir.Graph([], [node.outputs[0]], nodes=[node], initializers=values, opset_imports={"": 21}, name="g")
    return ir.Model(graph, ir_version=10)


def weights_of(seed: int = 0) -> np.ndarray:
    """Return weights of which no two seeds have the same."""
    return np.random.default_rng(seed).normal(size=(40, 30)).astype(np.float32)
