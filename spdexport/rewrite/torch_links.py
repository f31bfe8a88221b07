"""What stands between and beside the layers of a torch graph and is one convolution with them: paddings and pools.

Nodes that hand a value on as it is are read here, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.fx import Node

from spdexport.rewrite.stages import (
    ODD_BORDER,
    RESHAPED,
    RETYPED,
    Filling,
    OddBorder,
    ReadStage,
    Unreadable,
    padding_stage,
    per_channel,
    pool_stage,
    zero_padding,
)
from spdexport.rewrite.torch_graph import arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from spdexport.conv import Array

aten = torch.ops.aten

DROPOUTS = (aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default)
"""Operators that do nothing where their argument ``train`` is false."""

HANDING_ON = (
    aten.alias.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.dtype_layout,
    aten.type_as.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.expand.default,
)
"""Operators that hand on what they are given where that already has the shape and dtype of their result."""

PADDINGS = (aten.pad.default, aten.constant_pad_nd.default)

_END = 2**63 - 1
"""What torch writes for the end of an axis."""

POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
LARGEST = (aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)


def passed(node: Node) -> Node | None:
    """Return the value that a node hands on unchanged; None for a node that may change something."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
        return None
    data = node.args[0]
    if node.target in DROPOUTS:
        return None if arguments(node)["train"] else data
    if node.target is aten.native_dropout.default or node.target not in HANDING_ON:
        return None
    before, after = data.meta.get("val"), node.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return None
    # As texts, for a comparison of symbols would leave a guard.
    same = before.dtype == after.dtype and [str(size) for size in before.shape] == [str(size) for size in after.shape]
    return data if same else None


def read_changed(node: Node) -> Unreadable | None:
    """Return why a node that may hand its input on unchanged does not; None where that is not known."""
    before, after = (value.meta.get("val") if isinstance(value, Node) else None for value in (node.args[0], node))
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return None
    return Unreadable(reason=RESHAPED if before.dtype == after.dtype else RETYPED)


def read_pad(node: Node, channels: int, axes: int) -> ReadStage[Node, Node] | Unreadable:
    """Return a padding as a stage; ``Unreadable`` where it is not one of the spatial axes with zeros."""
    args = arguments(node)
    data = cast("Node", args["self"])
    mode, value = args.get("mode", "constant"), args.get("value")
    if mode != "constant":
        return Unreadable(reason=f"the padding between is of mode {mode}, and a convolution pads with zeros")
    if value is not None and value != 0:
        return Unreadable(reason="the padding between is not of zeros")
    pads = args["pad"]
    if not all(isinstance(count, int) for count in pads):
        return Unreadable(reason="the padding between is computed")
    rank = data.meta["val"].ndim
    # Pairs from the last axis to the first; axes that are not named are not padded.
    pairs = [(pads[i], pads[i + 1]) for i in range(0, len(pads), 2)][::-1]
    pairs = [(0, 0)] * (rank - len(pairs)) + pairs
    padding = zero_padding([before for before, _ in pairs], [after for _, after in pairs], axes)
    if isinstance(padding, Unreadable):
        return padding
    return ReadStage(node=node, data=data, stage=padding_stage(channels, padding))


def read_pool(node: Node, channels: int, axes: int) -> ReadStage[Node, Node] | Unreadable | None:
    """Average pooling as a stage; ``Unreadable`` where its borders are not those of a convolution.

    The largest of one number is that number: such a max pooling takes every other location, as a shortcut may.
    """
    if node.op != "call_function" or node.target not in (*POOLS, *LARGEST):
        return None
    args = arguments(node)
    data = args["self"]
    kernel, padding = (_each(args[name], axes) for name in ("kernel_size", "padding"))
    if node.target in LARGEST and (set(kernel) != {1} or any(padding)):
        return None
    table = LARGEST if node.target in LARGEST else POOLS
    if table.index(node.target) + 1 != axes or data.meta["val"].ndim != axes + 2:
        return Unreadable(reason="the pooling has other axes")
    stride = _each(args["stride"], axes) if args["stride"] else kernel
    if args["ceil_mode"]:
        return Unreadable(reason="the pooling rounds the size of its output up")
    if any(padding) and not args["count_include_pad"]:
        return Unreadable(reason="the average pooling divides by fewer numbers at the border")
    stage = pool_stage(
        channels, kernel, stride, [(count, count) for count in padding], divisor=args.get("divisor_override")
    )
    return ReadStage(node=node, data=data, stage=stage)


def _each(given: Any, axes: int) -> Sequence[int]:
    """One number for each axis, of which torch takes a single one for all."""
    numbers = [given] if isinstance(given, int) else list(given)
    return numbers * axes if len(numbers) == 1 else numbers


def read_filling(node: Node, array: Callable[[Any], Array | None]) -> Filling[Node, Node] | OddBorder[Node] | None:
    """Return a padding with zeros whose border is then written over, with one number for each channel.

    DBB's bias padding.

    Args:
        node: Any node.
        array: What is constant.

    Returns:
        None where nothing is written into the padding; ``OddBorder`` where something else is.
    """
    if node.op != "call_function" or node.target not in PADDINGS:
        return None
    written = dict(_copies(node))
    shape = node.meta["val"].shape
    if not written or len(shape) < 3 or not isinstance(shape[1], int):
        return None
    channels, axes = shape[1], len(shape) - 2
    pad = read_pad(node, channels, axes)
    if isinstance(pad, Unreadable):
        return OddBorder(reason=pad.reason, data=cast("Node", node.args[0]))
    odd = OddBorder(reason=ODD_BORDER, data=pad.data)
    sides: set[tuple[int, bool]] = set()
    values: Array | None = None
    for copy, chain in written.items():
        source = copy.args[1]
        while isinstance(source, Node) and source.target is aten.expand.default:
            source = source.args[0]
        numbers = array(source)
        each = None if numbers is None else per_channel(numbers, channels, axes=axes, rank=axes + 2)
        side = _side(chain, pad.stage.spec.padding, axes)
        if each is None or side is None or (values is not None and not np.array_equal(values, each)):
            return odd
        sides.add(side)
        values = each
    needed = {
        (axis, after)
        for axis, pair in enumerate(pad.stage.spec.padding)
        for after, count in zip((False, True), pair, strict=True)
        if count
    }
    order = {other: index for index, other in enumerate(node.graph.nodes)}
    inside = {*written, *(part for chain in written.values() for part in chain)}
    early = any(order[user] < max(order[copy] for copy in written) for user in node.users if user not in inside)
    if values is None or sides != needed or early:
        return odd
    return Filling(node=node, last=node, data=pad.data, stage=pad.stage, values=values, writers=frozenset(inside))


def _copies(node: Node) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    """What copies something into a part of a value, and the slices that the part is."""
    pending: list[tuple[Node, tuple[Node, ...]]] = [(node, ())]
    while pending:
        value, chain = pending.pop()
        for user in value.users:
            if user.target is aten.slice.Tensor and user.args[0] is value:
                pending.append((user, (*chain, user)))
            elif user.target is aten.copy_.default and user.args[0] is value:
                yield user, chain


def _side(chain: Sequence[Node], padding: Sequence[tuple[int, int]], axes: int) -> tuple[int, bool] | None:
    """The side of the border that slices take whole: its axis, and whether it is the end; None for another part."""
    found: list[tuple[int, bool]] = []
    for part in chain:
        args = arguments(part)
        dim, start, end = args["dim"], args["start"] or 0, args["end"]
        rank = part.meta["val"].ndim
        to_end = end is None or (isinstance(end, int) and end >= _END)
        if not isinstance(start, int) or args["step"] != 1:
            return None
        if start == 0 and to_end:
            continue
        axis = dim % rank - (rank - axes)
        if axis < 0:
            return None
        before, after = padding[axis]
        if start == 0 and end == before:
            found.append((axis, False))
        elif to_end and start == -after:
            found.append((axis, True))
        else:
            return None
    return found[0] if len(found) == 1 else None
