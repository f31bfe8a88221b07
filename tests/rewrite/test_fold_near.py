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
from fold_networks import KINDS, Draw, onnx_model
from onnx import helper, numpy_helper
from torch import nn
from torch.nn import functional

from spdexport.arrays import to_numpy
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.torch_fold import fold_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

    def between(self, *steps: Callable[[str, str], onnx.NodeProto]) -> None:
        """Put nodes in a row behind a value; what read it reads what comes of it."""
        value = self.inner()
        place = next(i for i, node in enumerate(self.graph.node) if value in node.output) + 1
        names = [value, *(f"step{i}" for i in range(len(steps)))]
        for node in self.graph.node:
            for index, name in enumerate(node.input):
                if name == value:
                    node.input[index] = names[-1]
        made = [step(given, name) for step, given, name in zip(steps, names, names[1:], strict=False)]
        self.insert(*made, before=place)

    def give_out(self, value: str) -> None:
        (info,) = (info for info in self.graph.value_info if info.name == value)
        self.graph.output.append(info)

    # Ways to spoil it.

    def an_output(self) -> None:
        self.give_out(self.inner())

    def a_reader(self) -> None:
        value = self.inner()
        place = next(i for i, node in enumerate(self.graph.node) if value in node.output) + 1
        self.insert(helper.make_node("Sigmoid", [value], ["read"], name="read"), before=place)
        self.graph.output.append(helper.make_tensor_value_info("read", onnx.TensorProto.DOUBLE, None))

    def an_activation(self) -> None:
        self.between(lambda x, y: helper.make_node("Relu", [x], [y], name=y))

    def numbers_of_places(self) -> None:
        op = str(self.rng.choice(["Mul", "Add", "Div", "Sub"]))
        map_of = self.store(self.rng.uniform(0.5, 1.5, (1, 1, *self.shape(self.inner_of_rank_four())[2:])))
        self.between_at(self.last, lambda x, y: helper.make_node(op, [x, map_of], [y], name=y))

    def inner_of_rank_four(self) -> str:
        self.last = self.inner()
        return self.last

    def between_at(self, value: str, *steps: Callable[[str, str], onnx.NodeProto]) -> None:
        inner, self.inner = self.inner, lambda: value  # type: ignore[method-assign]
        self.between(*steps)
        self.inner = inner  # type: ignore[method-assign]

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
        else:
            convs = [node for node in self.graph.node if node.op_type == "Conv" and node.input[0] != "x"]
            for conv in convs[:1]:
                pads = next(a for a in conv.attribute if a.name == "pads")
                top, left, bottom, right = pads.ints
                own = self.store(np.array([0, 0, top, left, 0, 0, bottom, right]))
                pads.ints[:] = [0, 0, 0, 0]
                node = helper.make_node("Pad", [conv.input[0], own, *ones], ["bordered"], name="bordered", mode=mode)
                conv.input[0] = "bordered"
                place = next(i for i, each in enumerate(self.graph.node) if each.output[0] == conv.output[0])
                self.insert(node, before=place)

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
        self.between_at(
            value,
            lambda x, y: helper.make_node("Reshape", [x, there], [y], name=y),
            lambda x, y: helper.make_node("Reshape", [x, back], [y], name=y),
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
