"""The operators that forms, masks and gates are made of, in a torch graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from spdexport.conv import stored_weight
from spdexport.names import layer_of_call
from spdexport.rewrite.torch_graph import LOOKUP, operands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array, ConvSite, ConvSpec
    from spdexport.forms import Stage
    from spdexport.rewrite.torch_edit import ProgramEdit

aten = torch.ops.aten
CONVOLUTION = {1: aten.conv1d, 2: aten.conv2d, 3: aten.conv3d}
TRANSPOSED = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}

Operation = tuple[Any, tuple[Any, ...]]
"""An operator of torch and its arguments."""

_Node = torch.fx.Node


class TorchNodes:
    """As ``builder.Nodes`` has it.

    Args:
        edit: The program.
        like: The node in front of which all is inserted, whose metadata new nodes get.
        prefix: What numbers are stored under.
        dtype: Of what is stored.
        anchor: The placeholder before which it is stored; any other node stands for the first one.
    """

    def __init__(self, edit: ProgramEdit, like: _Node, prefix: str, dtype: np.dtype[Any], anchor: _Node) -> None:
        self._edit, self._like, self._prefix, self._dtype, self._anchor = edit, like, prefix, dtype, anchor

    def insert(self, operation: Operation, part: str) -> _Node:  # noqa: D102
        with self._edit.graph.inserting_before(self._like):
            return self._edit.call(*operation, self._like, part)

    def store(self, part: str, values: Array, *, is_parameter: bool = True) -> _Node:  # noqa: D102
        kind = InputKind.PARAMETER if is_parameter else InputKind.BUFFER
        values = values.astype(self._dtype, copy=False)
        return self._edit.store(f"{self._prefix}.{part}", values, kind, self._anchor)

    def sizes(self, value: _Node) -> tuple[Any, ...]:  # noqa: D102
        return tuple(value.meta["val"].shape)

    def add(self, a: _Node, b: _Node | float) -> Operation:  # noqa: D102
        return aten.add.Tensor, (a, b)

    def sub(self, a: _Node, b: _Node | float) -> Operation:  # noqa: D102
        return aten.sub.Tensor, (a, b)

    def mul(self, a: _Node, b: _Node | float) -> Operation:  # noqa: D102
        return aten.mul.Tensor, (a, b)

    def above(self, x: _Node, threshold: float) -> Operation:  # noqa: D102
        dtype = x.meta["val"].dtype
        rounded = float(torch.tensor(threshold, dtype=dtype))
        return aten.to.dtype, (self.insert((aten.gt.Scalar, (x, rounded)), "gate"), dtype)

    def chosen(self, choice: _Node, a: _Node, b: _Node) -> Operation:  # noqa: D102
        return aten.where.self, (self.insert((aten.ne.Scalar, (choice, 0)), "chosen"), a, b)

    def clamp(self, x: _Node, low: float | None, high: float | None) -> Operation:  # noqa: D102
        return aten.clamp.default, (x, low, high)

    def relu(self, x: _Node) -> Operation:  # noqa: D102
        return aten.relu.default, (x,)

    def leaky_relu(self, x: _Node, slope: float) -> Operation:  # noqa: D102
        return aten.leaky_relu.default, (x, slope)

    def gelu(self, x: _Node) -> Operation:  # noqa: D102
        return aten.gelu.default, (x,)

    def sigmoid(self, x: _Node) -> Operation:  # noqa: D102
        return aten.sigmoid.default, (x,)

    def neg(self, x: _Node) -> Operation:  # noqa: D102
        return aten.neg.default, (x,)

    def cos(self, x: _Node) -> Operation:  # noqa: D102
        return aten.cos.default, (x,)

    def sin(self, x: _Node) -> Operation:  # noqa: D102
        return aten.sin.default, (x,)

    def rsqrt(self, x: _Node) -> Operation:  # noqa: D102
        return aten.rsqrt.default, (x,)

    def softmax(self, x: _Node) -> Operation:  # noqa: D102
        return aten.softmax.int, (x, -1)

    def mean(self, x: _Node) -> Operation:  # noqa: D102
        return aten.mean.dim, (x, [-1], True)

    def counted(self, x: _Node) -> Operation:  # noqa: D102
        return aten.cumsum.default, (self.insert((aten.ones_like.default, (x,)), "ones"), 1)

    def matmul(self, a: _Node, b: _Node) -> Operation:  # noqa: D102
        return aten.matmul.default, (a, b)

    def linear(self, x: _Node, weight: Array, bias: Array | None, *, parts: tuple[str, str]) -> Operation:  # noqa: D102
        added = None if bias is None else self.store(parts[1], bias)
        return aten.linear.default, (x, self.store(parts[0], weight), added)

    def grouped(  # noqa: D102
        self, x: _Node, weight: Array, bias: Array, *, groups: int, axes: int, parts: tuple[str, str]
    ) -> Operation:
        parameters = self.store(parts[0], weight), self.store(parts[1], bias)
        return CONVOLUTION[axes].default, (x, *parameters, [1] * axes, [0] * axes, [1] * axes, groups)

    def lookup(self, table: _Node, index: _Node) -> Operation:  # noqa: D102
        return LOOKUP, (table, index)

    def concat(self, values: Sequence[_Node]) -> Operation:  # noqa: D102
        return aten.cat.default, (list(values), -1)

    def slice(self, x: _Node, axis: int, begin: int, end: int) -> Operation:  # noqa: D102
        return aten.slice.Tensor, (x, axis, begin, end)

    def permute(self, x: _Node, order: Sequence[int]) -> Operation:  # noqa: D102
        return aten.permute.default, (x, list(order))

    def unsqueeze(self, x: _Node, axis: int) -> Operation:  # noqa: D102
        return aten.unsqueeze.default, (x, axis)

    def squeeze(self, x: _Node, axis: int) -> Operation:  # noqa: D102
        return aten.squeeze.dim, (x, axis)

    def heads(self, x: _Node, heads: int, size: int) -> Operation:  # noqa: D102
        return aten.unflatten.int, (x, -1, [heads, size])

    def joined(self, x: _Node, size: int) -> Operation:  # noqa: ARG002, D102 - torch knows the sizes
        return aten.flatten.using_ints, (x, 2, 3)


class TorchLayerNodes(TorchNodes):
    """As ``builder.LayerNodes`` has it.

    Args:
        edit: The program.
        site: The layer.
    """

    def __init__(self, edit: ProgramEdit, site: ConvSite) -> None:
        self._site, self._node = site, edit.node(site.node)
        self.name = self._node.name
        self.data, self._weight, self._bias = operands(self._node)
        super().__init__(edit, self._node, layer_of_call(site.name), site.weight.dtype, self._weight)

    @property
    def output_sizes(self) -> tuple[Any, ...]:
        """Of the layer's output."""
        return self.sizes(self._node)

    def stage(self, data: _Node, stage: Stage, *, first: bool) -> Operation:
        """Make a stage, with the site's own operator and arguments where it has its geometry."""
        if first and self._site.is_lookup:
            return LOOKUP, (self.store(stage.name, np.ascontiguousarray(np.asarray(stage.weight).T)), data)
        weight = self.store(stage.name, stored_weight(np.asarray(stage.weight), stage.spec))
        added: Any = None
        if stage.bias is not None:
            # The layer's own bias stays the node that it was, computed or shared as it may be.
            own = stage.bias is self._site.bias
            added = self._bias if own else self.store("bias", stage.bias)
        if stage.spec.axes == 0:
            return aten.linear.default, (data, weight, added)
        if stage.spec.moves == self._site.spec.moves and not self._node.kwargs:
            # The site's own operator and arguments, `padding="same"` for instance, are what folding gives back.
            return self._node.target, (data, weight, added, *self._node.args[3:])
        target, rest = convolution(stage.spec)
        return target, (data, weight, added, *rest)

    def channel_mask(self, mask: Array, axes: int) -> _Node:  # noqa: D102
        return self.store("mask", mask.reshape(-1, *(1,) * axes), is_parameter=False)

    def original(self) -> _Node:  # noqa: D102
        return self._edit.copy(self._node, {}, self._node, "original")

    def add_input(self, keyword: str, shape: tuple[Any, ...]) -> _Node:  # noqa: D102
        return self._edit.add_input(keyword, shape, self._node.meta["val"].dtype)

    def become(self, operation: Operation) -> None:  # noqa: D102
        self._node.target, self._node.args = operation
        self._node.kwargs = {}
        self._edit.drop_unused(self._weight)


def has_padding(spec: ConvSpec) -> bool:
    """Return whether a convolution of torch pads like this: alike before and after each axis, or as ``same`` does."""
    return _is_same(spec) or all(before == after for before, after in spec.padding)


def convolution(spec: ConvSpec) -> tuple[Any, tuple[Any, ...]]:
    """Return the operator of a convolution with this geometry, and its arguments behind input, weight and bias.

    Raises:
        ValueError: It does not have ``has_padding``.
    """
    stride, dilation = list(spec.stride), list(spec.dilation)
    padding = [before for before, _ in spec.padding]
    if all(before == after for before, after in spec.padding):
        if spec.transposed:
            return TRANSPOSED[spec.axes], (stride, padding, list(spec.output_padding), spec.groups, dilation)
        return CONVOLUTION[spec.axes].default, (stride, padding, dilation, spec.groups)
    if _is_same(spec):
        return CONVOLUTION[spec.axes].padding, (stride, "same", dilation, spec.groups)
    raise ValueError(f"torch has no convolution that pads like {spec}")


def _is_same(spec: ConvSpec) -> bool:
    total = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]
    is_same = spec.padding == tuple((t // 2, t - t // 2) for t in total)
    return is_same and not spec.transposed and all(s == 1 for s in spec.stride)
