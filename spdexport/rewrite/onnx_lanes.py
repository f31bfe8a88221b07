"""Padding the components between V and U to whole lanes, in an ONNX graph.

ONNX Runtime's CPU kernels compute blocks of channels. A convolution to 6 channels and one from them take longer than
with 16 each, of which 10 are zero: kernels for whole blocks are the fast ones. Zero rows of V and zero columns of U are
components that are nothing, so that the function stays what it is, number for number. What truncating left of a weight
comes with whole lanes already (``planning/chains.py``); this is for exact forms, of which there is no more to give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.rewrite.onnx_graph import is_operator, read_layer
from spdexport.rewrite.stages import ReadStage

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.conv import Array, ConvSpec
    from spdexport.rewrite.match import Chain


def pad_lanes(
    model: ir.Model, lane: int, beyond: Callable[[Chain], bool] | None = None
) -> tuple[ir.Model, dict[str, int]]:
    """Return a model in which pairs of a convolution and a pointwise one behind it alone have whole lanes between.

    Pairs are recognized by structure: two-dimensional, of one group, with weights that only they use, and with nothing
    else reading what is between. Others are left as they are.

    Args:
        model: The model; it is not changed, and shares with the result what is not padded.
        lane: Channels that the target computes together; 1 pads nothing.
        beyond: Which rows of convolutions stand for one beside V and U, as ``match.in_chains`` tells: their pairs are
            padded as well, and what is in front of such a row is not, for a check composes the row first.

    Returns:
        The model, and how many channels there are now in each value that has more, by its name.
    """
    if lane == 1 or not _pairs(model, lane, beyond):
        return model, {}
    copy, padded = model.clone(), {}
    for v, u in _pairs(copy, lane, beyond):
        channels = _held(v.inputs[1]).shape[0]
        extra = -channels % lane
        _pad(v.inputs[1], axis=0, extra=extra)
        if len(v.inputs) > 2 and v.inputs[2] is not None:
            _pad(v.inputs[2], axis=0, extra=extra)
        _pad(u.inputs[1], axis=1, extra=extra)
        between = v.outputs[0]
        if between.shape is not None:
            between.shape = ir.Shape([channels + extra if i == 1 else d for i, d in enumerate(between.shape)])
        padded[between.name or ""] = channels + extra
    return copy, padded


def _pairs(model: ir.Model, lane: int, beyond: Callable[[Chain], bool] | None) -> list[tuple[ir.Node, ir.Node]]:
    """The pairs whose channels are no whole lanes, those of bodies too."""
    found = []
    for u in model.graph.all_nodes():
        between = u.inputs[0] if _is_plain(u) else None
        v = None if between is None else between.producer()
        if v is None or between is None or not _is_plain(v) or v.graph is not u.graph:
            continue
        alone = len(list(between.uses())) == 1 and not between.is_graph_output()
        if alone and _held(v.inputs[1]).shape[0] % lane and _is_pair(v, u, beyond):
            found.append((v, u))
    return found


def _is_pair(v: ir.Node, u: ir.Node, beyond: Callable[[Chain], bool] | None) -> bool:
    """Whether the two are layers of one form."""
    if beyond is None:
        return _is_pointwise(u)
    behind = [use.node for use in u.outputs[0].uses()]
    is_row = beyond((_spec(v), _spec(u)))
    begins = len(behind) == 1 and _is_plain(behind[0]) and beyond((_spec(u), _spec(behind[0])))
    return is_row or (_is_pointwise(u) and not begins)


def _spec(node: ir.Node) -> ConvSpec:
    read = read_layer(node)
    assert isinstance(read, ReadStage), "a plain convolution can be read"
    return read.stage.spec


def _is_plain(node: ir.Node) -> bool:
    """A Conv of two axes and one group whose weight and bias are its own."""
    if not is_operator(node, "Conv") or node.attributes.get_int("group", 1) != 1:
        return False
    operands = [value for value in node.inputs[1:] if value is not None]
    own = all(
        value.is_initializer()
        and not value.is_graph_input()
        and not value.is_graph_output()
        and value.const_value is not None
        and len(list(value.uses())) == 1
        for value in operands
    )
    return own and len(operands) > 0 and _held(operands[0]).ndim == 4


def _is_pointwise(node: ir.Node) -> bool:
    attributes = node.attributes
    kernel = _held(node.inputs[1]).shape[2:]
    moves = (*attributes.get_ints("strides", (1,)), *attributes.get_ints("dilations", (1,)))
    plain = attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(
        attributes.get_ints("pads", ())
    )
    return plain and all(size == 1 for size in (*kernel, *moves))


def _held(value: ir.Value | None) -> Array:
    assert value is not None, "a convolution has a weight"
    assert value.const_value is not None, "and it is stored"
    return value.const_value.numpy()


def _pad(value: ir.Value | None, *, axis: int, extra: int) -> None:
    """Zeros behind an initializer's last entry on an axis."""
    assert value is not None, "what is padded is there"
    array = _held(value)
    padded = np.pad(array, [(0, extra if i == axis else 0) for i in range(array.ndim)])
    value.const_value = ir.tensor(padded, name=value.name)
    value.shape = ir.Shape(padded.shape)
