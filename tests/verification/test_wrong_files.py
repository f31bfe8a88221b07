"""Files that are wrong in one attribute, one number or one wire: each is caught against the right one, and named."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from spdexport import pipeline
from spdexport.model_files import read_metadata
from spdexport.verification import recipes
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE, CHANNELS = 12, 8


@dataclass
class Net:
    """A file while it grows: ``c`` is a convolution of images, of 8 channels by 12 by 12 places.

    Attributes:
        value: What is right in one file and wrong in the other.
    """

    value: Any
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        self.c = self.conv("x", 3, "first")
        self.d = self.conv("x", 3, "second")

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        names = [f"{op.lower()}{len(self.nodes)}" + (f"_{k}" if k else "") for k in range(outputs)]
        self.nodes.append(make_node(op, inputs, names, name=names[0], **attributes))
        return names[0]

    def constant(self, value: Any, dtype: str = "float32", name: str = "") -> str:
        name = name or f"w{len(self.weights)}"
        self.weights[name] = np.asarray(value, dtype)
        return name

    def weight(self, *shape: int, name: str = "") -> str:
        fan = int(np.prod(shape[1:])) or 1
        return self.constant(self.rng.standard_normal(shape) / fan**0.5, name=name)

    def conv(self, x: str, into: int, name: str) -> str:
        weight = self.weight(CHANNELS, into, 3, 3, name=f"{name}.weight")
        return self.add("Conv", x, weight, self.weight(CHANNELS, name=f"{name}.bias"), pads=[1] * 4)

    def tokens(self, x: str) -> str:
        flat = self.add("Reshape", x, self.constant([0, CHANNELS, SIZE * SIZE], "int64"))
        return self.add("Transpose", flat, perm=[0, 2, 1])

    def model(self, output: str) -> onnx.ModelProto:
        self.nodes.append(make_node("Identity", [output], ["y"]))
        graph = make_graph(
            self.nodes, "g", [make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
            [make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )  # fmt: skip
        return make_model(graph, opset_imports=[make_opsetid("", 23)], ir_version=11)


def unary(op: str, name: str, **others: Any) -> Callable[[Net], str]:
    """An operator whose attribute is right or wrong."""
    return lambda n: n.add(op, n.c, **{**others, name: n.value})


def with_constant(op: str, dtype: str = "float32", **attributes: Any) -> Callable[[Net], str]:
    """An operator whose second input is right or wrong."""
    return lambda n: n.add(op, n.c, n.constant(n.value, dtype, "held"), **attributes)


def norm(op: str, name: str, channels: tuple[int, ...] = (CHANNELS,), **others: Any) -> Callable[[Net], str]:
    def make(n: Net) -> str:
        given = [n.constant(n.rng.uniform(0.5, 1.5, channels)), n.weight(*channels)]
        small = n.add("Mul", n.c, n.constant(0.05))
        return n.add(op, small, *given[: 1 if op == "RMSNormalization" else 2], **{**others, name: n.value})

    return make


def batch_norm(n: Net) -> str:
    scale, bias, mean = (n.weight(CHANNELS) for _ in range(3))
    variance = n.constant(n.rng.uniform(1e-4, 1e-2, CHANNELS))
    return n.add("BatchNormalization", n.add("Relu", n.c), scale, bias, mean, variance, epsilon=n.value)


def attention(name: str) -> Callable[[Net], str]:
    def make(n: Net) -> str:
        q, k, v = (n.add("MatMul", n.tokens(n.c), n.weight(CHANNELS, CHANNELS)) for _ in range(3))
        settings = {"q_num_heads": 2, "kv_num_heads": 2, "is_causal": 0, "scale": 0.5, "softcap": 0.0, name: n.value}
        if name == "q_num_heads":
            settings["kv_num_heads"] = n.value
        return n.add("Attention", q, k, v, **settings)

    return make


def joined(n: Net) -> str:
    first, second = (n.c, n.d) if n.value else (n.d, n.c)
    return n.add("Conv", n.add("Concat", first, second, axis=1), n.weight(4, 16, 1, 1, name="last.weight"))


def sliced(n: Net) -> str:
    long = n.add("Reshape", n.c, n.constant([0, -1], "int64"))
    return n.add("Slice", long, *(n.constant([v], "int64", k) for k, v in (("from", 1), ("end", n.value), ("axis", 1))))


def padded(n: Net) -> str:
    around = n.add("Pad", n.c, n.constant([0, 0, 1, 1, 0, 0, 1, 1], "int64"), mode=n.value)
    return n.add("Conv", around, n.weight(4, CHANNELS, 3, 3, name="last.weight"))


def picked(n: Net) -> str:
    return n.add("Gather", n.c, n.constant(n.value, "int64", "picked"), axis=1)


def branched(condition: Callable[[Net, str], str]) -> Callable[[Net], str]:
    def make(n: Net) -> str:
        mean = n.add("ReduceMean", n.add("Mul", n.c, n.c), keepdims=0)
        flag = condition(n, mean)
        bodies = {}
        for name, op in (("then_branch", "Relu"), ("else_branch", "Tanh")):
            end = [make_tensor_value_info(name, TensorProto.FLOAT, None)]
            bodies[name] = make_graph([make_node(op, [n.c], [name])], name, [], end)
        return n.add("If", flag, **bodies)

    return make


def inverted(n: Net, mean: str) -> str:
    greater = n.add("Greater", mean, n.constant(0.05))
    return greater if n.value else n.add("Not", greater)


def bounded(n: Net, mean: str) -> str:
    return n.add("Greater", mean, n.constant(n.value, name="limit"))


def looped(n: Net) -> str:
    ends = [("i", TensorProto.INT64), ("go", TensorProto.BOOL), ("so_far", TensorProto.FLOAT)]
    body = make_graph(
        [
            make_node("Identity", ["go"], ["on"]),
            make_node("Tanh", ["so_far"], ["bent"]),
            make_node("Add", ["bent", n.d], ["next"]),
        ],
        "body",
        [make_tensor_value_info(k, t, [] if t != TensorProto.FLOAT else None) for k, t in ends],
        [make_tensor_value_info("on", TensorProto.BOOL, []), make_tensor_value_info("next", TensorProto.FLOAT, None)],
    )
    return n.add("Loop", n.constant(n.value, "int64", "trips"), "", n.c, body=body)


def recurrent(op: str, gates: int, **attributes: Any) -> Callable[[Net], str]:
    def make(n: Net) -> str:
        steps = n.add("Transpose", n.add("ReduceMean", n.c, n.constant([3], "int64"), keepdims=0), perm=[2, 0, 1])
        hidden, settings = 5, {k: n.value if v is None else v for k, v in attributes.items()}
        given = [n.weight(1, gates * hidden, size) for size in (CHANNELS, hidden)]
        return n.add(op, steps, *given, n.weight(1, 2 * gates * hidden), hidden_size=hidden, **settings)

    return make


def chosen(n: Net) -> str:
    greater = n.add("Greater", n.c, n.d)
    return n.add("Where", greater, *((n.c, n.d) if n.value else (n.d, n.c)))


def summed(n: Net) -> str:
    return n.add("Einsum", n.c, n.d, equation=n.value)


def hot(n: Net) -> str:
    index = n.add("ArgMax", n.c, axis=1, keepdims=0)
    return n.add("OneHot", index, n.constant(CHANNELS, "int64"), n.constant(n.value, name="values"), axis=1)


def quantized(n: Net) -> str:
    scale = n.constant(0.02)
    steps = n.add("QuantizeLinear", n.c, scale, n.constant(3, "int8", "zero"))
    return n.add("DequantizeLinear", steps, scale, n.constant(n.value, "int8", "other"))


def best(n: Net) -> str:
    rows = n.add("Reshape", n.c, n.constant([0, -1], "int64"))
    return n.add("TopK", rows, n.constant([9], "int64"), outputs=2, largest=n.value)


def sampled(n: Net) -> str:
    places = n.add("Transpose", n.add("Tanh", n.add("Conv", n.c, n.weight(2, CHANNELS, 1, 1))), perm=[0, 2, 3, 1])
    return n.add("GridSample", n.d, places, align_corners=n.value)


def resized(name: str, **others: Any) -> Callable[[Net], str]:
    def make(n: Net) -> str:
        scales = n.constant([1, 1, 1.5, 1.5])
        return n.add("Resize", n.c, "", scales, **{"mode": "linear", **others, name: n.value})

    return make


def turned(n: Net) -> str:
    return n.add("Conv", n.add("Transpose", n.c, perm=n.value), n.weight(4, CHANNELS, 3, 3, name="last.weight"))


def written(n: Net) -> str:
    index = n.constant(np.array([[0], [1]]), "int64")
    update = n.add("Gather", n.d, n.constant([0, 1], "int64"))
    doubled = n.add("Concat", n.c, n.c, axis=0)  # so that there are two rows
    rows = n.add("Concat", n.d, n.d, axis=0)
    update = n.add("Gather", rows, n.constant([0, 1], "int64"))
    return n.add("ScatterND", doubled, index, update, reduction=n.value)


FAULTS: dict[str, tuple[Callable[[Net], str], Any, Any, str]] = {
    # How the file is made, with what it is right and with what wrong, and what a reason has to name.
    "epsilon of a batch norm": (batch_norm, 1e-5, 2e-5, "epsilon"),
    "epsilon of a layer norm": (norm("LayerNormalization", "epsilon", (SIZE,)), 1e-5, 2e-5, "epsilon"),
    "axis of a layer norm": (norm("LayerNormalization", "axis", (SIZE,)), -1, 2, "axis"),
    "epsilon of an instance norm": (norm("InstanceNormalization", "epsilon"), 1e-5, 2e-5, "epsilon"),
    "groups of a group norm": (norm("GroupNormalization", "num_groups"), 2, 4, "num_groups"),
    "epsilon of an RMS norm": (norm("RMSNormalization", "epsilon", (SIZE,)), 1e-5, 2e-5, "epsilon"),
    "size of a local norm": (unary("LRN", "size"), 3, 5, "size"),
    "beta of a local norm": (unary("LRN", "beta", size=3), 0.75, 0.751, "beta"),
    "p of a norm": (unary("LpNormalization", "p", axis=1), 2, 1, "p"),
    "scale of attention": (attention("scale"), 0.5, 0.501, "scale"),
    "heads of attention": (attention("q_num_heads"), 2, 4, "num_heads"),
    "mask of attention": (attention("is_causal"), 0, 1, "is_causal"),
    "cap of attention": (attention("softcap"), 0.0, 50.0, "softcap"),
    "inputs of Concat swapped": (joined, True, False, "second.weight"),  # what is joined first
    "a slice that ends one too early": (sliced, CHANNELS * SIZE**2, CHANNELS * SIZE**2 - 1, "end"),
    "mode of padding": (padded, "reflect", "edge", "mode"),
    "padding with zeros": (padded, "constant", "reflect", "mode"),
    "condition of If inverted": (branched(inverted), True, False, "in float64, the file is not what"),
    "limit of If": (branched(bounded), 0.05, 0.051, "limit"),
    "trips of Loop": (looped, 2, 3, "trips"),
    "axis of Softmax": (unary("Softmax", "axis"), 2, 3, "axis"),
    "axis of a mean": (with_constant("ReduceMean", "int64", keepdims=0), [2], [3], "held"),
    "an index of Gather": (picked, [0, 3, 5], [0, 3, 6], "picked"),
    "indices of Gather swapped": (picked, [0, 3, 5], [3, 0, 5], "picked"),
    "slope of LeakyRelu": (unary("LeakyRelu", "alpha"), 0.01, 0.0101, "alpha"),
    "alpha of Elu": (unary("Elu", "alpha"), 1.0, 1.001, "alpha"),
    "kind of Gelu": (unary("Gelu", "approximate"), "none", "tanh", "approximate"),
    "bound of Clip": (
        lambda n: n.add("Clip", n.c, "", n.constant(n.value, name="held")), 6.0, 6.5, "held",
    ),
    "padding counts in a mean": (
        unary("AveragePool", "count_include_pad", kernel_shape=[3, 3], pads=[1] * 4), 0, 1, "count_include_pad",
    ),
    "pads of a pooling": (unary("MaxPool", "pads", kernel_shape=[3, 3]), [0, 0, 2, 2], [2, 2, 0, 0], "pads"),
    "ceiling of a pooling": (unary("MaxPool", "ceil_mode", kernel_shape=[3, 3], strides=[2, 2]), 0, 1, "ceil_mode"),
    "order of places in channels": (unary("DepthToSpace", "mode", blocksize=2), "DCR", "CRD", "mode"),
    "equal axes swapped": (turned, [0, 1, 2, 3], [0, 1, 3, 2], "perm"),
    "running sums exclude their own": (
        lambda n: n.add("CumSum", n.c, n.constant(3, "int64"), exclusive=n.value), 0, 1, "exclusive",
    ),
    "running sums backwards": (
        lambda n: n.add("CumSum", n.c, n.constant(3, "int64"), reverse=n.value), 0, 1, "reverse",
    ),
    "choices of Where swapped": (chosen, True, False, "Where"),
    "labels of an Einstein sum": (summed, "bchw,bdhw->bcd", "bchw,bdhw->bdc", "equation"),
    "values of OneHot": (hot, [0.0, 1.0], [1.0, 0.0], "values"),
    "zero point of Dequantize": (quantized, 3, 4, "other"),
    "smallest for largest": (best, 1, 0, "largest"),
    "corners of a grid": (sampled, 0, 1, "align_corners"),
    "corners of Resize": (
        resized("coordinate_transformation_mode"), "half_pixel", "align_corners", "coordinate_transformation_mode",
    ),
    "a kernel of Resize": (resized("cubic_coeff_a", mode="cubic"), -0.75, -0.5, "cubic_coeff_a"),
    "a pixel of Resize": (
        resized("nearest_mode", mode="nearest", coordinate_transformation_mode="asymmetric"),
        "floor", "ceil", "nearest",
    ),
    "triangle": (lambda n: n.add("Trilu", n.c, n.constant(n.value, "int64", "held")), 0, 1, "held"),
    "direction of an LSTM": (recurrent("LSTM", 4, direction=None), "forward", "reverse", "direction"),
    "clip of an LSTM": (recurrent("LSTM", 4, clip=None), 3.0, 0.3, "clip"),
    "reset of a GRU": (recurrent("GRU", 3, linear_before_reset=None), 0, 1, "linear_before_reset"),
    "activations of a GRU": (
        recurrent("GRU", 3, activations=None), ["Sigmoid", "Tanh"], ["Tanh", "Tanh"], "activations",
    ),
    "what a scatter does": (written, "none", "add", "reduction"),
    "exponent": (
        lambda n: n.add("Pow", n.add("Abs", n.c), n.constant(n.value, name="held")), 2.0, 2.001, "held",
    ),
    "threshold": (unary("ThresholdedRelu", "alpha"), 0.5, 0.501, "alpha"),
    "a shift of bits in a mask": (
        lambda n: n.add("Mul", n.c, n.constant(np.arange(SIZE) < n.value, name="held")), SIZE, SIZE - 1, "held",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:3])


def saved(name: str, folder: Path) -> tuple[Path, Path]:
    make, right, wrong, _ = FAULTS[name]
    for file, value in (("right", right), ("wrong", wrong)):
        net = Net(value)
        onnx.save(net.model(make(net)), folder / f"{file}.onnx")
    return folder / "right.onnx", folder / "wrong.onnx"


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.sampled(26)
def test_a_wrong_file_is_caught_against_the_right_one(name: str, tmp_path: Path) -> None:
    right, wrong = saved(name, tmp_path)
    found = pipeline.verify(wrong, against=right)
    assert found.verdict is Status.FAIL, [edge.reason for edge in found.edges]
    told = " ".join(f"{edge.reason} {edge.first_divergence}" for edge in found.edges if edge.status is Status.FAIL)
    assert FAULTS[name][3] in told, told


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_the_right_file_passes_and_its_conversion_too(name: str, tmp_path: Path) -> None:
    right, wrong = saved(name, tmp_path)
    assert pipeline.verify(right, against=right).verdict is Status.PASS
    done = pipeline.convert(right, tmp_path / "out.onnx", form="factorized").verification
    assert done is not None
    assert done.verdict is Status.PASS, [edge.reason for edge in done.edges]
    found = pipeline.verify(tmp_path / "out.onnx", against=wrong)
    assert found.verdict is Status.FAIL, [edge.reason for edge in found.edges]


def off(path: Path, name: str, target: Path, *, share: float) -> Path:
    """A copy of a file of which one number is off by a share of itself."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    place = int(np.abs(values).argmax())
    values.flat[place] *= np.float32(1 + share)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, target)
    return target


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A source, and what it was converted to: one layer in factors, one as it was."""
    net = Net(None)
    onnx.save(net.model(net.add("Mul", net.c, net.d)), tmp_path / "source.onnx")
    done = pipeline.convert(tmp_path / "source.onnx", tmp_path / "made.onnx", layers=["first"], form="factorized")
    assert done.verdict is Status.PASS
    return tmp_path / "source.onnx", tmp_path / "made.onnx"


def test_one_weight_off_by_a_millionth(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, file = made
    wrong = off(file, "second.weight", tmp_path / "wrong.onnx", share=1e-6)
    found = pipeline.verify(wrong, against=source)
    edge = next(edge for edge in found.edges if edge.edge == "weights")
    assert (edge.status, edge.first_divergence) == (Status.FAIL, "second")
    factor = next(t.name for t in onnx.load(file).graph.initializer if t.name.startswith("first.") and "V" in t.name)
    found = pipeline.verify(off(file, factor, tmp_path / "factor.onnx", share=1e-6))
    edge = next(edge for edge in found.edges if edge.edge == "weights")
    assert edge.status is Status.FAIL
    assert edge.reason.startswith("the weights or the graph changed since conversion")


def test_a_forged_hash_does_not_pass_against_the_source(made: tuple[Path, Path], tmp_path: Path) -> None:
    import onnx_ir as ir

    from spdexport.content import content_hash

    source, file = made
    wrong = off(file, "second.weight", tmp_path / "wrong.onnx", share=0.01)
    stored = onnx.load(wrong)
    old = content_hash(ir.load(file))
    held = [entry for entry in stored.metadata_props if old in entry.value]
    assert held, read_metadata(ir.load(file))
    for entry in held:
        entry.value = entry.value.replace(old, content_hash(ir.load(wrong)))
    onnx.save(stored, wrong)
    alone = pipeline.verify(wrong)
    edge = next(edge for edge in alone.edges if edge.edge == "weights")
    assert edge.status is not Status.FAIL, "the hash was not forged"
    found = pipeline.verify(wrong, against=source)
    edge = next(edge for edge in found.edges if edge.edge == "weights")
    assert (edge.status, edge.first_divergence) == (Status.FAIL, "second")
    assert pipeline.verify(wrong, against=file).verdict is Status.FAIL
