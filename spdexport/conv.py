"""What a convolution is, apart from any graph: its geometry, and the place where it was found."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvSpec:
    """The geometry of a convolution over any number of spatial axes.

    A linear layer is the convolution without spatial axes: ``kernel == ()``. All formulas hold for it unchanged.

    Attributes:
        in_channels: Channels of the input, all groups together.
        out_channels: Channels of the output, all groups together.
        kernel: Kernel size for each spatial axis.
        stride: Step for each spatial axis.
        padding: Zeros (before, after) for each spatial axis; the two differ for ``padding="same"`` with even kernels.
        dilation: Distance of kernel taps for each spatial axis.
        groups: Number of groups; divides both channel counts.
        transposed: Whether it is a transposed convolution: stride and dilation then space out the output.
        output_padding: For a transposed convolution, locations added at the end of each spatial axis of the output;
            empty for others.

    The weight that belongs to it has shape ``weight_shape``: (out_channels, in_channels / groups, *kernel). With stride
    s, dilation d and padding (a, b) along an axis, input x (zero outside) and output y, for one group::

        convolution             y[o, q] = sum over i, k of          W[o, i, k] x[i, s q + d k - a]
        transposed convolution  y[o, q] = sum over i, k, p with
                                          s p + d k - a = q  of     W[o, i, k] x[i, p]

    The second one's output has s (n - 1) + d (K - 1) + 1 - a - b + output_padding locations: its padding crops. PyTorch
    and ONNX store its weight as (in, out / groups, *kernel); ``canonical_weight`` turns that into the layout above,
    without flipping the kernel, and ``stored_weight`` turns it back. In the canonical layout V and U need no formula of
    their own: ``y = U (V transposed-conv x)``, U pointwise at the output's locations.
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        axes = len(self.kernel)
        if self.transposed and not self.output_padding:
            object.__setattr__(self, "output_padding", (0,) * axes)
        if len(self.output_padding) != axes * self.transposed:
            raise ValueError(f"output_padding is one entry for each axis of a transposed convolution: {self}")
        if not len(self.stride) == len(self.padding) == len(self.dilation) == axes:
            raise ValueError(f"stride, padding and dilation need one entry for each of the {axes} kernel axes: {self}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"groups must divide the channels: {self}")

    @classmethod
    def pointwise(cls, in_channels: int, out_channels: int, *, axes: int, groups: int = 1) -> ConvSpec:
        """Return the 1x1 convolution over ``axes`` spatial axes; for no axes, the linear layer."""
        return cls(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=(1,) * axes,
            stride=(1,) * axes,
            padding=((0, 0),) * axes,
            dilation=(1,) * axes,
            groups=groups,
        )

    @property
    def axes(self) -> int:
        """The number of spatial axes; 0 for a linear layer."""
        return len(self.kernel)

    @property
    def kind(self) -> str:
        """The layer's kind as PyTorch names it: ``linear``, ``conv2d``, ``conv_transpose2d``, with 1 to 3 axes."""
        if not self.axes:
            return "linear"
        return f"conv_transpose{self.axes}d" if self.transposed else f"conv{self.axes}d"

    @property
    def moves(self) -> tuple[object, ...]:
        """All that is said about locations and groups, without the channels: two layers of equal ``moves`` go alike."""
        return (
            self.kernel, self.stride, self.padding, self.dilation, self.groups, self.transposed, self.output_padding
        )  # fmt: skip

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out_channels, in_channels / groups, *kernel)."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def patch(self) -> int:
        """The length of the input patch that one output channel reads: in_channels / groups * prod(kernel)."""
        return self.in_channels // self.groups * math.prod(self.kernel)

    @property
    def group_out(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def is_pointwise(self) -> bool:
        """Whether each output location reads exactly the input location under it (kernel 1, stride 1, no padding).

        A transposed convolution for which that holds is the same function as the other one with the same weight.
        """
        return (
            all(k == 1 for k in self.kernel)
            and all(s == 1 for s in self.stride)
            and all(p == (0, 0) for p in self.padding)
            and not any(self.output_padding)
        )

    @property
    def is_depthwise(self) -> bool:
        """Whether every group has a single input channel, and there is more than one group."""
        return self.groups > 1 and self.groups == self.in_channels

    def describe(self) -> str:
        """Return the geometry in a few characters for tables, such as ``16>32 3x3 s2 p1``.

        ``t3x3`` is a transposed kernel.
        """
        parts = [f"{self.in_channels}>{self.out_channels}"]
        if self.axes:
            parts.append("t" * self.transposed + "x".join(map(str, self.kernel)))
        if any(s != 1 for s in self.stride):
            parts.append("s" + _short(self.stride))
        if any(p != (0, 0) for p in self.padding):
            parts.append("p" + _short(tuple(a if a == b else f"{a}:{b}" for a, b in self.padding)))
        if any(d != 1 for d in self.dilation):
            parts.append("d" + _short(self.dilation))
        if any(self.output_padding):
            parts.append("o" + _short(self.output_padding))
        if self.groups != 1:
            parts.append(f"g{self.groups}")
        return " ".join(parts)


def canonical_weight(weight: Array, groups: int) -> Array:
    """Return the weight of a transposed convolution, (in, out / groups, *kernel), in the layout of ``ConvSpec``.

    ``canonical[g * out / groups + o, i] = stored[g * in / groups + i, o]`` for each group g. A view where that can be.
    """
    inner, outer = weight.shape[0] // groups, weight.shape[1]
    blocks = weight.reshape(groups, inner, outer, *weight.shape[2:])
    return blocks.swapaxes(1, 2).reshape(groups * outer, inner, *weight.shape[2:])


def stored_weight(weight: Array, spec: ConvSpec) -> Array:
    """Return a weight of ``spec.weight_shape`` as PyTorch and ONNX store it.

    Undoes ``canonical_weight`` where needed.
    """
    if not spec.transposed:
        return weight
    blocks = weight.reshape(spec.groups, spec.group_out, spec.in_channels // spec.groups, *spec.kernel)
    return blocks.swapaxes(1, 2).reshape(spec.in_channels, spec.group_out, *spec.kernel)


def _short(values: tuple[int | str, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvSite:
    """A convolution or linear layer found in a graph, which a form may replace.

    Attributes:
        name: The module path; else the weight's name; else the node's name. A second call of a module gets ``#2``,
            one in a body of If, Loop or Scan its place, as ``conv in choice.then``.
        spec: The geometry.
        weight: Shape ``spec.weight_shape``, in the model's own dtype. A view of the graph's storage where that can be
            had: never write to it.
        bias: Shape (out_channels,), or None.
        node: The key by which the rewriter that listed the site finds it again.
        positions: Output locations for one sample of the traced input (the product of the output's axes that are
            neither batch nor channels), for counting multiply-accumulates.
        input_positions: The same of the input, where the layer is a transposed convolution.
        input_size: The sizes of the input's axes that are neither batch nor channels, in the traced input; None where
            they are not known.
        padding_mode: ``zeros``, or the mode of a padding in front of the layer that belongs to the same module.
        is_product: Whether the graph has a plain matrix product there, with the weight transposed, and no linear layer.
        is_lookup: Whether it is an embedding: the linear layer of its transposed table, whose input tells by a number
            which of its entries is one, the others being zero. Its matrix product takes a row, and costs nothing.
        inside: The place of the body of If, Loop or Scan that the layer is in; empty for the main graph. What is
            counted of it is that of one step.
    """

    name: str
    spec: ConvSpec
    weight: Array
    bias: Array | None
    node: str
    positions: int = 1
    padding_mode: str = "zeros"
    is_product: bool = False
    input_positions: int | None = None
    input_size: tuple[int, ...] | None = None
    is_lookup: bool = False
    inside: str = ""

    @property
    def kind(self) -> str:
        """The layer's kind as PyTorch names it."""
        return "embedding" if self.is_lookup else self.spec.kind

    @property
    def applications(self) -> int:
        """How often one sample takes the kernel: at each output location; transposed, at each input location."""
        if self.is_lookup:
            return 0
        if not self.spec.transposed:
            return self.positions
        if self.input_positions is not None:
            return self.input_positions
        return max(self.positions // math.prod(self.spec.stride), 1)

    @property
    def upsampling(self) -> float:
        """Output locations for each application of the kernel: 1 but for transposed convolutions of some input."""
        return self.positions / self.applications if self.applications else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A layer that was left alone, and why.

    Attributes:
        name: As ``ConvSite.name``.
        kind: What the layer is, such as ``conv_transpose2d`` or ``embedding``.
        reason: One clause that the reports show.
    """

    name: str
    kind: str
    reason: str
