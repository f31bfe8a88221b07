"""The faults that verdict.py plants: each changes a copy of a file as a mistake in an exporter would."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "verification")]

from planting import (
    attribute,
    drop_bias,
    node_with,
    one_off,
    remove_output,
    rename_output,
    to_bfloat16,
    to_float16,
    to_tf32,
    weight,
    with_nan,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planting import Array, Edit


class Fault(NamedTuple):
    """One fault in a file.

    Attributes:
        kind: What is wrong, in words.
        layer: The layer that should be named; ``output`` for the file's ends.
        edit: Plants it.
    """

    kind: str
    layer: str
    edit: Edit


ROUNDINGS = {"bfloat16": to_bfloat16, "float16": to_float16, "TF32": to_tf32}


def faults(file: Path, layers: list[str], stale: dict[str, Array]) -> Iterator[Fault]:
    """All faults that a file has a place for.

    Args:
        file: A converted file.
        layers: The layers with V and U where faults are planted.
        stale: By the name of a weight in the file, what it was before the exporter changed it.
    """
    model = onnx.load(file)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for layer in layers:
        if f"{layer}.V" in weights and f"{layer}.U" in weights:
            yield from _of_factors(model, weights, layer, stale)
    yield Fault("output renamed", "output", rename_output)
    if len(model.graph.output) > 1:
        yield Fault("output removed", "output", remove_output)


def _of_factors(
    model: onnx.ModelProto, weights: dict[str, Array], layer: str, stale: dict[str, Array]
) -> Iterator[Fault]:
    v, u = f"{layer}.V", f"{layer}.U"
    V, U = weights[v], weights[u]

    def fault(kind: str, edit: Edit) -> Fault:
        return Fault(kind, layer, edit)

    yield fault("one weight of V off by 1%", weight(v, one_off))
    yield fault("one weight of U off by 1%", weight(u, one_off))
    yield fault("a median weight of V off by 1%", weight(v, _median_off))
    for name, rounding in ROUNDINGS.items():
        yield fault(f"weights rounded to {name}", _both(weight(v, rounding), weight(u, rounding)))
        yield fault(f"activations rounded to {name}", round_activations(v, name))
    yield fault("NaN in a weight", weight(v, with_nan))
    yield fault("a component dropped", weight(u, _without_component))
    yield fault("wrong component kept", weight(v, _component_replaced))
    yield fault("U permuted", weight(u, lambda x: np.roll(x, 1, axis=1)))
    yield fault("U transposed", weight(u, _transposed))
    yield fault("U stale", weight(u, lambda x: x * (1 + 1e-3 * np.random.default_rng(0).standard_normal(x.shape))))
    if u in stale and stale[u].shape == U.shape:
        yield fault("U stale, from before batch norm was folded", weight(u, lambda _: stale[u]))
    if U.shape[0] > 1:
        yield fault("two filters swapped", weight(u, lambda x: x[[1, 0, *range(2, len(x))]]))
    if V.ndim > 2 and max(V.shape[2:]) > 1:
        axis = int(np.argmax(V.shape[2:])) + 2
        yield fault("taps flipped", weight(v, lambda x: np.flip(x, axis)))
    node = node_with(model, u)
    if len(node.input) > 2 and node.input[2] in weights:
        yield fault("bias dropped", drop_bias(u))
        yield fault("bias off by 1%", weight(node.input[2], one_off))
    yield from _of_geometry(model, layer, v)


def _of_geometry(model: onnx.ModelProto, layer: str, v: str) -> Iterator[Fault]:
    found = [a for a in node_with(model, v).attribute if a.name == "pads"]
    pads = list(found[0].ints) if found else []
    if not any(pads):
        return
    axes = len(pads) // 2
    if pads[0] > 0:
        yield Fault(
            "padding shifted",
            layer,
            attribute(v, "pads", [pads[0] - 1, *pads[1:axes], pads[axes] + 1, *pads[axes + 1 :]]),
        )
    yield Fault("wrong padding mode", layer, padded_otherwise(v, "edge"))


def _both(*edits: Edit) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for one in edits:
            one(model)

    return edit


def _median_off(value: Array) -> Array:
    place = np.argsort(np.abs(value), axis=None)[value.size // 2]
    value.flat[place] *= 1.01
    return value


def _without_component(value: Array) -> Array:
    value[:, np.abs(value).sum(axis=tuple(i for i in range(value.ndim) if i != 1)).argmax()] = 0
    return value


def _component_replaced(value: Array) -> Array:
    """A filter of V is another one's, as after an index off by one among the live components."""
    value[0] = value[-1]
    return value


def _transposed(value: Array) -> Array:
    """The same numbers in the order of the transposed matrix."""
    matrix = value.reshape(value.shape[0], -1)
    return matrix.T.reshape(value.shape)


def round_activations(weight_name: str, kind: str) -> Edit:
    """Rounds what the node that reads a weight gets as its input."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_with(model, weight_name)
        index = list(model.graph.node).index(node)
        source = node.input[0]
        if kind == "TF32":
            # Veltkamp's splitting: 2^13 + 1 leaves 11 of float32's 24 bits.
            model.graph.initializer.append(numpy_helper.from_array(np.float32(2**13 + 1), "splitter"))
            made = [
                helper.make_node("Mul", [source, "splitter"], ["scaled"]),
                helper.make_node("Sub", ["scaled", source], ["low"]),
                helper.make_node("Sub", ["scaled", "low"], ["rounded"]),
            ]
        else:
            to = TensorProto.FLOAT16 if kind == "float16" else TensorProto.BFLOAT16
            made = [
                helper.make_node("Cast", [source], ["low"], to=to),
                helper.make_node("Cast", ["low"], ["rounded"], to=TensorProto.FLOAT),
            ]
        node.input[0] = "rounded"
        for number, one in enumerate(made):
            model.graph.node.insert(index + number, one)

    return edit


def padded_otherwise(weight_name: str, mode: str) -> Edit:
    """Pads with other values than zeros."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_with(model, weight_name)
        index = list(model.graph.node).index(node)
        pads = next(list(a.ints) for a in node.attribute if a.name == "pads")
        axes = len(pads) // 2
        full = [0, 0, *pads[:axes], 0, 0, *pads[axes:]]
        kept = [a for a in node.attribute if a.name not in ("pads", "auto_pad")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", [0] * len(pads))])
        model.graph.initializer.append(numpy_helper.from_array(np.array(full, np.int64), "new_pads"))
        pad = helper.make_node("Pad", [node.input[0], "new_pads"], ["padded"], mode=mode)
        node.input[0] = "padded"
        model.graph.node.insert(index, pad)

    return edit
