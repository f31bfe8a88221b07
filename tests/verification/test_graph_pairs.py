"""Nothing of two graphs is left uncompared: bodies, what they capture, functions, defaults, wiring, attributes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from spdexport.verification.result import Status
from spdexport.verification.weights import compare_files, weights_edge

if TYPE_CHECKING:
    from collections.abc import Callable

    Edit = Callable[[onnx.ModelProto], None]

RNG = np.random.default_rng(0)
node = helper.make_node


def info(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def tensor(name: str, values: Any) -> onnx.TensorProto:
    array = np.asarray(values)
    return numpy_helper.from_array(array.astype(np.float32) if array.dtype == np.float64 else array, name)


def network() -> onnx.ModelProto:
    """One that has everything: a branch, a loop, a scan, a nested function, masks with defaults, quantization."""
    then = helper.make_graph(
        [node("Neg", ["a"], ["n"]), node("MatMul", ["n", "rare.weight"], ["t"])],
        "then", [], [info("t", "N", 4)], [tensor("rare.weight", RNG.standard_normal((4, 4)))],
    )  # fmt: skip
    other = helper.make_graph([node("MatMul", ["b", "often.weight"], ["e"])], "else", [], [info("e", "N", 4)])
    body = helper.make_graph(
        [node("Add", ["state", "step.bias"], ["next"]), node("Identity", ["go"], ["again"])],
        "body", [info("i", kind=TensorProto.INT64), info("go", kind=TensorProto.BOOL), info("state", "N", 4)],
        [info("again", kind=TensorProto.BOOL), info("next", "N", 4)],
    )  # fmt: skip
    scanned = helper.make_graph(
        [node("Add", ["sum", "row"], ["total"]), node("Mul", ["total", "scan.scale"], ["out"])],
        "scan", [info("sum", 4), info("row", 4)], [info("total", 4), info("out", 4)],
        [tensor("scan.scale", 0.5)],
    )  # fmt: skip
    inner = helper.make_function(
        "local", "clipped", ["v"], ["w"],
        [node("Constant", [], ["low"], value=tensor("low", -1.0)),
         node("Constant", [], ["high"], value=tensor("high", 1.0)), node("Clip", ["v", "low", "high"], ["w"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    outer = helper.make_function(
        "local", "twice", ["p"], ["q"],
        [node("clipped", ["p"], ["r"], domain="local"), node("LeakyRelu", ["r"], ["q"])],
        [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)], ["slope"],
    )  # fmt: skip
    leaky = outer.node[1].attribute.add()
    leaky.name, leaky.type, leaky.ref_attr_name = "alpha", onnx.AttributeProto.FLOAT, "slope"
    nodes = [
        node("MatMul", ["x", "first.weight"], ["u"]),
        node("Mul", ["u", "first.mask"], ["a"]),
        node("MatMul", ["x", "second.weight"], ["v"]),
        node("Mul", ["v", "second.mask"], ["b"]),
        node("ReduceSum", ["a"], ["sum"], keepdims=0),
        node("Greater", ["sum", "limit"], ["rare"]),
        node("If", ["rare"], ["c"], name="choice", then_branch=then, else_branch=other),
        node("Loop", ["trips", "", "c"], ["d"], name="loop", body=body),
        node("Scan", ["zeros", "d"], ["last", "f"], name="scan", body=scanned, num_scan_inputs=1),
        node("twice", ["f"], ["g"], domain="local", slope=0.1),
        node("QuantizeLinear", ["g", "scale", "zero"], ["h"]),
        node("DequantizeLinear", ["h", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [info("x", "N", 4), info("first.mask", 4), info("second.mask", 4)], [info("y", "N", 4), info("last", 4)],
        [tensor("first.mask", np.ones(4)), tensor("second.mask", np.ones(4)),
         tensor("first.weight", RNG.standard_normal((4, 4))), tensor("second.weight", RNG.standard_normal((4, 4))),
         tensor("often.weight", RNG.standard_normal((4, 4))), tensor("step.bias", RNG.standard_normal(4)),
         tensor("limit", 100.0), tensor("trips", np.int64(3)), tensor("zeros", np.zeros(4)),
         tensor("scale", 0.1), tensor("zero", np.uint8(3))],
    )  # fmt: skip
    made = helper.make_model(
        graph, functions=[inner, outer], ir_version=9,
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("local", 1)],
    )  # fmt: skip
    onnx.checker.check_model(made)
    return made


NETWORK = network()


def edited(edit: Edit) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(NETWORK)
    edit(model)
    return model


def body_of(model: onnx.ModelProto, name: str, which: str = "body") -> onnx.GraphProto:
    found = next(n for n in model.graph.node if n.name == name)
    return next(a.g for a in found.attribute if a.name == which)


def change(tensors: Any, name: str, make: Callable[[Any], Any]) -> None:
    held = next(t for t in tensors if t.name == name)
    values = numpy_helper.to_array(held)
    held.CopyFrom(numpy_helper.from_array(np.asarray(make(values.copy())).astype(values.dtype), name))


def one_bit(values: Any) -> Any:
    values.flat[0] = np.nextafter(values.flat[0], np.float32(9))
    return values


def reads(graph: Any, output: str, index: int, name: str) -> None:
    found = next(n for n in graph.node if output in n.output)
    found.input[index] = name


def constant(function: onnx.FunctionProto, index: int, value: float) -> None:
    function.node[index].attribute[0].t.CopyFrom(tensor("c", value))


FAULTS: dict[str, tuple[Edit, str, str]] = {
    "a weight of the rare branch negated": (
        lambda m: change(body_of(m, "choice", "then_branch").initializer, "rare.weight", np.negative),
        "rare", "in the then branch of If choice: rare.weight differs in 16 of 16 entries"),
    "a bit of a captured weight": (
        lambda m: change(m.graph.initializer, "often.weight", one_bit),
        "often", "in the else branch of If choice: often.weight differs in 1 of 16 entries"),
    "a branch that reads another layer": (
        lambda m: reads(body_of(m, "choice", "else_branch"), "e", 0, "a"),
        "often", "MatMul reads the output of first (Mul) at input 0 where the output of second (Mul) is right"),
    "the branches swapped": (
        lambda m: _swap_branches(m),
        "often", "in the then branch of If choice: the file has MatMul where Neg is right"),
    "what a loop captures": (
        lambda m: change(m.graph.initializer, "step.bias", one_bit),
        "step", "in the body of Loop loop: step.bias differs in 1 of 4 entries"),
    "trips of a loop": (
        lambda m: change(m.graph.initializer, "trips", lambda v: v + 1), "", "trips differs in 1 of 1 entries"),
    "the scale in a scan": (
        lambda m: change(body_of(m, "scan").initializer, "scan.scale", one_bit),
        "scan", "in the body of Scan scan: scan.scale differs"),
    "outputs of a scan's body swapped": (
        lambda m: _swap(body_of(m, "scan").output), "", "in the body of Scan scan: output"),
    "the bound of a Clip in a function in a function": (
        lambda m: constant(m.functions[0], 1, 0.5), "", "in the function clipped: Constant has value = 0.5"),
    "an attribute of a call": (
        lambda m: _attribute(m, "twice", "slope", 0.2), "", "slope = 0.2"),
    "an attribute of a function that is not the call's": (
        lambda m: _fixed_slope(m), "", "LeakyRelu has alpha = 0.00999"),
    "the opset of a function": (
        lambda m: _opset(m.functions[0], 13), "opset", "the function clipped is of opset 13 where 18 is right"),
    "the masks swapped, whose defaults are equal": (
        lambda m: _swap_masks(m),
        "", "reads the input second.mask at input 1 where the input first.mask is right"),
    "a default of a mask": (
        lambda m: change(m.graph.initializer, "second.mask", lambda v: v * 0),
        "second.mask", "the default of the input second.mask is not the one that is right"),
    "a default left out": (
        lambda m: _drop(m.graph.initializer, "second.mask"), "second.mask", "has no default, and should have one"),
    "a scale of the quantization": (
        lambda m: change(m.graph.initializer, "scale", one_bit), "", "scale differs in 1 of 1 entries"),
    "a zero point": (
        lambda m: change(m.graph.initializer, "zero", lambda v: v + 1), "", "zero differs in 1 of 1 entries"),
    "the threshold of the branch": (
        lambda m: change(m.graph.initializer, "limit", lambda v: v + 1), "", "limit differs in 1 of 1 entries"),
    "the direction of a scan": (
        lambda m: _attribute(m, "Scan", "scan_input_directions", [1]), "", "scan_input_directions"),
    "the opset of the model": (
        lambda m: _opset(m, 17), "opset", "the file is of opset 17 where 18 is right"),
}  # fmt: skip


def _swap(values: Any) -> None:
    first, second = (type(values[0])() for _ in range(2))
    first.CopyFrom(values[0])
    second.CopyFrom(values[1])
    values[0].CopyFrom(second)
    values[1].CopyFrom(first)


def _swap_masks(model: onnx.ModelProto) -> None:
    reads(model.graph, "a", 1, "second.mask")
    reads(model.graph, "b", 1, "first.mask")


def _swap_branches(model: onnx.ModelProto) -> None:
    found = next(n for n in model.graph.node if n.op_type == "If")
    found.attribute[0].name, found.attribute[1].name = found.attribute[1].name, found.attribute[0].name


def _attribute(model: onnx.ModelProto, op: str, name: str, value: Any) -> None:
    found = next(n for n in model.graph.node if n.op_type == op)
    kept = [a for a in found.attribute if a.name != name]
    del found.attribute[:]
    found.attribute.extend([*kept, helper.make_attribute(name, value)])


def _fixed_slope(model: onnx.ModelProto) -> None:
    del model.functions[1].node[1].attribute[:]


def _opset(holder: Any, version: int) -> None:
    next(o for o in holder.opset_import if not o.domain).version = version


def _drop(tensors: Any, name: str) -> None:
    tensors.remove(next(t for t in tensors if t.name == name))


@pytest.mark.parametrize(("edit", "layer", "reason"), FAULTS.values(), ids=FAULTS)
def test_a_fault_anywhere_is_found_and_named(edit: Edit, layer: str, reason: str) -> None:
    found = weights_edge(ir.from_proto(edited(edit)), ir.from_proto(NETWORK))
    assert found.status is Status.FAIL
    assert reason in found.reason, found.reason
    if layer:
        assert found.first_divergence == layer, found


def renamed(model: onnx.ModelProto) -> None:
    """All names inside are others, and the order is another one that the connections allow."""
    inner = model.functions[0]
    inner.name = "bounded"
    model.functions[1].node[0].op_type = "bounded"
    for holder in (model.graph, body_of(model, "choice", "then_branch"), body_of(model, "choice", "else_branch")):
        for n in holder.node:
            n.output[:] = [f"{o}_" if o in ("a", "b", "n", "u", "v") else o for o in n.output]
            n.input[:] = [f"{i}_" if i in ("a", "b", "n", "u", "v") else i for i in n.input]
    first, second, third, fourth = (list(model.graph.node)[i] for i in range(4))
    moved = [onnx.NodeProto() for _ in range(4)]
    for target, source in zip(moved, (third, fourth, first, second), strict=True):
        target.CopyFrom(source)
    for place, source in zip(model.graph.node[:4], moved, strict=True):
        place.CopyFrom(source)
    _attribute(model, "Scan", "scan_input_directions", [0])
    kept = [a for a in model.graph.node[8].attribute if a.name != "scan_input_directions"]
    del model.graph.node[8].attribute[:]
    model.graph.node[8].attribute.extend(kept)
    model.graph.node[4].attribute.extend([helper.make_attribute("noop_with_empty_axes", 0)])


def test_names_order_and_defaults_written_out_do_not_count() -> None:
    model = edited(renamed)
    onnx.checker.check_model(model)
    found = weights_edge(ir.from_proto(model), ir.from_proto(NETWORK))
    assert found.status is Status.PASS, found


def test_the_same_file_passes() -> None:
    for compare in (weights_edge, compare_files):
        found = compare(ir.from_proto(NETWORK), ir.from_proto(edited(lambda _: None)))
        assert found.status is Status.PASS, found


def test_other_operators_are_inconclusive_between_files_that_came_about_apart() -> None:
    def edit(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "z"
        model.graph.node.append(node("Identity", ["z"], ["y"]))

    found = compare_files(ir.from_proto(edited(edit)), ir.from_proto(NETWORK))
    assert found.status is Status.INCONCLUSIVE
    assert "a further Identity" in found.reason or "the file has Identity where" in found.reason
    assert weights_edge(ir.from_proto(edited(edit)), ir.from_proto(NETWORK)).status is Status.FAIL


def test_rounding_is_no_fault_between_files_that_came_about_apart() -> None:
    model = edited(lambda m: change(m.graph.initializer, "first.weight", one_bit))
    assert compare_files(ir.from_proto(model), ir.from_proto(NETWORK)).status is Status.PASS
    model = edited(lambda m: change(m.graph.initializer, "first.weight", lambda v: v * np.float32(1 + 1e-5)))
    found = compare_files(ir.from_proto(model), ir.from_proto(NETWORK))
    assert found.status is Status.FAIL
    assert found.first_divergence == "first"
