"""A padding whose border is written over, as exporters have it in ONNX: DBB's bias padding, in ScatterND.

ONNX changes nothing in place. ``y[:, :, 0:1, :] = b`` is a transposition that brings the axis to the front, ScatterND
of the slice, and the transposition back; its indices are constants, or computed from shapes. What those nodes do is
found by running them on numbers that are all different, of several sizes where the file leaves sizes open: they move
numbers, and what they write does not depend on any.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from spdexport.rewrite.onnx_constants import constant
from spdexport.rewrite.onnx_graph import is_operator
from spdexport.rewrite.onnx_links import read_pad
from spdexport.rewrite.onnx_moves import Moves, NotMovedError
from spdexport.rewrite.stages import ODD_BORDER, Filling, OddBorder, ReadStage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir as ir

    from spdexport.conv import Array, FloatArray
    from spdexport.rewrite.onnx_graph import OnnxStage

_OPEN = (1, 2, 5, 17)
"""Sizes that are tried for an axis whose size is open, the second open one a little larger, and so on.

What computes an index takes slices of ranges of a size. Where that is the whole border of so little and of so much, it
is of every size.
"""


def read_filling(node: ir.Node) -> Filling[ir.Node, ir.Value] | OddBorder[ir.Value] | None:
    """Return the padding with zeros of which a node is the last that writes into the border.

    Args:
        node: Any node.

    Returns:
        None where nothing is scattered into a padding, or the axes are not in their order yet; ``OddBorder`` where
        what is written is something else than one number for each channel, all around.
    """
    steps = _steps(node)
    if steps is None:
        return None
    pad, *moves = steps
    data = pad.inputs[0]
    shape = None if data is None else data.shape
    if data is None or shape is None or len(shape) < 3 or not isinstance(shape[1], int):
        return None
    stage = read_pad(pad, shape[1], len(shape) - 2)
    if not isinstance(stage, ReadStage):
        return None if stage is None else OddBorder(reason=stage.reason, data=data)
    helpers = _helpers(steps)
    inner = [step.outputs[0] for step in steps[:-1]]
    known = {*steps, *helpers}
    if any(value.is_graph_output() or any(use.node not in known for use in value.uses()) for value in inner):
        return OddBorder(reason="what is between is used elsewhere", data=data)
    try:
        found = [_border(stage, moves, sizes) for sizes in _sizes(shape)]
    except NotMovedError:
        return OddBorder(reason=ODD_BORDER, data=data)
    values = found[0] if found else None
    if values is None or not all(other is not None and np.array_equal(values, other) for other in found):
        return OddBorder(reason=ODD_BORDER, data=data)
    dtype = pad.outputs[0].dtype
    return Filling(
        node=pad,
        last=node,
        data=stage.data,
        stage=stage.stage,
        values=values if dtype is None else values.astype(dtype.numpy()),
        writers=frozenset((*moves, *helpers)),
    )


def _steps(node: ir.Node) -> list[ir.Node] | None:
    """The padding and the nodes that move and write its numbers, up to this one; None where it is no such thing."""
    if not is_operator(node, "Transpose", "ScatterND"):
        return None
    steps, scatters = [node], 0
    while is_operator(steps[0], "Transpose", "ScatterND", "Identity"):
        scatters += steps[0].op_type == "ScatterND"
        before = steps[0].inputs[0].producer() if steps[0].inputs and steps[0].inputs[0] is not None else None
        if before is None:
            return None
        steps.insert(0, before)
    return steps if scatters and is_operator(steps[0], "Pad") else None


def _helpers(steps: Sequence[ir.Node]) -> set[ir.Node]:
    """What computes where to write and what to write from the shapes of the steps, and is used for nothing else."""
    inside = {step.outputs[0] for step in steps}
    found: set[ir.Node] = set()
    pending = [value for step in steps for value in step.inputs[1:]]
    while pending:
        value = pending.pop()
        producer = None if value is None or value in inside or constant(value) is not None else value.producer()
        if producer is not None and producer not in found:
            found.add(producer)
            pending += producer.inputs
    kept = {*found, *steps}
    while outside := {n for n in kept - {*steps} if not all(_only_in(v, kept) for v in n.outputs)}:
        kept -= outside
    return kept - {*steps}


def _only_in(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return not value.is_graph_output() and all(use.node in nodes for use in value.uses())


def _sizes(shape: ir.Shape) -> Iterator[dict[str | None, int]]:
    """The numbers that are tried for sizes that are open, by their names; one trial without any where none is."""
    names = dict.fromkeys(size.value for size in shape if not isinstance(size, int))
    for number in _OPEN if names else _OPEN[:1]:
        yield {name: number + index for index, name in enumerate(names)}


def _border(pad: OnnxStage, moves: Sequence[ir.Node], sizes: dict[str | None, int]) -> FloatArray | None:
    """What the border holds in each channel behind the moves; None where it, or what it is around of, is not alike."""
    shape = pad.data.shape
    assert shape is not None, "the caller has looked"
    if None in sizes:
        return None
    given = [size if isinstance(size, int) else sizes[size.value] for size in shape]
    around = [(0, 0), (0, 0), *pad.stage.spec.padding]
    numbers = np.arange(1.0, math.prod(given) + 1).reshape(given)
    inside = np.pad(np.ones(given, dtype=bool), around)
    running = Moves(sizes=sizes)
    result = running.through(np.pad(numbers, around), pad.node.outputs[0], moves)
    if result.shape != inside.shape or not np.array_equal(result[inside], numbers.reshape(-1)):
        return None
    border = np.moveaxis(result, 1, 0)[:, ~inside[:, 0]]
    values: Array = border[:, 0] if border.size else np.zeros(len(border))
    return np.asarray(values) if bool((border == values[:, None]).all()) and border.size else None
