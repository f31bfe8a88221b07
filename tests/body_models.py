"""Small ONNX models whose layers are in the bodies of If, Loop and Scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_models import model, random

if TYPE_CHECKING:
    from spdexport.conv import Array

SIZE = 5
"""Height and width of the images."""


def value(name: str, *shape: object, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def image(name: str, channels: int = 4) -> onnx.ValueInfoProto:
    return value(name, "N", channels, SIZE, SIZE)


def conv(data: str, weight: str, gives: str, **settings: object) -> onnx.NodeProto:
    return helper.make_node(
        "Conv", [data, *weight.split()], [gives], name=f"{gives}_conv", pads=[1, 1, 1, 1], **settings
    )


def kernel(seed: int) -> Array:
    """Weights of a size that keeps what a loop computes near 1."""
    return random(4, 4, 3, 3, seed=seed) / 6


def constant(name: str, array: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def flag(name: str = "flag") -> list[onnx.NodeProto]:
    """Nodes that tell whether the mean of x is positive."""
    return [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Greater", ["mean", "zero"], [name]),
    ]


def weights(**given: Array) -> dict[str, Array]:
    return {"zero": np.array(0, np.float32), **{name.replace("__", "."): array for name, array in given.items()}}


def source(
    nodes: list[onnx.NodeProto],
    stored: dict[str, Array],
    *,
    x: list[object] | None = None,
    y: list[object] | None = None,
    **settings: object,
) -> onnx.ModelProto:
    images = ["N", 4, SIZE, SIZE]
    return model(nodes, inputs={"x": x or images}, outputs={"y": y or images}, weights=stored, **settings)  # type: ignore[arg-type]


def branching() -> onnx.ModelProto:
    """An If whose branches have a layer of their own each, of which one is stored in the branch, and share a third."""
    then = helper.make_graph(
        [conv("x", "own.weight", "t1"), conv("t1", "shared.weight shared.bias", "t")],
        "then",
        [],
        [image("t")],
        [numpy_helper.from_array(kernel(1), "own.weight")],
    )
    other = helper.make_graph(
        [conv("x", "shared.weight shared.bias", "e1"), constant("held", kernel(2)), conv("e1", "held", "e")],
        "else",
        [],
        [image("e")],
    )
    choice = helper.make_node("If", ["flag"], ["y"], name="choice", then_branch=then, else_branch=other)
    return source([*flag(), choice], weights(shared__weight=kernel(0), shared__bias=random(4)))


def trips(count: int = 3) -> dict[str, Array]:
    return {"trips": np.array(count, np.int64), "go": np.array(True)}


def looping(count: int = 3) -> onnx.ModelProto:
    """A Loop that applies one layer again and again, the result carried, and a layer behind it."""
    body = helper.make_graph(
        [
            conv("carried", "step.weight step.bias", "c"),
            helper.make_node("Tanh", ["c"], ["next"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [value("i", dtype=TensorProto.INT64), value("on", dtype=TensorProto.BOOL), image("carried")],
        [value("still", dtype=TensorProto.BOOL), image("next")],
    )
    nodes = [
        helper.make_node("Loop", ["trips", "go", "x"], ["z"], name="again", body=body),
        conv("z", "last.weight", "y"),
    ]
    stored = weights(step__weight=kernel(0), step__bias=random(4), last__weight=kernel(3))
    return source(nodes, {**stored, **trips(count)})


def scanning() -> onnx.ModelProto:
    """A Scan over a sequence of vectors with a state: y = tanh(x W + h R)."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["now", "cell.input"], ["a"], name="reads"),
            helper.make_node("MatMul", ["h", "cell.state"], ["b"], name="remembers"),
            helper.make_node("Add", ["a", "b"], ["s"]),
            helper.make_node("Tanh", ["s"], ["h_out"]),
            helper.make_node("Identity", ["h_out"], ["seen"]),
        ],
        "body",
        [value("h", "N", 5), value("now", "N", 4)],
        [value("h_out", "N", 5), value("seen", "N", 5)],
        [numpy_helper.from_array(random(5, 5, seed=4) / 2, "cell.state")],
    )
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("Slice", ["x", "from", "one", "axis"], ["first"]),
        helper.make_node("Squeeze", ["first", "axis"], ["start"]),
        helper.make_node("MatMul", ["start", "begin.weight"], ["h0"], name="begins"),
        helper.make_node("Scan", ["h0", "steps"], ["y", "all"], name="sequence", body=body, num_scan_inputs=1),
    ]
    stored = {
        "from": np.int64([0]),
        "one": np.int64([1]),
        "axis": np.int64([1]),
        "begin.weight": random(4, 5, seed=5),
        "cell.input": random(4, 5, seed=6),
    }
    return source(nodes, stored, x=["N", 7, 4], y=["N", 5])


def nested() -> onnx.ModelProto:
    """An If in a Loop: every second step takes another layer, and one layer is of the main graph and the Loop."""
    branches = {
        "then_branch": helper.make_graph([conv("carried", "even.weight", "p")], "even", [], [image("p")]),
        "else_branch": helper.make_graph(
            [conv("carried", "odd.weight", "q")],
            "odd",
            [],
            [image("q")],
            [numpy_helper.from_array(kernel(8), "odd.weight")],
        ),
    }
    body = helper.make_graph(
        [
            helper.make_node("Mod", ["i", "two"], ["rest"]),
            helper.make_node("Cast", ["rest"], ["is_odd"], to=TensorProto.BOOL),
            helper.make_node("Not", ["is_odd"], ["is_even"]),
            helper.make_node("If", ["is_even"], ["chosen"], name="which", **branches),
            conv("chosen", "both.weight", "d"),
            helper.make_node("Tanh", ["d"], ["next"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [value("i", dtype=TensorProto.INT64), value("on", dtype=TensorProto.BOOL), image("carried")],
        [value("still", dtype=TensorProto.BOOL), image("next")],
    )
    nodes = [
        conv("x", "both.weight", "h"),
        helper.make_node("Loop", ["trips", "go", "h"], ["y"], name="again", body=body),
    ]
    stored = weights(both__weight=kernel(0), even__weight=kernel(7))
    return source(nodes, {**stored, **trips(), "two": np.array(2, np.int64)})


def carrying() -> onnx.ModelProto:
    """A Loop that carries a weight, which every step halves."""
    body = helper.make_graph(
        [
            conv("carried", "w", "c"),
            helper.make_node("Tanh", ["c"], ["next"]),
            helper.make_node("Mul", ["w", "half"], ["w_next"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [
            value("i", dtype=TensorProto.INT64),
            value("on", dtype=TensorProto.BOOL),
            image("carried"),
            value("w", 4, 4, 3, 3),
        ],
        [value("still", dtype=TensorProto.BOOL), image("next"), value("w_next", 4, 4, 3, 3)],
    )
    nodes = [
        helper.make_node("Loop", ["trips", "go", "x", "first.weight"], ["z", "w_last"], name="again", body=body),
        conv("z", "last.weight", "y"),
    ]
    stored = weights(first__weight=kernel(0), last__weight=kernel(3))
    return source(nodes, {**stored, **trips(), "half": np.array(0.5, np.float32)})


MODELS = {"if": branching, "loop": looping, "scan": scanning, "nested": nested}


def inside_an_if(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with all that it computes in one branch of an If that is always taken; the other gives zeros."""
    graph = proto.graph
    (end,) = graph.output
    then = onnx.GraphProto(name="then", node=graph.node, output=[end], value_info=graph.value_info)
    for node in then.node:
        node.output[:] = [f"{name}/inside" if name == end.name else name for name in node.output]
        node.input[:] = [f"{name}/inside" if name == end.name else name for name in node.input]
    then.output[0].name = f"{end.name}/inside"
    shape = [dim.dim_value or 1 for dim in end.type.tensor_type.shape.dim]
    other = helper.make_graph(
        [constant("nothing", np.zeros(shape, np.float32))], "else", [], [value("nothing", *shape)]
    )
    choice = helper.make_node("If", ["always"], [end.name], name="choice", then_branch=then, else_branch=other)
    del graph.node[:], graph.value_info[:]
    graph.node.append(choice)
    graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    return proto
