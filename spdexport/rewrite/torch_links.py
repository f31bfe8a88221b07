"""What stands between and beside the layers of a torch graph and is one convolution with them: paddings and pools.

Nodes that hand a value on as it is are read here, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch.fx import Node

from spdexport.rewrite.stages import ReadStage, Unreadable, padding_stage, pool_stage, zero_padding
from spdexport.rewrite.torch_graph import arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

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

POOLS = (aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)


def passed(node: Node) -> Node | None:
    """The value that a node hands on unchanged; None for a node that may change something."""
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


def read_pad(node: Node, channels: int, axes: int) -> ReadStage[Node, Node] | Unreadable:
    """A padding as a stage; ``Unreadable`` where it is not one of the spatial axes with zeros."""
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
    """Average pooling as a stage; ``Unreadable`` where its borders are not those of a convolution."""
    if node.op != "call_function" or node.target not in POOLS:
        return None
    args = arguments(node)
    data = args["self"]
    if POOLS.index(node.target) + 1 != axes or data.meta["val"].ndim != axes + 2:
        return Unreadable(reason="the average pooling has other axes")
    kernel, padding = (_each(args[name], axes) for name in ("kernel_size", "padding"))
    stride = _each(args["stride"], axes) if args["stride"] else kernel
    if args["ceil_mode"]:
        return Unreadable(reason="the average pooling rounds the size of its output up")
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
