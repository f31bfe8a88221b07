"""Small ONNX models of many kinds, all right: what a check says of them beside "equivalent" is a false alarm.

Each reads images of one of three sizes through a convolution. Behind it stand operators that take floats, alone or as
networks have them, and heads that choose: `benchmarks/false_alarms.py` tries all of them with many seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CHANNELS = 8
SIZES = (8, 17, 40)
LONG = (32, 64, 128)
"""Of sums over all places."""


class Net:
    """A model while it grows, with random weights: ``image`` is the input, ``c`` a convolution of it.

    Attributes:
        size: Of the image.
        rng: Of the weights.
    """

    def __init__(self, size: int, seed: int, *, opset: int = 21, dtype: str = "float32") -> None:
        self.size, self.rng, self._opset = size, np.random.default_rng([seed, size]), opset
        self._dtype = np.dtype(dtype)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self.c = self.conv("image", 3, CHANNELS)

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Return the first output of a further node."""
        names = [f"{op.lower()}_{len(self._nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self._nodes.append(helper.make_node(op, inputs, names, name=names[0], **attributes))
        return names[0]

    def constant(self, values: Any, dtype: str | None = None) -> str:
        """Return a constant, of the model's own dtype where no other is named."""
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(values, dtype or self._dtype), name))
        return name

    def weight(self, *shape: int, fan: int = 1) -> str:
        """Return a weight as layers have them at first."""
        return self.constant(self.rng.uniform(-1, 1, shape) / fan**0.5)

    def conv(self, x: str, into: int, out: int, kernel: int = 3) -> str:
        """Return a convolution that keeps the size."""
        fan = into * kernel**2
        weight, bias = self.weight(out, into, kernel, kernel, fan=fan), self.weight(out, fan=fan)
        return self.add("Conv", x, weight, bias, pads=[kernel // 2] * 4)

    def linear(self, x: str, into: int, out: int) -> str:
        """Return a linear layer of rows."""
        return self.add("Gemm", x, self.weight(out, into, fan=into), self.weight(out, fan=into), transB=1)

    def pooled(self, x: str, out: int) -> str:
        """Return a linear layer of the mean over all places."""
        mean = self.add("Flatten", self.add("GlobalAveragePool", x))
        return self.linear(mean, CHANNELS, out)

    def rows(self, x: str) -> str:
        """Return the values of each sample as a row."""
        return self.add("Flatten", x)

    def tokens(self) -> str:
        """Return the channels of the convolution as a sequence, (batch, size * size, channels)."""
        flat = self.add("Reshape", self.c, self.constant([0, CHANNELS, -1], "int64"))
        return self.add("Transpose", flat, perm=[0, 2, 1])

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """Return the model."""
        element = helper.np_dtype_to_tensor_dtype(self._dtype)
        image = helper.make_tensor_value_info("image", element, ["batch", 3, self.size, self.size])
        ends = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self._nodes, "net", [image], ends, self._weights)
        imports = [helper.make_opsetid("", self._opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        model = onnx.shape_inference.infer_shapes(model)
        for index, value in enumerate(model.graph.output):
            if not value.type.tensor_type.elem_type:  # nothing is inferred of some norms, which keep maps as they are
                untold = helper.make_tensor_value_info(value.name, element, [None] * 4)
                model.graph.output[index].CopyFrom(untold)
        return model


def elementwise(op: str, **attributes: Any) -> Callable[[Net], list[str]]:
    """Return a function of each value of a map, and one of a single logit."""
    return lambda n: [n.pooled(n.add(op, n.c, **attributes), 4), n.add(op, n.pooled(n.c, 1), **attributes)]


def of_size(op: str, **attributes: Any) -> Callable[[Net], list[str]]:
    """Return a function of positive values from 1 on."""

    def make(n: Net) -> list[str]:
        return [n.add(op, n.add("Add", n.add("Abs", n.c), n.constant(1.0)), **attributes)]

    return make


def reduced(op: str) -> Callable[[Net], list[str]]:
    """Return a reduction over all places, of values of both signs and of positive ones."""

    def make(n: Net) -> list[str]:
        axes = n.constant([2, 3], "int64")
        return [n.add(op, n.c, axes), n.add(op, n.add("Relu", n.c), axes)]

    return make


def normed(op: str, **attributes: Any) -> Callable[[Net], list[str]]:
    """Return a norm with scale and bias for each channel, and what a convolution makes of it."""

    def make(n: Net) -> list[str]:
        scale, bias = n.constant(n.rng.uniform(0.5, 1.5, CHANNELS)), n.weight(CHANNELS)
        return [n.conv(n.add("Relu", n.add(op, n.c, scale, bias, **attributes)), CHANNELS, 4)]

    return make


def batch_norm(n: Net) -> str:
    scale, bias, mean = (n.constant(n.rng.uniform(0.5, 1.5, CHANNELS)) for _ in range(3))
    return n.add("BatchNormalization", n.c, scale, bias, mean, n.constant(10 ** n.rng.uniform(-4, 1, CHANNELS)))


def layer_norm(n: Net) -> str:
    return n.add("LayerNormalization", n.c, n.constant(n.rng.uniform(0.5, 1.5, n.size)), n.weight(n.size))


def one_logit(last: Callable[[Net, str], str], bias: float = 0.0) -> Callable[[Net], str]:
    """Return a head of one number behind the mean over all places."""
    return lambda n: last(n, n.add("Add", n.pooled(n.add("Relu", n.c), 1), n.constant(bias)))


def silu(n: Net, x: str) -> str:
    return n.add("Mul", x, n.add("Sigmoid", x))


def running_sums(n: Net) -> str:
    return n.add("CumSum", n.tokens(), n.constant(1, "int64"))


def top(n: Net) -> list[str]:
    """Return the 300 best places (or all, where there are fewer), and what other channels have there."""
    score, count = n.rows(n.conv(n.c, CHANNELS, 1)), min(300, n.size**2)
    best = n.add("TopK", score, n.constant([count], "int64"), outputs=2)
    other = n.rows(n.conv(n.c, CHANNELS, 1))
    return [best, n.add("GatherElements", other, best + "_1", axis=1)]


def in_order(n: Net) -> str:
    """Return the values of a Relu in their order, half of which are equal."""
    rows = n.rows(n.add("Relu", n.c))
    return n.add("TopK", rows, n.constant([CHANNELS * n.size**2], "int64"), outputs=2)


def best(n: Net) -> list[str]:
    index = n.add("ArgMax", n.c, axis=1, keepdims=0)
    hot = n.add("OneHot", index, n.constant(CHANNELS, "int64"), n.constant([0.0, 1.0]), axis=1)
    return [index, n.conv(hot, CHANNELS, 2)]


def then(*ops: str) -> Callable[[Net], list[str]]:
    """Return operators that choose, of a map ten times as large, and a convolution of what they give."""

    def make(n: Net) -> list[str]:
        value = n.add("Mul", n.c, n.constant(10.0))
        for op in ops:
            value = n.add(op, value)
        return [value, n.conv(value, CHANNELS, 2)]

    return make


def whole(n: Net) -> list[str]:
    value = n.add("Cast", n.add("Mul", n.c, n.constant(10.0)), to=TensorProto.INT32)
    return [value, n.conv(n.add("Cast", value, to=TensorProto.FLOAT), CHANNELS, 2)]


def gated(n: Net) -> str:
    other = n.conv(n.c, CHANNELS, CHANNELS)
    return n.add("Where", n.add("Greater", n.c, other), n.c, n.add("Mul", other, n.constant(-2.0)))


def quantized(n: Net) -> str:
    scale, zero = n.constant(0.05), n.constant(3, "int8")
    steps = n.add("QuantizeLinear", n.c, scale, zero)
    return n.conv(n.add("DequantizeLinear", steps, scale, zero), CHANNELS, 2)


def quantized_as_it_comes(n: Net) -> str:
    steps = n.add("DynamicQuantizeLinear", n.c, outputs=3)
    return n.conv(n.add("DequantizeLinear", steps, steps + "_1", steps + "_2"), CHANNELS, 2)


def in_bytes(element: int) -> Callable[[Net], str]:
    """Return a map in floats of a byte, and a convolution of what they stand for."""

    def make(n: Net) -> str:
        small = n.add("Cast", n.c, to=element)
        return n.conv(n.add("Cast", small, to=TensorProto.FLOAT), CHANNELS, 2)

    return make


def whole_numbers(n: Net) -> list[str]:
    """Return a convolution in whole numbers, and a product behind it."""
    scale, zero, weights = n.constant(0.05), n.constant(120, "uint8"), n.constant(0.011)
    none = n.constant(0, "int8")
    steps = n.add("QuantizeLinear", n.c, scale, zero)
    # Of seven bits: with eight, sums of two products may leave 16 bits on processors without VNNI.
    kernel = n.constant(n.rng.integers(-60, 60, (CHANNELS, CHANNELS, 3, 3)), "int8")
    bias = n.constant(n.rng.integers(-900, 900, CHANNELS), "int32")
    found = n.add("QLinearConv", steps, scale, zero, kernel, weights, none, n.constant(0.07), zero, bias)
    matrix = n.constant(n.rng.integers(-60, 60, (n.size - 2, 5)), "int8")
    product = n.add("QLinearMatMul", found, n.constant(0.07), zero, matrix, weights, none, n.constant(0.13), zero)
    return [found, product]


def taken(n: Net) -> list[str]:
    """Return the nearest pixels by each way to round, of sizes that are no multiples."""
    found = []
    for rounding, coordinates in (
        ("floor", "asymmetric"), ("ceil", "align_corners"), ("round_prefer_ceil", "pytorch_half_pixel"),
    ):  # fmt: skip
        scales = n.constant([1, 1, n.rng.uniform(0.4, 3.0), n.rng.integers(2, 40) / n.rng.integers(7, 13)])
        settings = {"nearest_mode": rounding, "coordinate_transformation_mode": coordinates}
        found.append(n.add("Resize", n.c, "", scales, mode="nearest", **settings))
    return found


def grid(mode: str) -> Callable[[Net], str]:
    """Return an image sampled at places that a convolution gives."""

    def make(n: Net) -> str:
        places = n.add("Transpose", n.add("Tanh", n.conv(n.c, CHANNELS, 2)), perm=[0, 2, 3, 1])
        return n.add("GridSample", n.c, places, mode=mode)

    return make


def resized(mode: str, scale: float = 1.7) -> Callable[[Net], str]:
    """Return the map in another size."""
    return lambda n: n.add("Resize", n.c, "", n.constant([1, 1, scale, scale]), mode=mode)


def pooled_with_places(n: Net) -> list[str]:
    peaks = n.add("MaxPool", n.c, kernel_shape=[2, 2], strides=[2, 2], outputs=2)
    return [peaks, peaks + "_1"]


def recurrent(op: str, gates: int) -> Callable[[Net], list[str]]:
    """Return a recurrent layer over a row of the map, with all of its states."""

    def make(n: Net) -> list[str]:
        first = n.add("Gather", n.c, n.constant(0, "int64"), axis=2)
        steps = n.add("Transpose", first, perm=[2, 0, 1])
        hidden, states = 12, 3 if op == "LSTM" else 2
        given = (n.weight(1, gates * hidden, size, fan=size) for size in (CHANNELS, hidden))
        bias = n.weight(1, 2 * gates * hidden, fan=hidden)
        y = n.add(op, steps, *given, bias, hidden_size=hidden, outputs=states)
        return [y, *(f"{y}_{i}" for i in range(1, states))]

    return make


def attention(n: Net) -> str:
    q, k, v = (n.add("MatMul", n.tokens(), n.weight(CHANNELS, CHANNELS, fan=CHANNELS)) for _ in range(3))
    scores = n.add("MatMul", q, n.add("Transpose", k, perm=[0, 2, 1]))
    return n.add("MatMul", n.add("Softmax", n.add("Mul", scores, n.constant(CHANNELS**-0.5)), axis=-1), v)


def branches(n: Net) -> str:
    """Return one of two layers, by the sign of a mean."""
    mean = n.add("ReduceMean", n.c, keepdims=0)
    positive = n.add("Greater", mean, n.constant(0.0))
    bodies = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Tanh")):
        node = helper.make_node(op, [n.c], [name])
        bodies[name] = helper.make_graph([node], name, [], [onnx.ValueInfoProto(name=name)])
    return n.conv(n.add("If", positive, **bodies), CHANNELS, 2)


def boxes(n: Net) -> list[str]:
    """Return the boxes that overlap no better one, as detectors choose them, of the first sample."""
    one = n.add("Slice", n.c, *(n.constant([i], "int64") for i in (0, 1, 0)))
    flat = n.add("Reshape", one, n.constant([1, CHANNELS, -1], "int64"))
    turned = n.add("Transpose", n.add("Sigmoid", flat), perm=[0, 2, 1])
    corners = n.add("Slice", turned, n.constant([0], "int64"), n.constant([4], "int64"), n.constant([2], "int64"))
    scores = n.add("Slice", flat, n.constant([4], "int64"), n.constant([6], "int64"), n.constant([1], "int64"))
    limits = (n.constant(20, "int64"), n.constant(0.5), n.constant(0.0))
    return [n.add("NonMaxSuppression", corners, scores, *limits, center_point_box=1)]


def transposed(n: Net) -> str:
    weight = n.weight(CHANNELS, 4, 3, 3, fan=CHANNELS * 9)
    return n.add("ConvTranspose", n.c, weight, strides=[2, 2])


def summed_products(n: Net) -> str:
    return n.add("Einsum", n.c, n.conv(n.c, CHANNELS, CHANNELS), equation="bchw,bdhw->bcd")


def fourier(n: Net) -> str:
    parts = n.add("Unsqueeze", n.c, n.constant([4], "int64"))
    return n.add("DFT", parts, "", n.constant(3, "int64"))


def ratio(n: Net) -> str:
    other = n.add("Add", n.add("Abs", n.conv(n.c, CHANNELS, CHANNELS)), n.constant(0.1))
    return n.add("Div", n.c, other)


KINDS: dict[str, tuple[Callable[[Net], str | list[str]], tuple[int, ...]]] = {
    "mean over all places": (lambda n: n.pooled(n.add("Relu", n.c), 10), LONG),
    "GroupNormalization": (normed("GroupNormalization", num_groups=2), LONG),
    "InstanceNormalization": (normed("InstanceNormalization"), LONG),
    "LayerNormalization": (layer_norm, SIZES),
    "BatchNormalization": (batch_norm, SIZES),
    "LRN": (lambda n: n.add("LRN", n.c, size=5), SIZES),
    "LpNormalization": (lambda n: n.add("LpNormalization", n.c, axis=1), SIZES),
    "MeanVarianceNormalization": (lambda n: n.add("MeanVarianceNormalization", n.c), SIZES),
    "running sums": (running_sums, (9, 17, 24)),
    "one logit, Sigmoid": (one_logit(lambda n, x: n.add("Sigmoid", x)), SIZES),
    "one logit, Sigmoid near 0": (one_logit(lambda n, x: n.add("Sigmoid", x), -12.0), SIZES),
    "one logit, SiLU": (one_logit(silu), SIZES),
    "one logit, SiLU near 0": (one_logit(silu, -12.0), SIZES),
    "one logit, Softplus near 0": (one_logit(lambda n, x: n.add("Softplus", x), -12.0), SIZES),
    **{
        op: (elementwise(op), SIZES)
        for op in (
            "Atan", "Celu", "Cos", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu",
            "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
        )
    },
    **{op: (of_size(op), SIZES) for op in ("Log", "Reciprocal", "Sqrt")},
    "Pow": (lambda n: n.add("Pow", n.add("Abs", n.c), n.constant(2.5)), SIZES),
    "Div": (ratio, SIZES),
    "Softmax": (lambda n: n.add("Softmax", n.c, axis=1), SIZES),
    "LogSoftmax": (lambda n: n.add("LogSoftmax", n.c, axis=1), SIZES),
    **{
        op: (reduced(op), LONG)
        for op in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceSumSquare")
    },
    "AveragePool": (lambda n: n.add("AveragePool", n.c, kernel_shape=[7, 7]), SIZES),
    "LpPool": (lambda n: n.add("LpPool", n.c, kernel_shape=[3, 3]), SIZES),
    "MaxPool with places": (pooled_with_places, SIZES),
    "Resize, linear": (resized("linear"), SIZES),
    "Resize, nearest": (resized("nearest"), SIZES),
    "Resize, nearest by all rules": (taken, SIZES),
    "Resize, cubic": (resized("cubic"), SIZES),
    "GridSample, linear": (grid("linear"), SIZES),
    "GridSample, nearest": (grid("nearest"), SIZES),
    "TopK and gather": (top, (16, 40, 92)),
    "sort of Relu": (in_order, (8, 12, 17)),
    "ArgMax and OneHot": (best, SIZES),
    "Floor": (then("Floor"), SIZES),
    "Round": (then("Round"), SIZES),
    "Ceil and Sign": (then("Ceil", "Sign"), SIZES),
    "Cast to int": (whole, SIZES),
    "Greater and Where": (gated, SIZES),
    "Hardmax": (lambda n: n.conv(n.add("Hardmax", n.c, axis=1), CHANNELS, 2), SIZES),
    "QuantizeLinear": (quantized, SIZES),
    "DynamicQuantizeLinear": (quantized_as_it_comes, SIZES),
    "QLinearConv and QLinearMatMul": (whole_numbers, SIZES),
    "float8 E4M3": (in_bytes(TensorProto.FLOAT8E4M3FN), SIZES),
    "float8 E5M2": (in_bytes(TensorProto.FLOAT8E5M2), SIZES),
    "NonMaxSuppression": (boxes, SIZES),
    "If": (branches, SIZES),
    "LSTM": (recurrent("LSTM", 4), SIZES),
    "GRU": (recurrent("GRU", 3), SIZES),
    "attention": (attention, (6, 10, 16)),
    "ConvTranspose": (transposed, SIZES),
    "Einsum": (summed_products, SIZES),
    "DFT": (fourier, SIZES),
    "float16": (lambda n: n.pooled(n.add("Relu", n.c), 4), SIZES),
}  # fmt: skip
"""How each kind is made, and the sizes of its images."""


def alarm_net(kind: str, size: int, seed: int) -> onnx.ModelProto:
    """Return the model of a kind, a size and a seed."""
    net = Net(size, seed, dtype="float16" if kind == "float16" else "float32")
    made = KINDS[kind][0](net)
    return net.model([made] if isinstance(made, str) else made)
