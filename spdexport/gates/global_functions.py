"""Causal-importance functions of all layers at once, as SPD trains them, and their float64 evaluation.

All kinds are one formula. A stream r begins as zeros; each stage adds what it reads of some layers, changes the stream
by its blocks, and gives the importances of the same layers, x being a layer's input::

    r = r + project(concatenated x)
    r = r + attention(norm(r));  r = r + mlp(norm(r))     for each block
    importances = sigmoid(read(norm(r)))                  split among the layers

``global_shared_mlp`` is one stage without a projection, ``global_shared_transformer`` one stage that norms what it
reads, ``global_reverse_residual`` one stage for each group of layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from spdexport.gates.functions import gelu
from spdexport.gates.sigmoids import Sigmoid, squash

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import Array, ConvSite, FloatArray
    from spdexport.gates.functions import GateLayer

NORM_EPSILON = 2.0**-23
"""What torch adds to the mean square of float32 numbers in ``rms_norm``, where it is not told otherwise."""

LONGEST = 2048
"""The longest sequence that SPD makes positions for, where the configuration does not say."""


class GlobalKind(StrEnum):
    """The kinds, as ``fn_type`` of a run's ``ci_config`` calls them."""

    SHARED_MLP = "global_shared_mlp"
    SHARED_TRANSFORMER = "global_shared_transformer"
    REVERSE_RESIDUAL = "global_reverse_residual"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attention:
    """Self-attention over all tokens, none hidden from any, with rotary positions; without biases.

    Attributes:
        query: Shape (d, d), as torch stores the weight of a linear layer: (out, in).
        key: The same.
        value: The same.
        output: The same.
        frequencies: Of the positions, shape (d_head / 2,): it tells the size of a head.
    """

    query: Array
    key: Array
    value: Array
    output: Array
    frequencies: Array

    def __post_init__(self) -> None:
        """Check that the weights fit one another.

        Raises:
            ValueError: They do not.
        """
        size = self.query.shape[0]
        shapes = [w.shape for w in (self.query, self.key, self.value, self.output)]
        if any(shape != (size, size) for shape in shapes):
            raise ValueError(f"its attention has weights {', '.join(map(str, shapes))}")
        if self.frequencies.ndim != 1 or not self.frequencies.size or size % (2 * self.frequencies.size):
            raise ValueError(f"its attention has {self.frequencies.size} frequencies for {size} channels")

    @property
    def head(self) -> int:
        """The channels of a head."""
        return 2 * int(self.frequencies.size)

    @property
    def heads(self) -> int:
        """The number of heads."""
        return int(self.query.shape[0]) // self.head


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """What changes the stream.

    Attributes:
        mlp: Affine maps with an exact GELU between two of them, (in, out) each.
        mlp_scale: Of the norm in front, shape (d,); None for ones.
        attention: None for none.
        attention_scale: As ``mlp_scale``.
    """

    mlp: tuple[GateLayer, ...]
    mlp_scale: Array | None = None
    attention: Attention | None = None
    attention_scale: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stage:
    """Some layers, what is read of them, and what gives their importances.

    Attributes:
        layers: By the model's own names, in the order in which they are concatenated.
        components: C of each.
        read: The affine maps from the stream to the importances of all its layers.
        project: The affine map into the stream; None where the stream is what is read.
        norms_inputs: Whether each layer's input is normed.
        blocks: What changes the stream.
        read_scale: Of the norm in front of ``read``; None for no norm.
    """

    layers: tuple[str, ...]
    components: tuple[int, ...]
    read: tuple[GateLayer, ...]
    project: GateLayer | None = None
    norms_inputs: bool = False
    blocks: tuple[Block, ...] = ()
    read_scale: Array | None = None

    @property
    def splits(self) -> tuple[tuple[int, int], ...]:
        """The channels of each layer's importances: begin and end."""
        ends = tuple(accumulate(self.components))
        return tuple(zip((0, *ends[:-1]), ends, strict=True))

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All matrices that values are multiplied with."""
        maps = [*self.read, *([] if self.project is None else [self.project])]
        found = [layer.weight for layer in maps]
        for block in self.blocks:
            found += [layer.weight for layer in block.mlp]
            if block.attention is not None:
                a = block.attention
                found += [a.query, a.key, a.value, a.output]
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GlobalFunction:
    """The causal-importance function of all layers of a run.

    Attributes:
        kind: What it is called.
        stages: In their order.
        sigmoid: What makes importances of what they give.
        longest: The most tokens that it has positions for.
    """

    kind: GlobalKind
    stages: tuple[Stage, ...]
    sigmoid: Sigmoid
    longest: int = LONGEST

    def __post_init__(self) -> None:
        """Check that the maps fit one another.

        Raises:
            ValueError: They do not.
        """
        for stage in self.stages:
            size = None
            if stage.project is not None:
                size = _sizes((stage.project,), "its projection")[1]
            for block in stage.blocks:
                inner, outer = _sizes(block.mlp, "a map of its blocks")
                if inner != outer or (size is not None and inner != size):
                    raise ValueError(f"a block takes {inner} values, gives {outer}, and stands in a stream of {size}")
            inner, outer = _sizes(stage.read, "what gives its importances")
            if size is not None and inner != size:
                raise ValueError(f"its importances are read from {inner} values, and the stream has {size}")
            if outer != sum(stage.components):
                raise ValueError(f"it gives {outer} importances for {sum(stage.components)} components")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it reads and gives the importances of."""
        return tuple(layer for stage in self.stages for layer in stage.layers)

    @property
    def components(self) -> dict[str, int]:
        """C by layer."""
        return {x: c for stage in self.stages for x, c in zip(stage.layers, stage.components, strict=True)}

    @property
    def attends(self) -> bool:
        """Whether tokens see one another."""
        return any(block.attention is not None for stage in self.stages for block in stage.blocks)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one token, but for those of tokens with one another."""
        return sum(array.size for stage in self.stages for array in stage.arrays)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GlobalInput:
    """What a function reads of a layer.

    Attributes:
        layer: The layer's name.
        site: The layer.
        V: Of an embedding, shape (vocab, C): its activations are read in the place of tokens. None for other layers.
    """

    layer: str
    site: ConvSite
    V: Array | None = None

    def read(self, data: FloatArray) -> FloatArray:
        """Return what the function is given for the data that the layer reads, with the channels last."""
        if self.V is None:
            return np.asarray(data, np.float64)
        return np.asarray(self.V, np.float64)[np.asarray(data, np.int64)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GlobalShare:
    """What a function of all layers gives for one of them.

    Attributes:
        function: The function; all shares of a model have the same.
        layer: The layer.
        inputs: What is read of the model, for all layers of the function.
    """

    function: GlobalFunction
    layer: str
    inputs: tuple[GlobalInput, ...]

    @property
    def components(self) -> int:
        """C."""
        return self.function.components[self.layer]

    @property
    def macs(self) -> int:
        """The layer's part of the function's multiply-accumulates for one token."""
        return self.function.macs * self.components // sum(self.function.components.values())

    @property
    def parameters(self) -> int:
        """The layer's part of the numbers that a model stores for it."""
        return self.macs


def _sizes(maps: Sequence[GateLayer], what: str) -> tuple[int, int]:
    """The values that maps in a row take and give.

    Raises:
        ValueError: They do not fit one another.
    """
    if not maps:
        raise ValueError(f"{what} is missing")
    size = None
    for layer in maps:
        if layer.weight.ndim != 2 or layer.bias.shape != layer.weight.shape[1:]:
            raise ValueError(f"{what} has a weight {layer.weight.shape} and a bias {layer.bias.shape}")
        if size is not None and layer.weight.shape[0] != size:
            raise ValueError(f"{what} takes {layer.weight.shape[0]} values and is given {size}")
        size = layer.weight.shape[1]
    return int(maps[0].weight.shape[0]), int(size or 0)


def evaluate_global(function: GlobalFunction, inputs: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Return the importances of all layers, in float64.

    Args:
        function: The function.
        inputs: Of each layer, as ``GlobalInput.read`` gives it: shape (batch, d) or (batch, tokens, d).

    Returns:
        By layer, shape (batch, C) or (batch, tokens, C).

    Raises:
        ValueError: Inputs have different tokens, or not the sizes that the function reads.
    """
    shapes = {inputs[layer].shape[:-1] for layer in function.layers}
    if len(shapes) > 1:
        raise ValueError(f"its layers run on different sizes: {', '.join(map(str, shapes))}")
    found: dict[str, FloatArray] = {}
    stream: FloatArray | float = 0.0
    for stage in function.stages:
        read = [np.asarray(inputs[layer], np.float64) for layer in stage.layers]
        joined = np.concatenate([_norm(x) if stage.norms_inputs else x for x in read], axis=-1)
        added = joined if stage.project is None else _affine(stage.project, joined)
        r = np.asarray(stream + added)
        for block in stage.blocks:
            if block.attention is not None:
                r = r + _attend(block.attention, _norm(r, block.attention_scale))
            r = r + _mlp(block.mlp, _norm(r, block.mlp_scale))
        stream = r
        values = _mlp(stage.read, r if stage.read_scale is None else _norm(r, stage.read_scale))
        for layer, (begin, end) in zip(stage.layers, stage.splits, strict=True):
            found[layer] = squash(values[..., begin:end], function.sigmoid)
    return found


def _affine(layer: GateLayer, x: FloatArray) -> FloatArray:
    if x.shape[-1] != layer.weight.shape[0]:
        raise ValueError(f"it reads {layer.weight.shape[0]} values, and its layers have {x.shape[-1]}")
    return np.asarray(x @ layer.weight.astype(np.float64) + layer.bias.astype(np.float64))


def _mlp(maps: Sequence[GateLayer], x: FloatArray) -> FloatArray:
    for number, layer in enumerate(maps):
        x = _affine(layer, x if number == 0 else gelu(x))
    return x


def _norm(x: FloatArray, scale: Array | None = None) -> FloatArray:
    normed = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + NORM_EPSILON)
    return np.asarray(normed if scale is None else normed * scale.astype(np.float64))


def rotations(frequencies: Array, tokens: int) -> tuple[FloatArray, FloatArray]:
    """Cosine and sine of each position's angles, each of shape (tokens, d_head), float64."""
    angles = np.arange(tokens)[:, None] * frequencies.astype(np.float64)
    twice = np.concatenate([angles, angles], axis=1)
    return np.cos(twice), np.sin(twice)


def _attend(attention: Attention, x: FloatArray) -> FloatArray:
    alone = x.ndim == 2
    x = x[:, None] if alone else x
    batch, tokens, size = x.shape
    half = attention.head // 2
    cosine, sine = rotations(attention.frequencies, tokens)

    def heads(weight: Array) -> FloatArray:
        projected = x @ weight.astype(np.float64).T
        return projected.reshape(batch, tokens, attention.heads, attention.head).transpose(0, 2, 1, 3)

    def turned(z: FloatArray) -> FloatArray:
        return np.asarray(z * cosine + np.concatenate([-z[..., half:], z[..., :half]], axis=-1) * sine)

    q, k, v = turned(heads(attention.query)), turned(heads(attention.key)), heads(attention.value)
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(attention.head)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = shares / shares.sum(axis=-1, keepdims=True)
    joined = (shares @ v).transpose(0, 2, 1, 3).reshape(batch, tokens, size)
    result: FloatArray = joined @ attention.output.astype(np.float64).T
    return result[:, 0] if alone else result
