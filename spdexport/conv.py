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

    The weight that belongs to it has shape ``weight_shape``: (out_channels, in_channels / groups, *kernel).
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def __post_init__(self) -> None:
        axes = len(self.kernel)
        if not len(self.stride) == len(self.padding) == len(self.dilation) == axes:
            raise ValueError(f"stride, padding and dilation need one entry for each of the {axes} kernel axes: {self}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(f"groups must divide the channels: {self}")

    @classmethod
    def pointwise(cls, in_channels: int, out_channels: int, *, axes: int, groups: int = 1) -> ConvSpec:
        """The 1x1 convolution over ``axes`` spatial axes; for no axes, the linear layer."""
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
        """The layer's kind as PyTorch names it: ``linear``, ``conv1d``, ``conv2d`` or ``conv3d``."""
        return f"conv{self.axes}d" if self.axes else "linear"

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
        """Whether each output location reads exactly the input location under it (kernel 1, stride 1, no padding)."""
        return (
            all(k == 1 for k in self.kernel)
            and all(s == 1 for s in self.stride)
            and all(p == (0, 0) for p in self.padding)
        )

    @property
    def is_depthwise(self) -> bool:
        """Whether every group has a single input channel, and there is more than one group."""
        return self.groups > 1 and self.groups == self.in_channels

    def describe(self) -> str:
        """The geometry in a few characters for tables, such as ``16>32 3x3 s2 p1``."""
        parts = [f"{self.in_channels}>{self.out_channels}"]
        if self.axes:
            parts.append("x".join(map(str, self.kernel)))
        if any(s != 1 for s in self.stride):
            parts.append("s" + _short(self.stride))
        if any(p != (0, 0) for p in self.padding):
            parts.append("p" + _short(tuple(a if a == b else f"{a}:{b}" for a, b in self.padding)))
        if any(d != 1 for d in self.dilation):
            parts.append("d" + _short(self.dilation))
        if self.groups != 1:
            parts.append(f"g{self.groups}")
        return " ".join(parts)


def _short(values: tuple[int | str, ...]) -> str:
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvSite:
    """A convolution or linear layer found in a graph, which a form may replace.

    Attributes:
        name: The module path; else the weight's name; else the node's name. A second call of a module gets ``#2``.
        spec: The geometry.
        weight: Shape ``spec.weight_shape``, in the model's own dtype. A view of the graph's storage where that can be
            had: never write to it.
        bias: Shape (out_channels,), or None.
        node: The key by which the rewriter that listed the site finds it again.
        positions: Output locations for one sample of the traced input (the product of the output's axes that are
            neither batch nor channels), for counting multiply-accumulates.
        padding_mode: ``zeros``, or the mode of a padding in front of the layer that belongs to the same module.
        is_product: Whether the graph has a plain matrix product there, with the weight transposed, and no linear layer.
    """

    name: str
    spec: ConvSpec
    weight: Array
    bias: Array | None
    node: str
    positions: int = 1
    padding_mode: str = "zeros"
    is_product: bool = False


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
