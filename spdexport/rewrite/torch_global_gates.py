"""The causal-importance function of all layers as nodes of a torch graph, in front of the first layer that is masked.

The formulas are those of ``spdexport.gates.global_functions``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from spdexport.errors import UsageError
from spdexport.gates.global_functions import NORM_EPSILON, rotations
from spdexport.rewrite.torch_gates import squashed
from spdexport.rewrite.torch_graph import LOOKUP, operands

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spdexport.conv import Array
    from spdexport.gates import Attention, GateLayer, GlobalFunction, GlobalInput, GlobalShare
    from spdexport.rewrite.torch_edit import ProgramEdit

aten = torch.ops.aten

_NAME = "ci_fn"
"""What the parameters of the function are stored under, as SPD's own are."""


class GlobalGateNodes:
    """Makes the importances of all layers, once.

    Args:
        edit: The program that they are put into.
        share: Of any layer.
        dense: Gives the value of a node as the dense model has it.
        anchor: The node in front of which they are put; what they read is in front of it too.

    Raises:
        UsageError: The layers run on different sizes, or on more tokens than there are positions for.
    """

    def __init__(
        self,
        edit: ProgramEdit,
        share: GlobalShare,
        dense: Callable[[torch.fx.Node], torch.fx.Node],
        anchor: torch.fx.Node,
    ) -> None:
        self._edit, self._anchor, self._function = edit, anchor, share.function
        self._dtype = share.inputs[0].site.weight.dtype
        self._stored = 0
        with edit.graph.inserting_before(anchor):
            read = {one.layer: self._read(one, dense) for one in share.inputs}
            self._check(share.function, read)
            self._found = self._stages(share.function, read)

    def of(self, layer: str) -> torch.fx.Node:
        """The importances of a layer, (batch, C) or (batch, tokens, C)."""
        return self._found[layer]

    def _call(self, target: Any, *args: Any) -> torch.fx.Node:
        return self._edit.call(target, args, self._anchor, "gates")

    def _store(self, values: Array, kind: InputKind = InputKind.PARAMETER) -> torch.fx.Node:
        self._stored += 1
        content = np.ascontiguousarray(values).astype(self._dtype, copy=False)
        return self._edit.store(f"{_NAME}.part{self._stored}", content, kind, self._anchor)

    def _read(self, one: GlobalInput, dense: Callable[[torch.fx.Node], torch.fx.Node]) -> torch.fx.Node:
        data = dense(operands(self._edit.node(one.site.node)).data)
        if one.V is None:
            return data
        return self._call(LOOKUP, self._store(one.V), data)

    def _check(self, function: GlobalFunction, read: Mapping[str, torch.fx.Node]) -> None:
        shapes = {layer: tuple(node.meta["val"].shape[:-1]) for layer, node in read.items()}
        told = {str(shape): layer for layer, shape in shapes.items()}
        if len(told) > 1 or any(len(shape) not in (1, 2) for shape in shapes.values()):
            raise UsageError(
                "The causal-importance function of all layers reads them together, and they run on different sizes: "
                f"{', '.join(f'{layer} on {shape}' for shape, layer in told.items())}.",
                where="--gates",
                hint="Give inputs of the kind that SPD trained on: (batch, channels) or (batch, tokens, channels).",
            )
        tokens = next(iter(shapes.values()))[1:]
        if function.attends and tokens and isinstance(tokens[0], int) and tokens[0] > function.longest:
            raise UsageError(
                f"The inputs have {tokens[0]} tokens, and the causal-importance function was made for "
                f"{function.longest}.",
                where="--gates",
                hint="Give shorter inputs.",
            )

    def _stages(self, function: GlobalFunction, read: Mapping[str, torch.fx.Node]) -> dict[str, torch.fx.Node]:
        found: dict[str, torch.fx.Node] = {}
        stream: torch.fx.Node | None = None
        for stage in function.stages:
            inputs = [self._norm(read[x]) if stage.norms_inputs else read[x] for x in stage.layers]
            r = inputs[0] if len(inputs) == 1 else self._call(aten.cat.default, inputs, -1)
            r = r if stage.project is None else self._affine(stage.project, r)
            r = r if stream is None else self._call(aten.add.Tensor, stream, r)
            for block in stage.blocks:
                if block.attention is not None:
                    attended = self._attend(block.attention, self._norm(r, block.attention_scale))
                    r = self._call(aten.add.Tensor, r, attended)
                r = self._call(aten.add.Tensor, r, self._mlp(block.mlp, self._norm(r, block.mlp_scale)))
            stream = r
            values = self._mlp(stage.read, r if stage.read_scale is None else self._norm(r, stage.read_scale))
            values = squashed(self._call, values, function.sigmoid)
            for layer, (begin, end) in zip(stage.layers, stage.splits, strict=True):
                found[layer] = self._call(aten.slice.Tensor, values, -1, begin, end)
        return found

    def _affine(self, layer: GateLayer, x: torch.fx.Node) -> torch.fx.Node:
        return self._call(aten.linear.default, x, self._store(layer.weight.T), self._store(layer.bias))

    def _mlp(self, maps: Sequence[GateLayer], x: torch.fx.Node) -> torch.fx.Node:
        for number, layer in enumerate(maps):
            x = self._affine(layer, x if number == 0 else self._call(aten.gelu.default, x))
        return x

    def _norm(self, x: torch.fx.Node, scale: Array | None = None) -> torch.fx.Node:
        square = self._call(aten.mean.dim, self._call(aten.mul.Tensor, x, x), [-1], True)
        root = self._call(aten.rsqrt.default, self._call(aten.add.Tensor, square, NORM_EPSILON))
        normed = self._call(aten.mul.Tensor, x, root)
        return normed if scale is None else self._call(aten.mul.Tensor, normed, self._store(scale))

    def _attend(self, attention: Attention, x: torch.fx.Node) -> torch.fx.Node:
        alone = x.meta["val"].ndim == 2
        x = self._call(aten.unsqueeze.default, x, 1) if alone else x
        cosine, sine = self._rotations(attention, x)

        def heads(weight: Array) -> torch.fx.Node:
            projected = self._call(aten.linear.default, x, self._store(weight), None)
            parted = self._call(aten.unflatten.int, projected, -1, [attention.heads, attention.head])
            return self._call(aten.permute.default, parted, [0, 2, 1, 3])

        def turned(z: torch.fx.Node) -> torch.fx.Node:
            half = attention.head // 2
            first, second = (self._call(aten.slice.Tensor, z, -1, begin, begin + half) for begin in (0, half))
            crossed = self._call(aten.cat.default, [self._call(aten.neg.default, second), first], -1)
            kept = self._call(aten.mul.Tensor, z, cosine)
            return self._call(aten.add.Tensor, kept, self._call(aten.mul.Tensor, crossed, sine))

        q, k, v = turned(heads(attention.query)), turned(heads(attention.key)), heads(attention.value)
        scores = self._call(aten.matmul.default, q, self._call(aten.permute.default, k, [0, 1, 3, 2]))
        scaled = self._call(aten.mul.Tensor, scores, attention.head**-0.5)
        shares = self._call(aten.softmax.int, scaled, -1)
        joined = self._call(aten.permute.default, self._call(aten.matmul.default, shares, v), [0, 2, 1, 3])
        flat = self._call(aten.flatten.using_ints, joined, 2, 3)
        result = self._call(aten.linear.default, flat, self._store(attention.output), None)
        return self._call(aten.squeeze.dim, result, 1) if alone else result

    def _rotations(self, attention: Attention, x: torch.fx.Node) -> tuple[torch.fx.Node, torch.fx.Node]:
        """Cosine and sine of the positions' angles, (tokens, d_head), or (1, 1, tokens, d_head)."""
        tokens = x.meta["val"].shape[1]
        if isinstance(tokens, int):
            cosine, sine = rotations(attention.frequencies, tokens)
            return self._store(cosine, InputKind.BUFFER), self._store(sine, InputKind.BUFFER)
        # The number of tokens is known at run time alone: counting ones gives the positions.
        one = self._call(aten.slice.Tensor, self._call(aten.slice.Tensor, x, 0, 0, 1), -1, 0, 1)
        counted = self._call(aten.cumsum.default, self._call(aten.ones_like.default, one), 1)
        positions = self._call(aten.sub.Tensor, counted, 1)
        angles = self._call(aten.mul.Tensor, positions, self._store(attention.frequencies))
        twice = self._call(aten.unsqueeze.default, self._call(aten.cat.default, [angles, angles], -1), 1)
        return self._call(aten.cos.default, twice), self._call(aten.sin.default, twice)
