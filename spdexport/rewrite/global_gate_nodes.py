"""The causal-importance function of all layers as nodes of a graph, in front of the first layer that is masked.

The formulas are those of ``spdexport.gates.global_functions``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from spdexport.errors import UsageError
from spdexport.gates.global_functions import NORM_EPSILON, rotations
from spdexport.rewrite.builder import OperationT, ValueT
from spdexport.rewrite.gate_nodes import squashed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spdexport.conv import Array
    from spdexport.gates import Attention, GateLayer, GlobalFunction, GlobalInput, GlobalShare
    from spdexport.rewrite.builder import Nodes

GLOBAL = "ci_fn"
"""What the parameters of the function are stored under, as SPD's own are."""

_PART = "gates"


class GlobalGateNodes(Generic[ValueT, OperationT]):
    """Makes the importances of all layers, once.

    Args:
        nodes: Operators in front of the first layer that is masked; what is read is in front of it too.
        share: Of any layer.
        data: What each layer reads in the model with masks.
        dense: Gives a value as the dense model has it.

    Raises:
        UsageError: The layers run on different sizes, or on more tokens than there are positions for.
    """

    def __init__(
        self,
        nodes: Nodes[ValueT, OperationT],
        share: GlobalShare,
        data: Mapping[str, ValueT],
        dense: Callable[[ValueT], ValueT],
    ) -> None:
        self._nodes = nodes
        self._stored = 0
        sizes = {one.layer: self._read_sizes(one, data[one.layer]) for one in share.inputs}
        _check(share.function, sizes)
        self._sizes = next(iter(sizes.values()))
        read = {one.layer: self._read(one, dense(data[one.layer])) for one in share.inputs}
        self._found = self._stages(share.function, read)

    def of(self, layer: str) -> ValueT:
        """Return the importances of a layer, (batch, C) or (batch, tokens, C)."""
        return self._found[layer]

    def _insert(self, operation: OperationT) -> ValueT:
        return self._nodes.insert(operation, _PART)

    def _store(self, values: Array, *, is_parameter: bool = True) -> ValueT:
        return self._nodes.store(self._part(), np.ascontiguousarray(values), is_parameter=is_parameter)

    def _part(self) -> str:
        self._stored += 1
        return f"part{self._stored}"

    def _read_sizes(self, one: GlobalInput, data: ValueT) -> tuple[Any, ...]:
        """The sizes of what is read of a layer, without the axis of its channels."""
        sizes = self._nodes.sizes(data)
        return sizes if one.V is not None else sizes[:-1]

    def _read(self, one: GlobalInput, data: ValueT) -> ValueT:
        if one.V is None:
            return data
        return self._insert(self._nodes.lookup(self._store(one.V), data))

    def _stages(self, function: GlobalFunction, read: Mapping[str, ValueT]) -> dict[str, ValueT]:
        nodes, found = self._nodes, dict[str, ValueT]()
        stream: ValueT | None = None
        for stage in function.stages:
            inputs = [self._norm(read[x]) if stage.norms_inputs else read[x] for x in stage.layers]
            r = inputs[0] if len(inputs) == 1 else self._insert(nodes.concat(inputs))
            r = r if stage.project is None else self._affine(stage.project, r)
            r = r if stream is None else self._insert(nodes.add(stream, r))
            for block in stage.blocks:
                if block.attention is not None:
                    attended = self._attend(block.attention, self._norm(r, block.attention_scale))
                    r = self._insert(nodes.add(r, attended))
                r = self._insert(nodes.add(r, self._mlp(block.mlp, self._norm(r, block.mlp_scale))))
            stream = r
            values = self._mlp(stage.read, r if stage.read_scale is None else self._norm(r, stage.read_scale))
            values = squashed(nodes, values, function.sigmoid, _PART)
            for layer, (begin, end) in zip(stage.layers, stage.splits, strict=True):
                found[layer] = self._insert(nodes.slice(values, -1, begin, end))
        return found

    def _linear(self, x: ValueT, weight: Array, bias: Array | None) -> ValueT:
        parts = (self._part(), "" if bias is None else self._part())
        return self._insert(self._nodes.linear(x, weight, bias, parts=parts))

    def _affine(self, layer: GateLayer, x: ValueT) -> ValueT:
        return self._linear(x, layer.weight.T, layer.bias)

    def _mlp(self, maps: Sequence[GateLayer], x: ValueT) -> ValueT:
        for number, layer in enumerate(maps):
            x = self._affine(layer, x if number == 0 else self._insert(self._nodes.gelu(x)))
        return x

    def _norm(self, x: ValueT, scale: Array | None = None) -> ValueT:
        nodes = self._nodes
        square = self._insert(nodes.mean(self._insert(nodes.mul(x, x))))
        root = self._insert(nodes.rsqrt(self._insert(nodes.add(square, NORM_EPSILON))))
        normed = self._insert(nodes.mul(x, root))
        return normed if scale is None else self._insert(nodes.mul(normed, self._store(scale)))

    def _attend(self, attention: Attention, x: ValueT) -> ValueT:
        nodes, alone = self._nodes, len(self._sizes) == 1
        x = self._insert(nodes.unsqueeze(x, 1)) if alone else x
        cosine, sine = self._rotations(attention, x, 1 if alone else self._sizes[1])

        def heads(weight: Array) -> ValueT:
            parted = self._insert(nodes.heads(self._linear(x, weight, None), attention.heads, attention.head))
            return self._insert(nodes.permute(parted, [0, 2, 1, 3]))

        def turned(z: ValueT) -> ValueT:
            half = attention.head // 2
            first, second = (self._insert(nodes.slice(z, -1, begin, begin + half)) for begin in (0, half))
            crossed = self._insert(nodes.concat([self._insert(nodes.neg(second)), first]))
            kept = self._insert(nodes.mul(z, cosine))
            return self._insert(nodes.add(kept, self._insert(nodes.mul(crossed, sine))))

        q, k, v = turned(heads(attention.query)), turned(heads(attention.key)), heads(attention.value)
        scores = self._insert(nodes.matmul(q, self._insert(nodes.permute(k, [0, 1, 3, 2]))))
        shares = self._insert(nodes.softmax(self._insert(nodes.mul(scores, attention.head**-0.5))))
        joined = self._insert(nodes.permute(self._insert(nodes.matmul(shares, v)), [0, 2, 1, 3]))
        flat = self._insert(nodes.joined(joined, attention.heads * attention.head))
        result = self._linear(flat, attention.output, None)
        return self._insert(nodes.squeeze(result, 1)) if alone else result

    def _rotations(self, attention: Attention, x: ValueT, tokens: Any) -> tuple[ValueT, ValueT]:
        """Cosine and sine of the positions' angles, (tokens, d_head), or (1, 1, tokens, d_head)."""
        nodes = self._nodes
        if isinstance(tokens, int):
            cosine, sine = rotations(attention.frequencies, tokens)
            return self._store(cosine, is_parameter=False), self._store(sine, is_parameter=False)
        # The number of tokens is known at run time alone: counting ones gives the positions.
        one = self._insert(nodes.slice(self._insert(nodes.slice(x, 0, 0, 1)), -1, 0, 1))
        positions = self._insert(nodes.sub(self._insert(nodes.counted(one)), 1))
        angles = self._insert(nodes.mul(positions, self._store(attention.frequencies)))
        twice = self._insert(nodes.unsqueeze(self._insert(nodes.concat([angles, angles])), 1))
        return self._insert(nodes.cos(twice)), self._insert(nodes.sin(twice))


def _check(function: GlobalFunction, sizes: Mapping[str, tuple[Any, ...]]) -> None:
    told = {str(shape): layer for layer, shape in sizes.items()}
    if len(told) > 1 or any(len(shape) not in (1, 2) for shape in sizes.values()):
        raise UsageError(
            "The causal-importance function of all layers reads them together, and they run on different sizes: "
            f"{', '.join(f'{layer} on {shape}' for shape, layer in told.items())}.",
            where="--gates",
            hint="Give inputs of the kind that SPD trained on: (batch, channels) or (batch, tokens, channels).",
        )
    tokens = next(iter(sizes.values()))[1:]
    if function.attends and tokens and isinstance(tokens[0], int) and tokens[0] > function.longest:
        raise UsageError(
            f"The inputs have {tokens[0]} tokens, and the causal-importance function was made for {function.longest}.",
            where="--gates",
            hint="Give shorter inputs.",
        )
