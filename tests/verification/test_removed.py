"""Every removal is proved from the weights, and one that is wrong is not."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from dead_networks import networks
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx_models import model

from spdexport.reference.onnx_reference import OnnxReference
from spdexport.rewrite import onnx_dead_layers, onnx_dead_rules
from spdexport.rewrite.onnx_dead import remove_dead
from spdexport.verification.removed import alive
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable


@settings(max_examples=40)
@given(networks())
def test_every_removal_is_proved(proto: onnx.ModelProto) -> None:
    whole = ir.from_proto(proto)
    fault = alive(whole, remove_dead(whole))
    assert fault is None, fault


@settings(max_examples=40)
@given(networks(), st.data())
def test_what_is_proved_computes_the_same(proto: onnx.ModelProto, data: st.DataObject) -> None:
    removal = remove_dead(ir.from_proto(proto))
    # A weight that was zero is woken: the removal is then wrong, unless nothing reads what it makes.
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    zeros = [t for t in other.graph.initializer if t.data_type == onnx.TensorProto.FLOAT
             and not numpy_helper.to_array(t).all()]  # fmt: skip
    if not zeros:
        return
    tensor = data.draw(st.sampled_from(zeros))
    array = numpy_helper.to_array(tensor).copy()
    dead = np.argwhere(array == 0)
    array[tuple(dead[data.draw(st.integers(0, len(dead) - 1))])] = 3.0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    if alive(ir.from_proto(other), removal) is not None:
        return
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    right = OnnxReference(other).run({"x": x})
    found = OnnxReference(ir.to_proto(removal.model)).run({"x": x})
    for name, value in right.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-6 * max(np.abs(value).max(), 1))


def chain(v: np.ndarray, u: np.ndarray) -> ir.Model:
    helper = onnx.helper
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "second.weight"], ["y"]),
    ]
    weights = {"first.weight": v.astype(np.float32), "second.weight": u.astype(np.float32)}
    shapes = {"x": ["N", 2, 4, 4]}, {"y": ["N", 2, 4, 4]}
    return ir.from_proto(model(nodes, inputs=shapes[0], outputs=shapes[1], weights=weights))


def test_a_removed_channel_that_is_alive_is_named() -> None:
    first, second = np.ones((3, 2, 1, 1)), np.ones((2, 3, 1, 1))
    second[:, 1] = 0
    removal = remove_dead(chain(first, second))
    assert [(r.name, r.inputs, r.outputs) for r in removal.removed] == [("first", (), (1,)), ("second", (1,), ())]
    second[1, 1] = 1e-30
    fault = alive(chain(first, second), removal)
    assert fault is not None
    assert fault.first_divergence == "second"
    assert fault.reason == "the channel 1 that was removed from r is alive: Conv reads it, and it is no constant"


def test_weights_of_other_channels_are_named() -> None:
    first, second = np.arange(6.0).reshape(3, 2, 1, 1) + 1, np.ones((2, 3, 1, 1))
    second[:, 1] = 0
    removal = remove_dead(chain(first, second))
    fault = alive(chain(first[[1, 0, 2]], second), removal)
    assert fault is not None
    assert fault.first_divergence == "first"
    assert fault.reason == "what is left of Conv does not compute what it did, on the channels that are left"


def small(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], channels: int = 2) -> ir.Model:
    """A network on (N, 2, 6, 6) images."""
    made = {name: np.asarray(value, np.float32) for name, value in weights.items()}
    ends = {"y": ["N", channels, None, None]}
    return ir.from_proto(model(nodes, inputs={"x": ["N", 2, 6, 6]}, outputs=ends, weights=made))


def with_constant(*, bias: bool = True) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """A convolution whose channel 1 of 4 is the constant 2, or zero, into ``h``."""
    weight = np.arange(1.0, 9.0).reshape(4, 2, 1, 1)
    weight[1] = 0
    weights = {"first.weight": weight, "first.bias": np.array([1.0, 2.0 if bias else 0.0, 3.0, 4.0])}
    return [onnx.helper.make_node("Conv", ["x", "first.weight", "first.bias"], ["h"])], weights


def even(
    *, groups: int = 1, op: str = "Conv", **attributes: object
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """A layer from ``p`` to ``y`` that reads all channels."""
    shape = (2, 4 // groups, 1, 1) if op == "Conv" else (4, 2, 2, 2)
    node = onnx.helper.make_node(op, ["p", "last.weight", "last.bias"], ["y"], group=groups, **attributes)
    return [node], {"last.weight": np.arange(1.0, 1 + np.prod(shape)).reshape(shape), "last.bias": np.ones(2)}


def padded_average(monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    """The zeros of the padding are in the mean, and the rule does not look."""
    monkeypatch.setattr(onnx_dead_rules, "is_padded", lambda _: False)
    (first, held), (last, more) = with_constant(), even()
    pool = onnx.helper.make_node("AveragePool", ["h"], ["p"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    return small([*first, pool, *last], held | more)


def padded_convolution(monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    monkeypatch.setattr(onnx_dead_layers, "is_padded", lambda _: False)
    (first, held), (last, more) = with_constant(), even(pads=[1] * 4)
    return small([*first, onnx.helper.make_node("Relu", ["h"], ["p"]), *last], held | more)


def strided_transposed(monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    """A kernel of 2 by 2: how many of its taps meet a place depends on the place."""
    monkeypatch.setattr(onnx_dead_layers, "_is_uneven", lambda *_: False)
    (first, held), (last, more) = with_constant(), even(op="ConvTranspose", strides=[1, 1])
    return small([*first, onnx.helper.make_node("Relu", ["h"], ["p"]), *last], held | more)


def concatenated_in_another_order(monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    right = onnx_dead_rules._RULES["Concat"]

    def wrong(node: ir.Node, tracks: onnx_dead_rules.Tracks) -> onnx_dead_layers.Found:
        found = right(node, tracks)
        assert found is not None
        rule, track = found
        assert isinstance(rule, onnx_dead_layers.Channelwise)
        operands = tuple((value, np.roll(index, 1)) for value, index in rule.operands)
        return dataclasses.replace(rule, operands=operands), dataclasses.replace(
            track, constant=np.roll(track.constant, 1), number=np.roll(track.number, 1)
        )

    monkeypatch.setitem(onnx_dead_rules._RULES, "Concat", wrong)
    (first, held), last = with_constant(), np.arange(1.0, 17.0).reshape(2, 8, 1, 1)
    both = [onnx.helper.make_node("Relu", ["h"], ["r"]), onnx.helper.make_node("Concat", ["h", "r"], ["p"], axis=1)]
    end = onnx.helper.make_node("Conv", ["p", "last.weight"], ["y"])
    return small([*first, *both, end], held | {"last.weight": last})


def groups_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    """Of two groups, the second reads the channels 2 and 3, and the rule takes them for 0 and 1."""
    right = onnx_dead_rules.layer_rule

    def wrong(node: ir.Node, track: onnx_dead_layers.Track | None, rank: int | None) -> onnx_dead_layers.Found:
        found = right(node, track, rank)
        if found is None or not isinstance(found[0], onnx_dead_layers.Layer) or found[0].groups == 1:
            return found
        half = onnx_dead_layers.Layer(
            node=node, data=found[0].data, out=found[0].out, groups=1,
            uses=np.tile(found[0].uses, (1, 2)) & np.array([True, True, False, False]), uneven=False,
        )  # fmt: skip
        return half, found[1]

    monkeypatch.setattr(onnx_dead_rules, "layer_rule", wrong)
    (first, held), (last, more) = with_constant(), even(groups=2)
    return small([*first, onnx.helper.make_node("Relu", ["h"], ["p"]), *last], held | more)


def softmax_over_channels(monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    """Each channel is taken for one that is computed by itself."""
    monkeypatch.setitem(
        onnx_dead_rules._RULES, "Softmax", lambda node, tracks: onnx_dead_rules._same(node, tracks.track(node))
    )
    (first, held), (last, more) = with_constant(bias=False), even()
    more["last.weight"][:, 1] = 0
    return small([*first, onnx.helper.make_node("Softmax", ["h"], ["p"], axis=1), *last], held | more)


def saturated(monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    """A channel that is zero on every input that is likely, and not on all."""
    right = onnx_dead_rules._RULES["Relu"]

    def wrong(node: ir.Node, tracks: onnx_dead_rules.Tracks) -> onnx_dead_layers.Found:
        found = right(node, tracks)
        assert found is not None
        constant = found[1].constant.copy()
        constant[2:3] = constant.size == 4  # in the whole network
        return found[0], dataclasses.replace(found[1], constant=constant)

    monkeypatch.setitem(onnx_dead_rules._RULES, "Relu", wrong)
    (first, held), (last, more) = with_constant(), even()
    held["first.bias"][2] = -1e6
    return small([*first, onnx.helper.make_node("Relu", ["h"], ["p"]), *last], held | more)


def almost_zero(monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    """Weights that are small are taken for zero."""
    right = onnx_dead_layers.matrix

    def wrong(node: ir.Node) -> np.ndarray:
        found = right(node)
        return np.where(np.abs(found) < 1e-20, 0, found)

    monkeypatch.setattr(onnx_dead_layers, "matrix", wrong)
    (first, held), (last, more) = with_constant(), even()
    more["last.weight"][:, 2] = 1e-42
    return small([*first, onnx.helper.make_node("Relu", ["h"], ["p"]), *last], held | more)


def another_constant(monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    """What the sigmoid makes of a constant is taken for the constant."""
    monkeypatch.setitem(
        onnx_dead_rules._RULES, "Sigmoid", lambda node, tracks: onnx_dead_rules._same(node, tracks.track(node))
    )
    (first, held), (last, more) = with_constant(), even()
    return small([*first, onnx.helper.make_node("Sigmoid", ["h"], ["p"]), *last], held | more)


def reduced_over_channels(monkeypatch: pytest.MonkeyPatch) -> ir.Model:
    """A normalization over all channels is taken for one of each."""
    wrong = lambda node, tracks: onnx_dead_rules._same(node, tracks.track(node))  # noqa: E731
    monkeypatch.setitem(onnx_dead_rules._RULES, "LpNormalization", wrong)
    (first, held), (last, more) = with_constant(), even()
    more["last.weight"][:, 1] = 0
    return small([*first, onnx.helper.make_node("LpNormalization", ["h"], ["p"], axis=1), *last], held | more)


PLANTED = [
    padded_average, padded_convolution, strided_transposed, concatenated_in_another_order, groups_taken_for_one,
    softmax_over_channels, saturated, almost_zero, another_constant, reduced_over_channels,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED, ids=[plant.__name__ for plant in PLANTED])
def test_a_wrong_rule_of_the_removal_is_caught(
    plant: Callable[[pytest.MonkeyPatch], ir.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plant(monkeypatch)
    removal = remove_dead(whole)
    assert removal.removed, "the wrong rule removes something"
    fault = alive(whole, removal)
    assert fault is not None
    assert fault.status is Status.FAIL
    if plant is padded_average:
        assert fault.reason == "the channel 1 that was removed from p is not one number everywhere, and Conv reads it"
    monkeypatch.undo()
    assert alive(whole, remove_dead(whole)) is None


def test_the_proof_shares_no_rule_with_the_removal() -> None:
    from spdexport.verification import channel_proof, removed

    for module in (channel_proof, removed):
        names = [line for line in inspect.getsource(module).splitlines() if "import" in line and "onnx_dead" in line]
        # What is claimed, as types.
        assert all(line.startswith("    ") for line in names), names


def test_what_cannot_be_evaluated_is_inconclusive() -> None:
    (first, held), (last, more) = with_constant(), even()
    odd = onnx.helper.make_node("Odd", ["p"], ["q"], domain="odd")
    more["last.weight"][:, 1] = 0
    last[0].input[0] = "p"
    whole = small([*first, onnx.helper.make_node("Relu", ["h"], ["p"]), *last], held | more)
    removal = remove_dead(whole)
    proto = ir.to_proto(whole)
    proto.graph.node.append(odd)
    proto.graph.output.append(onnx.helper.make_tensor_value_info("q", onnx.TensorProto.FLOAT, None))
    proto.opset_import.append(onnx.helper.make_opsetid("odd", 1))
    found = alive(ir.from_proto(proto), removal)
    assert found is not None
    assert found.status is Status.INCONCLUSIVE
    assert "odd.Odd" in found.reason
