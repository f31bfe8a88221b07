"""Random networks with dead channels of every kind, for the tests of their removal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import helper
from onnx_models import model

node = helper.make_node


class Graph:
    """A random network while it grows: (N, 3, 6, 6) images in, one value after the other out of the last."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Any] = {}

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(op, inputs, [name], **attributes))
        return name

    def weight(self, *shape: int, out: int = 0, into: int | None = None) -> str:
        """A weight some of whose rows and columns are zero."""
        array = self.rng.standard_normal(shape).astype(np.float32)
        for axis in (out, into):
            if axis is not None:
                dead = np.flatnonzero(self.rng.random(shape[axis]) < self.draw(st.sampled_from((0, 0.3, 0.6))))
                array[tuple([slice(None)] * axis + [dead])] = 0
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def numbers(self, count: int, *shape: int) -> str:
        """Some of them zero, some negative."""
        name = f"w{len(self.weights)}"
        array = self.rng.standard_normal(count) * (self.rng.random(count) < 0.7)
        self.weights[name] = array.astype(np.float32).reshape(shape or (count,))
        return name

    def conv(self, x: str, into: int, out: int, *, groups: int = 1) -> str:
        kernel = self.draw(st.sampled_from((1, 3)))
        pads = kernel // 2  # sizes stay
        inputs = [x, self.weight(out, into // groups, kernel, kernel, into=1 if groups == 1 else None)]
        if self.draw(st.booleans()):
            inputs.append(self.numbers(out))
        return self.add("Conv", inputs, pads=[pads] * 4, group=groups)

    def pointwise(self, x: str, channels: int) -> str:
        """Any operator on channels by themselves that keeps the size."""
        kind = self.draw(
            st.sampled_from(("Relu", "BatchNormalization", "MaxPool", "Mul", "Add", "Sigmoid", "AveragePool"))
        )
        if kind == "BatchNormalization":
            given = [self.numbers(channels), self.numbers(channels), self.numbers(channels)]
            variance = self.numbers(channels)
            self.weights[variance] = np.abs(self.weights[variance]) + np.float32(0.1)
            return self.add(kind, [x, *given, variance])
        if kind in ("Mul", "Add"):
            return self.add(kind, [x, self.numbers(channels, channels, 1, 1)])
        if kind in ("MaxPool", "AveragePool"):
            counted = {} if kind == "MaxPool" else {"count_include_pad": self.draw(st.integers(0, 1))}
            return self.add(kind, [x], kernel_shape=[3, 3], pads=[1] * 4, **counted)
        return self.add(kind, [x])

    def block(self, x: str, channels: int) -> tuple[str, int]:
        out = self.draw(st.sampled_from((channels, channels + 2)))
        match self.draw(st.sampled_from(("chain", "residual", "concat", "depthwise", "grouped"))):
            case "chain":
                return self.conv(self.pointwise(x, channels), channels, out), out
            case "residual":
                inner = self.conv(self.pointwise(self.conv(x, channels, out), out), out, channels)
                return self.add("Add", [inner, x]), channels
            case "concat":
                both = [self.conv(x, channels, 3), self.pointwise(x, channels)]
                return self.add("Concat", both, axis=1), channels + 3
            case "depthwise":
                return self.conv(x, channels, channels, groups=channels), channels
            case _:
                even = channels + channels % 2
                return self.conv(self.conv(x, channels, even), even, 4, groups=2), 4

    def head(self, x: str, channels: int) -> str:
        match self.draw(st.sampled_from(("flatten", "pooled", "reshape", "none"))):
            case "flatten":
                x, size = self.add("Flatten", [x]), channels * 36
            case "reshape":
                self.weights["shape"] = np.array([-1, channels * 36])
                x, size = self.add("Reshape", [x, "shape"]), channels * 36
            case "pooled":
                x, size = self.add("Flatten", [self.add("GlobalAveragePool", [x])]), channels
            case _:
                return x
        x = self.add("Relu", [self.add("Gemm", [x, self.weight(7, size, into=1), self.numbers(7)], transB=1)])
        x = self.add("MatMul", [x, self.weight(7, 6, out=1, into=0)])
        x = self.add("Add", [x, self.numbers(6)])
        return self.add("MatMul", [self.add("Sigmoid", [x]), self.weight(6, 5, out=1, into=0)])


@st.composite
def networks(draw: Callable[[Any], Any]) -> onnx.ModelProto:
    graph = Graph(draw)
    x, channels = graph.conv("x", 3, 6), 6
    for _ in range(draw(st.integers(1, 4))):
        x, channels = graph.block(graph.pointwise(x, channels), channels)
    last = graph.head(x, channels)
    ends = {last: ["N", 5] if graph.nodes[-1].op_type == "MatMul" else ["N", channels, 6, 6]}
    return model(graph.nodes, inputs={"x": ["N", 3, 6, 6]}, outputs=ends, weights=graph.weights)


def in_float64(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with numbers, input and outputs in float64, whose rounding no test takes for a fault."""
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    for tensor in wide.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*wide.graph.input, *wide.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return wide
