"""The composition of two convolution stages, and the sum of two, as one stage; all in float64.

Whether they compose is told at once; the weight is computed when it is asked for.

Along one spatial axis a stage has kernel K, stride s, dilation d and padding (a, b); the first stage has index 1, the
second 2. The formulas of ``ConvSpec`` put into each other give, for two convolutions, taps at ``s1 d2 k2 + d1 k1``,
stride ``s1 s2`` and padding ``(a1 + s1 a2, b1 + s1 b2)``; for two transposed ones, taps at ``s2 d1 k1 + d2 k2``, the
same stride, padding ``(s2 a1 + a2, s2 b1 + b2)`` and output padding ``s2 o1 + o2``. The taps are those of one kernel
whose dilation is their greatest common divisor. It is the same function, for inputs of any size, if and only if on each
axis

- convolutions: what the second one reads of its padding is zero by the formula of the first one as well::

      d1 (K1 - 1) < s1 e + a1, e the nearest padding that is read: the least a2 - s2 p - d2 k2 > 0; or a2 = 0
      d1 (K1 - 1) <= b1, or b2 = 0

  So a second one without padding always composes, and a padded one behind kernel 1: a 1x1 convolution in front, or
  kernels along different axes.
- transposed convolutions: of what the first one crops, the second would have brought nothing back into sight::

      d2 (K2 - 1) < s2 e + a2,      e the nearest value cropped: the least a1 - s1 p - d1 k1 > 0; or a1 = 0
      d2 (K2 - 1) < s2 e + b2 - o2, the same at the other end, with b1 - o1

- a bias of the first one reaches all outputs alike: the second is a convolution without padding, or a transposed one of
  stride 1 that crops the ``d2 (K2 - 1)`` locations at either end to which not all its taps contribute.
- one is a convolution and the other a transposed one, and one of them can be written as the other kind: with stride 1,
  the kernel flipped, padding ``d (K - 1) - (a, b)``, where that is not negative.

Groups never prevent it: two block structures have ``gcd(groups1, groups2)`` blocks in common, and within those the
zeros of each are written out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.conv import ConvSpec
from spdexport.forms.base import CannotComposeError, Stage, absorbed, constant_mask, f64, scaled
from spdexport.forms.deferred import Deferred

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import FloatArray

LARGEST = 2**26
"""Numbers that the weight of kernels along the same axis may have, composed: a chain of them would grow without end."""

Taps = tuple[int, ...]
"""Where the taps of a kernel go along one axis of another one."""


def appends_pointwise(first: ConvSpec, second: ConvSpec) -> bool:
    """Return whether the second only mixes the first one's output channels, within its groups: as U does behind V."""
    return second.is_pointwise and second.groups % first.groups == 0


def overlaps(first: ConvSpec, second: ConvSpec) -> bool:
    """Return whether both kernels are wider than one along an axis, where the composed one is wider than either."""
    return any(k1 > 1 and k2 > 1 for k1, k2 in zip(first.kernel, second.kernel, strict=True))


def compose(first: Stage, second: Stage) -> Stage:
    """Return the one stage that computes ``second(first(x))``, in float64.

    The module's docstring has conditions and formulas.

    With A the first weight, its mask m and bias a, and B the second with mask n and bias b::

        weight[o, i, tap] = n[o] * sum over c, and taps k1, k2 that make tap, of B[o, c, k2] * m[c] * A[c, i, k1]
        bias[o]           = n[o] * sum over c, k2                             of B[o, c, k2] * a[c]             + b[o]

    Raises:
        CannotComposeError: They are not the same function as any single stage; the message says why.
    """
    a, b = first.spec, second.spec
    if a.out_channels != b.in_channels:
        raise CannotComposeError(
            f"{a.out_channels} channels come out of the first and {b.in_channels} go into the second"
        )
    if a.axes != b.axes:
        raise CannotComposeError("the two have different numbers of spatial axes")
    A, bias = absorbed(first)
    B = Deferred(b.weight_shape, lambda: f64(second.weight))
    if bias is not None and bias.any():
        _check_bias(b)
    one, two = _of_one_kind(_Part(spec=a, weight=A), _Part(spec=b, weight=B))
    spec, taps1, taps2 = _combined(one.spec, two.spec)
    size = math.prod(spec.weight_shape)
    if size > LARGEST and overlaps(a, b):
        raise CannotComposeError(f"one layer for both kernels would hold {size} numbers")
    mask = constant_mask(second)
    if bias is not None:
        # The first one's bias as its value at every location: what a second one without borders makes of it.
        ones = f64(B).sum(axis=tuple(range(2, 2 + b.axes)))
        blocks = ones.reshape(b.groups, b.group_out, -1) @ bias.reshape(b.groups, -1, 1)
        bias = blocks.reshape(b.out_channels)
        bias = bias if mask is None else bias * mask
    if second.bias is not None:
        bias = f64(second.bias) if bias is None else bias + f64(second.bias)

    def weight() -> FloatArray:
        return scaled(_convolved(one, two, spec, taps1, taps2), mask)

    return Stage(spec=spec, weight=Deferred(spec.weight_shape, weight), bias=bias)


def add(first: Stage, second: Stage) -> Stage:
    """Return the one stage that computes ``first(x) + second(x)``, in float64.

    The taps of both are put on one grid, whose step is the greatest common divisor of both dilations and of the
    distance between their first taps: a 1x1 convolution beside a padded 3x3 one becomes its middle tap.

    Raises:
        CannotComposeError: Their channels, strides or output sizes differ.
    """
    a, b = first.spec, second.spec
    if (a.in_channels, a.out_channels, a.axes) != (b.in_channels, b.out_channels, b.axes):
        raise CannotComposeError("the two have other channels or axes")
    (A, bias), (B, more) = absorbed(first), absorbed(second)
    one, two = _of_one_kind(_Part(spec=a, weight=A), _Part(spec=b, weight=B))
    spec, taps1, taps2 = _union(one.spec, two.spec)
    weight = Deferred(spec.weight_shape, lambda: _spread(one, spec, taps1) + _spread(two, spec, taps2))
    if more is not None:
        bias = more if bias is None else bias + more
    return Stage(spec=spec, weight=weight, bias=bias)


def times(stage: Stage, factor: float) -> Stage:
    """Return the stage that computes ``factor * stage(x)``, in float64."""
    if factor == 1:
        return stage
    weight, bias = absorbed(stage)
    return Stage(
        spec=stage.spec,
        weight=Deferred(weight.shape, lambda: factor * f64(weight)),
        bias=None if bias is None else factor * bias,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """A spec and its weight in float64, without mask and bias."""

    spec: ConvSpec
    weight: Deferred


def _of_one_kind(a: _Part, b: _Part) -> tuple[_Part, _Part]:
    """The two as convolutions, or both transposed; a pointwise one is either."""
    if a.spec.transposed == b.spec.transposed:
        return a, b
    ways = [(a, _flipped(b)), (_flipped(a), b)]
    # What has no spatial reach takes the kind of the other.
    for one, other in ways if b.spec.is_pointwise else reversed(ways):
        if one is not None and other is not None:
            return one, other
    raise CannotComposeError("one of them is a transposed convolution, and strides keep the two from being one kind")


def _flipped(part: _Part) -> _Part | None:
    """A convolution of stride 1 as a transposed one, or the other way round; None where that cannot be."""
    spec = part.spec
    reach = [d * (k - 1) for d, k in zip(spec.dilation, spec.kernel, strict=True)]
    extra = spec.output_padding or (0,) * spec.axes
    padding = tuple((r - a, r - b + o) for r, (a, b), o in zip(reach, spec.padding, extra, strict=True))
    if any(s != 1 for s in spec.stride) or any(min(p) < 0 for p in padding):
        return None
    flipped = Deferred(spec.weight_shape, lambda: np.flip(part.weight, axis=tuple(range(2, 2 + spec.axes))))
    return _Part(spec=replace(spec, padding=padding, transposed=not spec.transposed, output_padding=()), weight=flipped)


def _check_bias(second: ConvSpec) -> None:
    if not second.transposed:
        if any(p != (0, 0) for p in second.padding):
            raise CannotComposeError("the first has a bias, and the second pads with zeros what the bias is added to")
        return
    for axis, (a, b) in enumerate(second.padding):
        reach = second.dilation[axis] * (second.kernel[axis] - 1)
        if second.stride[axis] > 1 or min(a, b - second.output_padding[axis]) < reach:
            raise CannotComposeError(
                "the first has a bias, of which the transposed convolution adds up more at some places than at others"
            )


def _combined(a: ConvSpec, b: ConvSpec) -> tuple[ConvSpec, list[Taps], list[Taps]]:
    """The geometry of the composition, and on each axis the taps of both kernels: their sums index the new kernel."""
    kernel, dilation, padding, extra = [], [], [], []
    taps1, taps2 = [], []
    for axis in range(a.axes):
        K1, K2 = a.kernel[axis], b.kernel[axis]
        (a1, b1), (a2, b2) = a.padding[axis], b.padding[axis]
        if a.transposed:
            o1, o2 = a.output_padding[axis], b.output_padding[axis]
            s2, reach = b.stride[axis], b.dilation[axis] * (K2 - 1)
            before, after = (_nearest(crop, a, axis) for crop in (a1, b1 - o1))
            if (before and reach >= s2 * before + a2) or (after and reach >= s2 * after + b2 - o2):
                raise CannotComposeError(
                    f"the first, a transposed convolution, crops what the second would spread along axis {axis}"
                )
            step1, step2 = s2 * a.dilation[axis], b.dilation[axis]
            padding.append((s2 * a1 + a2, s2 * b1 + b2))
            extra.append(s2 * o1 + o2)
        else:
            s1, reach = a.stride[axis], a.dilation[axis] * (K1 - 1)
            before = _nearest(a2, b, axis)
            if (before and reach >= s1 * before + a1) or (b2 > 0 and reach > b1):
                raise CannotComposeError(
                    f"the second pads along axis {axis}, where the first would go on with values that are not zero"
                )
            step1, step2 = a.dilation[axis], s1 * b.dilation[axis]
            padding.append((a1 + s1 * a2, b1 + s1 * b2))
        grid = math.gcd(*(step for step, K in ((step1, K1), (step2, K2)) if K > 1)) or 1
        taps1.append(tuple(step1 * k // grid for k in range(K1)))
        taps2.append(tuple(step2 * k // grid for k in range(K2)))
        kernel.append(taps1[-1][-1] + taps2[-1][-1] + 1)
        # A single tap has no dilation; what either says is kept, so that the layer's attributes stay as they are.
        dilation.append(grid if kernel[-1] > 1 else max(a.dilation[axis], b.dilation[axis]))
    spec = ConvSpec(
        in_channels=a.in_channels,
        out_channels=b.out_channels,
        kernel=tuple(kernel),
        stride=tuple(s * t for s, t in zip(a.stride, b.stride, strict=True)),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=math.gcd(a.groups, b.groups),
        transposed=a.transposed,
        output_padding=tuple(extra),
    )
    return spec, taps1, taps2


def _nearest(margin: int, spec: ConvSpec, axis: int) -> int:
    """How far outside the nearest location is that a stage reads, or writes, in a margin; 0 where there is none."""
    stride, dilation = spec.stride[axis], spec.dilation[axis]
    places = (margin - stride * p - dilation * k for p in range(margin) for k in range(spec.kernel[axis]))
    return min((place for place in places if place > 0), default=0)


def _union(a: ConvSpec, b: ConvSpec) -> tuple[ConvSpec, list[Taps], list[Taps]]:
    """The geometry of the sum, and on each axis the taps of either kernel in the new one."""
    if a.stride != b.stride:
        raise CannotComposeError("what is added to it has another stride")
    kernel, dilation, padding, extra = [], [], [], []
    taps1, taps2 = [], []
    for axis in range(a.axes):
        (K1, d1, (a1, b1)), (K2, d2, (a2, b2)) = ((s.kernel[axis], s.dilation[axis], s.padding[axis]) for s in (a, b))
        o1, o2 = (s.output_padding[axis] if s.transposed else 0 for s in (a, b))
        loss1, loss2 = d1 * (K1 - 1) - a1 - b1 + o1, d2 * (K2 - 1) - a2 - b2 + o2
        if loss1 != loss2:
            raise CannotComposeError(f"what is added to it has another size along axis {axis}")
        start, end = max(a1, a2), max(d1 * (K1 - 1) - a1, d2 * (K2 - 1) - a2)
        grid = math.gcd(d1 if K1 > 1 else 0, d2 if K2 > 1 else 0, abs(a1 - a2)) or 1
        taps1.append(tuple((d1 * k - a1 + start) // grid for k in range(K1)))
        taps2.append(tuple((d2 * k - a2 + start) // grid for k in range(K2)))
        kernel.append((end + start) // grid + 1)
        dilation.append(grid if kernel[-1] > 1 else d1)
        after = end - loss1
        # Transposed, output padding takes back what both sides are cropped by alike, as PyTorch writes it.
        extra.append(max(start - after, 0) if a.transposed else 0)
        padding.append((start, after + extra[-1]))
    groups = math.gcd(a.groups, b.groups)
    if replace(a, groups=groups) == replace(b, groups=groups):
        return replace(a, groups=groups), taps1, taps2
    spec = replace(
        a,
        kernel=tuple(kernel),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        output_padding=tuple(extra) if a.transposed else (),
    )
    return spec, taps1, taps2


def _convolved(a: _Part, b: _Part, spec: ConvSpec, taps1: list[Taps], taps2: list[Taps]) -> FloatArray:
    """The composed weight: for each pair of taps a product of matrices, added where the pair's sum is."""
    inner, middle = a.spec.in_channels // a.spec.groups, b.spec.in_channels // b.spec.groups
    if b.spec.groups % a.spec.groups == 0:
        # Each group of the second reads outputs of one group of the first. Also the way of scales: they stay n numbers.
        own, groups = 1, b.spec.groups
        B = f64(b.weight).reshape(groups, 1, b.spec.group_out, middle, *b.spec.kernel)
    else:
        own, groups = a.spec.groups // spec.groups, spec.groups
        middle = a.spec.group_out
        B = _blocks(b, groups).reshape(groups, spec.group_out, own, middle, *b.spec.kernel).swapaxes(1, 2)
    rows = f64(a.weight).reshape(groups, own, middle, -1)
    weight = np.zeros((groups, B.shape[2], own, inner, *spec.kernel))
    for place in np.ndindex(*b.spec.kernel):
        product = (B[(..., *place)] @ rows).reshape(groups, own, B.shape[2], inner, *a.spec.kernel)
        where = [[first + taps2[axis][k] for first in taps1[axis]] for axis, k in enumerate(place)]
        weight[(slice(None), *_grid(where))] += product.swapaxes(1, 2)
    return weight.reshape(spec.weight_shape)


def _spread(part: _Part, spec: ConvSpec, taps: list[Taps]) -> FloatArray:
    """A weight in the place that its taps have in a larger kernel, its groups written out."""
    weight = np.zeros((spec.groups, spec.group_out, spec.in_channels // spec.groups, *spec.kernel))
    weight[_grid(taps)] = _blocks(part, spec.groups)
    return weight.reshape(spec.weight_shape)


def _grid(taps: Sequence[Sequence[int]]) -> tuple[Any, ...]:
    """The index of a kernel's entries on these taps, behind the axes of groups, output and input channels."""
    return (slice(None), slice(None), slice(None), *np.ix_(*taps))


def _blocks(part: _Part, groups: int) -> FloatArray:
    """A weight with fewer groups, those within one written out as blocks: (groups, out, in, *kernel) of one group."""
    spec = part.spec
    own, kernel = spec.groups // groups, spec.kernel
    inner = spec.in_channels // spec.groups
    compact = f64(part.weight).reshape(groups, own, spec.group_out, inner, *kernel)
    if own == 1:
        return compact.reshape(groups, spec.group_out, inner, *kernel)
    full = np.zeros((groups, own, spec.group_out, own, inner, *kernel))
    for block in range(own):
        full[:, block, :, block] = compact[:, block]
    return full.reshape(groups, own * spec.group_out, own * inner, *kernel)
