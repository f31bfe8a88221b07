"""What looks like one layer and is none: each is left as it is, and told with its reason; what is one after all folds.

Random chains and sums that are one layer are spoilt in one place. ``leftovers`` knows nothing of folding: it walks a
graph back from its layers and sums, through whatever only scales, shifts, pads, pools, reshapes or adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from fold_networks import KINDS, Draw, onnx_model
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional

from spdexport.arrays import to_numpy
from spdexport.cli import main
from spdexport.folding import fold
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.torch_fold import fold_program
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
ON_ONE = ("BatchNormalization", "Pad", "Reshape", "Squeeze", "Flatten", "Cast", "AveragePool", "Identity", "Dropout")
"""Operators that come between the layers of a chain, and whose first input is what they act on."""
SUMS = ("Add", "Sub", "Sum")
ON_ANY = ("Mul", "Div", "Neg", *SUMS)


def close(got: np.ndarray, right: np.ndarray) -> bool:
    return got.shape == right.shape and bool(np.abs(got - right).max(initial=0) <= 1e-10 * (1 + np.abs(right).max()))


class Walk:
    """A graph, read backwards."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.held = {tensor.name for tensor in model.graph.initializer}
        self.made = {out: node for node in self.nodes for out in node.output}

    def read(self, node: onnx.NodeProto) -> list[str]:
        """What a node acts on: none where it is no layer and nothing that may be between two."""
        given = [value for value in node.input if value and value not in self.held]
        if node.op_type in ON_ANY:
            return given
        return given[:1] if node.op_type in (*LAYERS, *ON_ONE) else []

    def layers_in_front(self, value: str) -> Iterator[str]:
        """The layers that a value comes from with nothing but one number or more that all of it meets in between."""
        node = self.made.get(value)
        if node is None:
            return
        if node.op_type in LAYERS:
            yield node.name
            return
        given = self.read(node)
        if len(given) == 1 or node.op_type in ("Mul", "Div"):
            for each in given:
                yield from self.layers_in_front(each)

    def sources(self, value: str) -> set[tuple[str, bool]]:
        """All values that a term comes from by itself, and whether there is a layer on the way."""
        found, passed = {(value, False)}, False
        while (node := self.made.get(value)) is not None and len(given := self.read(node)) == 1:
            (value,), passed = given, passed or node.op_type in LAYERS
            found.add((value, passed))
        return found

    def terms(self, node: onnx.NodeProto) -> list[str]:
        """What a sum adds up; instead of another sum, what that does."""
        found = []
        for value in self.read(node):
            inner = self.made.get(value)
            is_sum = inner is not None and inner.op_type in SUMS and len(self.read(inner)) > 1
            found += self.terms(inner) if is_sum else [value]
        return found

    def pairs(self) -> list[tuple[str, str]]:
        """Layers behind another one."""
        layers = [node for node in self.nodes if node.op_type in LAYERS]
        return [(first, node.name) for node in layers for first in self.layers_in_front(node.input[0])]

    def sums(self) -> list[str]:
        """Sums of two terms of one value, with a layer in one of them."""
        found = []
        for node in self.nodes:
            terms = [self.sources(value) for value in self.terms(node)] if node.op_type in SUMS else []
            for index, term in enumerate(terms):
                for other in terms[:index]:
                    shared = {value for value, _ in term} & {value for value, _ in other}
                    if any((value, True) in term | other for value in shared):
                        found.append(node.name)
        return found


def leftovers(model: onnx.ModelProto) -> list[Any]:
    """What looks like one layer in a graph."""
    walk = Walk(model)
    return [*walk.pairs(), *walk.sums()]


# --- random chains and sums, spoilt in one place ---


class Spoiler:
    """Changes a graph in one place, so that it may no longer be one layer."""

    def __init__(self, model: onnx.ModelProto, rng: np.random.Generator) -> None:
        self.model, self.graph, self.rng = model, model.graph, rng
        self.held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def inner(self) -> str:
        """A value between two nodes."""
        values = [out for node in self.graph.node[:-1] for out in node.output]
        return str(values[self.rng.integers(len(values))])

    def shape(self, value: str) -> list[int]:
        (info,) = (info for info in self.graph.value_info if info.name == value)
        return [dim.dim_value for dim in info.type.tensor_type.shape.dim]

    def store(self, array: np.ndarray) -> str:
        name = f"more{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def insert(self, *nodes: onnx.NodeProto, before: int = 0) -> None:
        rest = list(self.graph.node)
        del self.graph.node[:]
        self.graph.node.extend([*rest[:before], *nodes, *rest[before:]])

    def between(self, *steps: Callable[[str, str], onnx.NodeProto], value: str | None = None) -> None:
        """Put nodes in a row behind a value; what read it reads what comes of them."""
        value = self.inner() if value is None else value
        names = [value, *(f"step{i}" for i in range(len(steps)))]
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                if name == value:
                    node.input[index] = names[-1]
        made = [step(given, name) for step, given, name in zip(steps, names, names[1:], strict=False)]
        self.insert(*made, before=self.behind(value))

    def behind(self, value: str) -> int:
        """The place behind the node that gives a value."""
        return next(i for i, node in enumerate(self.graph.node) if value in node.output) + 1

    def give_out(self, value: str) -> None:
        (info,) = (info for info in self.graph.value_info if info.name == value)
        self.graph.output.append(info)

    # Ways to spoil it.

    def an_output(self) -> None:
        self.give_out(self.inner())

    def a_reader(self) -> None:
        value = self.inner()
        self.insert(helper.make_node("Sigmoid", [value], ["read"], name="read"), before=self.behind(value))
        self.graph.output.append(helper.make_tensor_value_info("read", onnx.TensorProto.DOUBLE, None))

    def an_activation(self) -> None:
        self.between(lambda x, y: helper.make_node("Relu", [x], [y], name=y))

    def numbers_of_places(self) -> None:
        op, value = str(self.rng.choice(["Mul", "Add", "Div", "Sub"])), self.inner()
        numbers = self.store(self.rng.uniform(0.5, 1.5, (1, 1, *self.shape(value)[2:])))
        self.between(lambda x, y: helper.make_node(op, [x, numbers], [y], name=y), value=value)

    def a_number_of_the_input(self) -> None:
        op = str(self.rng.choice(["Mul", "Div"]))
        self.between(lambda x, y: helper.make_node(op, [x, "s"], [y], name=y))

    def another_border(self) -> None:
        size = self.store(np.array([0, 0, 1, 1, 0, 0, 1, 1]))
        back = [self.store(np.array(numbers)) for numbers in ([1, 1], [-1, -1], [2, 3])]
        mode = str(self.rng.choice(["reflect", "edge", "constant"]))
        ones = [self.store(np.array(0.5))] if mode == "constant" else []
        if self.rng.random() < 0.5:  # in front of what takes it off again
            self.between(
                lambda x, y: helper.make_node("Pad", [x, size, *ones], [y], name=y, mode=mode),
                lambda x, y: helper.make_node("Slice", [x, *back], [y], name=y),
            )
            return
        for conv in [node for node in self.graph.node if node.op_type == "Conv" and node.input[0] != "x"][:1]:
            pads = next(a for a in conv.attribute if a.name == "pads")
            own = self.store(np.array([0, 0, *pads.ints[:2], 0, 0, *pads.ints[2:]]))
            pads.ints[:] = [0, 0, 0, 0]
            border = helper.make_node("Pad", [conv.input[0], own, *ones], ["bordered"], name="bordered", mode=mode)
            conv.input[0] = "bordered"
            self.insert(border, before=self.behind(conv.output[0]) - 1)

    def a_weight_that_is_computed(self) -> None:
        readers = [node for node in self.graph.node if node.op_type in ("Conv", "BatchNormalization")]
        # Another layer is left to be seen.
        norms = [node for node in readers if node.op_type != "Conv"]
        sure = norms if len(readers) - len(norms) < 2 else readers
        if not sure:
            return
        node = sure[self.rng.integers(len(sure))]
        index = int(self.rng.integers(1, len(node.input)))
        made = helper.make_node("Mul", [node.input[index], "s"], ["computed"], name="computed")
        node.input[index] = "computed"
        self.insert(made)

    def another_type(self) -> None:
        self.between(
            lambda x, y: helper.make_node("Cast", [x], [y], name=y, to=onnx.TensorProto.FLOAT),
            lambda x, y: helper.make_node("Cast", [x], [y], name=y, to=onnx.TensorProto.DOUBLE),
        )

    def another_shape(self) -> None:
        value = self.inner()
        _, channels, *_ = shape = self.shape(value)
        there, back = (self.store(np.array(sizes)) for sizes in ([-1, channels, shape[2] * shape[3]], [-1, *shape[1:]]))
        self.between(
            lambda x, y: helper.make_node("Reshape", [x, there], [y], name=y),
            lambda x, y: helper.make_node("Reshape", [x, back], [y], name=y),
            value=value,
        )

    def shared_weights(self) -> None:
        convs = [node for node in self.graph.node if node.op_type == "Conv"]
        for node in convs[1:]:
            if self.held[node.input[1]].shape == self.held[convs[0].input[1]].shape:
                node.input[1] = convs[0].input[1]

    def a_pooling(self) -> None:
        self.between(
            lambda x, y: helper.make_node(
                "AveragePool", [x], [y], name=y, kernel_shape=[3, 3], pads=[1] * 4,
                count_include_pad=int(self.rng.integers(2)),
            )
        )  # fmt: skip


WAYS = (
    "an_output", "a_reader", "an_activation", "numbers_of_places", "a_number_of_the_input", "another_border",
    "a_weight_that_is_computed", "another_type", "another_shape", "shared_weights", "a_pooling",
)  # fmt: skip


def check_near(kind: str, way: str, seed: int) -> None:
    """Whatever still looks like one layer behind the fold is told, and both compute the same."""
    draw = Draw(seed)
    module, x = draw.module(kind), draw.input()
    model = onnx_model(module, x)
    model.graph.input.append(helper.make_tensor_value_info("s", onnx.TensorProto.DOUBLE, ()))
    getattr(Spoiler(model, np.random.default_rng(seed)), way)()
    model = onnx.shape_inference.infer_shapes(model)
    result = fold_onnx(ir.from_proto(model))
    folded = ir.to_proto(result.model)
    feeds = {"x": x.numpy(), "s": np.array(1.5)}
    before, after = (OnnxReference(m).run(feeds) for m in (model, folded))
    assert all(close(after[name], before[name]) for name in before), (kind, way, seed)
    left = leftovers(folded)
    assert bool(result.declined) or not left, (kind, way, seed, left)
    assert result.folded or result.declined or not leftovers(model), (kind, way, seed)


@pytest.mark.parametrize(
    ("kind", "way", "seed"),
    [
        ("branches", "an_activation", 655),
        ("branches", "a_weight_that_is_computed", 407),
        ("scales", "a_weight_that_is_computed", 540),
    ],
)
def test_what_was_once_left_without_a_word(kind: str, way: str, seed: int) -> None:
    check_near(kind, way, seed)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_random_layer_is_spoilt_by_is_told(way: str) -> None:
    for seed in range(2):
        for kind in KINDS:
            check_near(kind, way, seed)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_what_two_thousand_random_layers_are_spoilt_by_is_told(way: str) -> None:
    for seed in range(700):
        for kind in KINDS:
            check_near(kind, way, seed)


# --- one by one ---


def node(op: str, inputs: str, out: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [out], name=out, **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto], outputs: str = "y", *, dtype: type[np.floating[Any]] = np.float64,
    **arrays: np.ndarray,
) -> onnx.ModelProto:  # fmt: skip
    """A graph from x and z, of four channels of 8x8, and a number s."""
    rng = np.random.default_rng(0)
    held = {
        "K": rng.standard_normal((4, 4, 3, 3)), "P": rng.standard_normal((4, 4, 1, 1)), "b": rng.standard_normal(4),
        "G": rng.standard_normal((4, 2, 3, 3)), "v": rng.uniform(1, 2, 4), **arrays,
    }  # fmt: skip
    used = {name for each in nodes for name in each.input}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    held = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in held.items()}
    made = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, kind, s) for n, s in (("x", (1, 4, 8, 8)), ("z", (1, 4, 8, 8)), ("s", ()))],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items() if name in used],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


SAME = {"pads": [1] * 4}
NOT_EACH = "by a constant that is not one number per channel"
NEAR: dict[str, tuple[list[onnx.NodeProto], dict[str, Any], str]] = {
    "read in the middle": (
        [node("Conv", "x K", "a"), node("Relu", "a", "r"), node("Conv", "a P", "y")], {"outputs": "y r"},
        "what is between is used elsewhere",
    ),
    "an output in the middle": (
        [node("Conv", "x K", "a"), node("Conv", "a P", "y")], {"outputs": "y a"},
        "what is between is an output of the graph",
    ),
    "padded in between": (
        [node("Conv", "x K", "a", **SAME), node("Conv", "a K", "y", **SAME)], {},
        "the second pads along axis 0, where the first would go on with values that are not zero",
    ),
    "a bias that is padded": (
        [node("Conv", "x P b", "a"), node("Conv", "a K", "y", **SAME)], {},
        "the first has a bias, and the second pads with zeros what the bias is added to",
    ),
    "a map of places, and a scale": (
        [node("Conv", "x K", "a"), node("Mul", "a M", "m"), node("Mul", "m h", "n"), node("Conv", "n P", "y")],
        {"M": np.full((1, 1, 6, 6), 0.5), "h": np.array(0.5)}, f"what comes between is multiplied {NOT_EACH}",
    ),
    "a map of places behind a branch": (
        [node("Conv", "x K", "a", **SAME), node("Conv", "x P", "c"), node("Mul", "c M", "m"), node("Add", "a m", "y")],
        {"M": np.full((1, 1, 8, 8), 0.5)}, f"what comes between is multiplied {NOT_EACH}",
    ),
    "a map of places added to a branch": (
        [node("Conv", "x K", "a", **SAME), node("Conv", "x P", "c"), node("Sub", "c M", "m"), node("Add", "a m", "y")],
        {"M": np.arange(64.0).reshape(1, 1, 8, 8)}, f"what comes between is increased {NOT_EACH}",
    ),
    "a weight that is computed": (
        [node("Mul", "K s", "w"), node("Conv", "x w", "a"), node("Conv", "a P", "y")], {},
        "of the layer in front, its weight is not constant",
    ),
    "a weight that is computed behind": (
        [node("Mul", "P s", "w"), node("Conv", "x K", "a"), node("Conv", "a w", "y")], {}, "its weight is not constant",
    ),
    "a weight that is computed, and what it acts on": (
        [node("Mul", "K s", "w"), node("Conv", "x w", "a", **SAME), node("AveragePool", "x", "p", kernel_shape=[1, 1]),
         node("BatchNormalization", "p v b b v", "n"), node("Sum", "a n x", "y")],
        {}, "its weight is not constant",
    ),
    "a branch whose bias is computed, and shifted": (
        [node("Conv", "x K", "a", **SAME), node("Mul", "b s", "w"), node("Conv", "x P w", "c"), node("Sub", "c h", "m"),
         node("Add", "a m", "y")],
        {"h": np.array(0.5)}, "of a layer beside it, its bias is not constant",
    ),
    "another type in between": (
        [node("Conv", "x K", "a"), node("Cast", "a", "f", to=onnx.TensorProto.FLOAT),
         node("Cast", "f", "d", to=onnx.TensorProto.DOUBLE), node("Conv", "d P", "y")],
        {}, "the type changes between the layers",
    ),
    "another shape in between": (
        [node("Conv", "x E", "a"), node("Flatten", "a", "f"), node("Gemm", "f L", "y")],
        {"E": np.ones((4, 4, 8, 8)), "L": np.ones((4, 3))}, "what is between changes its shape",
    ),
    "another axis": (
        [node("Conv", "x P", "a"), node("MatMul", "a L", "y")], {"L": np.ones((8, 3))}, "the two map other axes",
    ),
    "an average pooling": (
        [node("Conv", "x P", "a"), node("AveragePool", "a", "p", kernel_shape=[2, 2]), node("Conv", "p P", "y")], {},
        "an average pooling is between, and stays one, which is cheaper",
    ),
    "an average pooling of fewer numbers": (
        [node("Conv", "x P", "a"), node("AveragePool", "a", "p", kernel_shape=[3, 3], **SAME),
         node("Conv", "p P", "y")],
        {}, "the average pooling divides by fewer numbers at the border",
    ),
    "a norm whose input is read": (
        [node("Conv", "x K", "a"), node("BatchNormalization", "a v b b v", "y"), node("Relu", "a", "r")],
        {"outputs": "y r"}, "what is between is used elsewhere",
    ),
    "a norm that is computed": (
        [node("Conv", "x K", "a"), node("Mul", "b s", "c"), node("BatchNormalization", "a c b b v", "y")], {},
        "the batch norm between is not constant",
    ),
    "a norm in front of zeros": (
        [node("BatchNormalization", "x v b b v", "n"), node("Conv", "n K", "y", **SAME)], {},
        "the first has a bias, and the second pads with zeros what the bias is added to",
    ),
    "a norm in front of two": (
        [node("BatchNormalization", "x v b b v", "n"), node("Conv", "n K", "y"), node("Conv", "n P", "w")],
        {"outputs": "y w"}, "what is between is used elsewhere",
    ),
    "a sum of another size": (
        [node("Conv", "x K", "a", **SAME), node("Conv", "x E", "c"), node("Add", "a c", "y")],
        {"E": np.ones((4, 4, 8, 8))}, "what is added to it has another size along axis 0",
    ),
    "a sum of fewer channels": (
        [node("Conv", "x K", "a", **SAME), node("Conv", "x E", "c"), node("Add", "a c", "y")],
        {"E": np.ones((1, 4, 1, 1))}, "the two have other channels or axes",
    ),
    "a branch that is read": (
        [node("Conv", "x K", "a", **SAME), node("Conv", "x P", "c"), node("Relu", "c", "r"), node("Add", "a c", "y")],
        {"outputs": "y r"}, "what is between is used elsewhere",
    ),
    "a branch that is an output, and scaled": (
        [node("Conv", "x K", "a", **SAME), node("Conv", "x P", "c"), node("Mul", "c h", "m"), node("Add", "a m", "y")],
        {"outputs": "y c", "h": np.array(0.5)}, "what is between is an output of the graph",
    ),
    "another shape of a branch": (
        [node("Conv", "x K", "a", **SAME), node("Reshape", "a there", "f"), node("Reshape", "f back", "m"),
         node("Conv", "x P", "c"), node("Add", "m c", "y")],
        {"there": np.array([1, 4, 64]), "back": np.array([1, 4, 8, 8])}, "what is between changes its shape",
    ),
    "sums of poolings, one with fewer numbers": (
        [node("Conv", "x K", "a", **SAME), node("AveragePool", "a", "p", kernel_shape=[3, 3], **SAME),
         node("Conv", "x P", "c"), node("AveragePool", "c", "q", kernel_shape=[1, 1]), node("Add", "p q", "y")],
        {}, "the average pooling divides by fewer numbers at the border",
    ),
}  # fmt: skip


def same(model: onnx.ModelProto, folded: onnx.ModelProto) -> None:
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((1, 4, 8, 8)), "z": rng.standard_normal((1, 4, 8, 8)), "s": np.array(1.5)}
    before, after = (OnnxReference(m).run(feeds) for m in (model, folded))
    assert all(close(after[name], before[name]) for name in before)


@pytest.mark.parametrize("name", NEAR)
def test_what_looks_like_a_layer_is_told(name: str) -> None:
    nodes, arrays, reason = NEAR[name]
    model = graph(nodes, **arrays)
    result = fold_onnx(ir.from_proto(model))
    assert {skipped.reason for skipped in result.declined} == {reason}
    assert result.folded == ()
    same(model, ir.to_proto(result.model))


ONE = {
    "centres elsewhere": [
        node("Conv", "x K", "a", pads=[0, 0, 2, 2]), node("Conv", "x P", "c"), node("Add", "a c", "y"),
    ],
    "groups beside none": [
        node("Conv", "x G", "a", group=2, **SAME), node("Conv", "x P", "c"), node("Sub", "a c", "y"),
    ],
    "groups in front of none": [node("Conv", "x G", "a", group=2), node("Conv", "a P", "y")],
    "one weight for two": [node("Conv", "x P", "a"), node("Conv", "a P", "y")],
    "the mean of two": [node("Conv", "x K", "a", **SAME), node("Conv", "x P", "c"), node("Mean", "a c", "y")],
    "every other location in between": [
        node("Conv", "x K", "a"), node("MaxPool", "a", "p", kernel_shape=[1, 1], strides=[2, 2]),
        node("Conv", "p P", "y"),
    ],
    "a sum of poolings": [
        node("Conv", "x K", "a", **SAME), node("AveragePool", "a", "p", kernel_shape=[2, 2]), node("Conv", "x P", "c"),
        node("AveragePool", "c", "q", kernel_shape=[2, 2]), node("Add", "p q", "y"),
    ],
    "padding that the file computes": [
        node("Conv", "x K", "a", auto_pad="SAME_UPPER"), node("Conv", "x P", "c"), node("Add", "a c", "y"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ONE)
def test_what_is_one_layer_after_all_folds(name: str) -> None:
    model = graph(ONE[name])
    result = fold_onnx(ir.from_proto(model))
    assert [each.op_type for each in result.model.graph] == ["Conv"]
    assert result.declined == ()
    same(model, ir.to_proto(result.model))


@pytest.mark.parametrize("name", ["the mean of two", "every other location in between", "a sum of poolings"])
def test_the_verdict_proves_them(tmp_path: Path, name: str) -> None:
    onnx.save(graph(ONE[name], dtype=np.float32), tmp_path / "in.onnx")
    result = fold(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert len(result.folded) == 1
    assert result.verdict is Status.PASS
    assert {edge.edge: edge.status for edge in result.verification.edges}["weights"] is Status.PASS


NEITHER = {
    "an activation": [node("Conv", "x K", "a"), node("Relu", "a", "r"), node("Conv", "r P", "y")],
    "a gate of its own": [
        node("Conv", "x K", "a", **SAME), node("Sigmoid", "a", "g"), node("Mul", "a g", "m"), node("Conv", "m P", "y"),
    ],
    "a branch with a gate of its own": [
        node("Conv", "x K", "a", **SAME), node("Conv", "x P", "c"), node("Sigmoid", "c", "g"), node("Mul", "c g", "m"),
        node("Add", "a m", "y"),
    ],
    "an activation in a residual branch, written out": [
        node("Conv", "x P", "a"), node("Mul", "a s", "h"), node("Mul", "a a", "e"), node("Mul", "h e", "m"),
        node("Conv", "m K", "c", **SAME), node("Add", "x c", "y"),
    ],
    "a product of two": [node("Conv", "x K", "a", **SAME), node("Conv", "x P", "c"), node("Mul", "a c", "y")],
    "two inputs": [node("Conv", "x K", "a", **SAME), node("Conv", "z P", "c"), node("Add", "a c", "y")],
    "a norm and an activation": [node("BatchNormalization", "x v b b v", "n"), node("Relu", "x", "r"),
                                 node("Add", "n r", "y")],
    "a weight that is computed, and another input": [
        node("Mul", "K s", "w"), node("Conv", "x w", "a", **SAME), node("Add", "a z", "y"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NEITHER)
def test_what_looks_like_no_layer_has_no_word(name: str) -> None:
    model = graph(NEITHER[name])
    result = fold_onnx(ir.from_proto(model))
    assert result.folded == result.declined == ()
    same(model, ir.to_proto(result.model))


# --- torch programs ---


class Two(nn.Module):
    """A convolution, something, and another one, or a branch of it beside a larger one."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor], *, beside: bool, second: nn.Module) -> None:
        super().__init__()
        self.between, self.beside = between, beside
        self.large, self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.between(self.first(x))
        return self.large(x) + y if self.beside else self.second(y)


def there_and_back(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).unflatten(2, (8, 8))


PROGRAMS = {
    "another shape": (there_and_back, nn.Conv2d(4, 4, 1), "what is between changes its shape"),
    "another type": (lambda x: x.float().double(), nn.Conv2d(4, 4, 1), "the type changes between the layers"),
    "an average pooling": (
        lambda x: functional.avg_pool2d(x, 2), nn.Conv2d(4, 4, 1),
        "an average pooling is between, and stays one, which is cheaper",
    ),
    "another axis": (lambda x: x, nn.Linear(8, 3), "the two map other axes"),
    "every other location": (lambda x: functional.max_pool2d(x, 1, 2), nn.Conv2d(4, 4, 1), None),
}  # fmt: skip
BRANCHES = {
    "another shape": (there_and_back, "what is between changes its shape"),
    "another type": (lambda x: x.float().double(), "the type changes between the layers"),
    "a map of places": (
        lambda x: x - torch.arange(8.0, dtype=torch.float64), f"what comes between is increased {NOT_EACH}",
    ),
    "a gate of its own": (lambda x: x * torch.sigmoid(x), None),
}  # fmt: skip


@pytest.mark.parametrize("name", [*PROGRAMS, *(f"beside, {name}" for name in BRANCHES)])
def test_what_looks_like_a_layer_of_a_program_is_told(name: str) -> None:
    beside = name.startswith("beside, ")
    if beside:
        between, reason = BRANCHES[name.removeprefix("beside, ")]
        module = Two(between, beside=True, second=nn.Identity())
    else:
        between, second, reason = PROGRAMS[name]
        module = Two(between, beside=False, second=second)
    x = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    program = torch.export.export(module.double().eval(), (x,))
    result = fold_program(program)
    assert [skipped.reason for skipped in result.declined] == ([] if reason is None else [reason])
    assert len(result.folded) == (reason is None and not beside)
    (before,), (after,) = (evaluate(p, (x,)) for p in (program, result.program))
    assert close(to_numpy(after), to_numpy(before))


def test_a_sum_without_a_layer_is_no_obstacle() -> None:
    """The norm alone tells how many channels there are."""

    class NormAndActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x) + torch.relu(x)

    program = torch.export.export(NormAndActivation().eval(), (torch.randn(1, 4, 8, 8),))
    result = fold_program(program)
    assert (result.folded, result.declined) == ((), ())
    assert result.program is program


def test_the_command_counts_and_explains_them(tmp_path: Path) -> None:
    nodes, arrays, reason = NEAR["another shape in between"]
    onnx.save(graph([*nodes, node("Conv", "z K", "p", **SAME), node("Conv", "p K", "q", **SAME)], "y q", **arrays),
              tmp_path / "in.onnx")  # fmt: skip
    command = ["fold", str(tmp_path / "in.onnx"), "-o", str(tmp_path / "out.onnx"), "--no-verify", "--explain"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "2 layers left as they are" in text
    assert f"y (linear): not folded, {reason}" in text
    assert "q (conv2d): not folded, the second pads along axis 0" in text
