"""The Tucker-2 form: a 1x1 convolution, the layer's own kernel between fewer channels, a 1x1 convolution.

Within each group, with r channels behind the first and t behind the core::

    W[o, i, tap] = sum over a < r, b < t of  last[o, b] core[b, a, tap] first[a, i]

The core has the layer's stride, padding and dilation, and may be transposed; both others only mix channels, so that the
form is exact for every geometry. Without the last stage the core has the layer's own outputs; the output side alone is
V and U.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from spdexport.conv import ConvSpec
from spdexport.forms.base import Form, Stage
from spdexport.forms.kinds import FormKind
from spdexport.multilinear import tucker_factors

if TYPE_CHECKING:
    from spdexport.conv import Array, FloatArray
    from spdexport.multilinear import Tucker


def without_tucker(spec: ConvSpec) -> str | None:
    """Return why a layer of this geometry has no Tucker-2 form of its own, in a clause; None where it has one."""
    if not spec.axes:
        return "a linear layer has no kernel between its channels"
    if all(size == 1 for size in spec.kernel):
        return "its kernel is a single tap"
    if spec.in_channels == spec.groups:
        return "each of its groups reads a single channel"
    return None


def tucker_specs(spec: ConvSpec, inner: int, outer: int | None) -> tuple[ConvSpec, ...]:
    """Return the geometries of the stages.

    Args:
        spec: The layer's geometry.
        inner: Channels of each group in front of the core.
        outer: Those behind it; None for the layer's own, without a last stage.
    """
    groups = spec.groups
    into, out = groups * inner, spec.out_channels if outer is None else groups * outer
    first = ConvSpec.pointwise(spec.in_channels, into, axes=spec.axes, groups=groups)
    core = replace(spec, in_channels=into, out_channels=out)
    if outer is None:
        return first, core
    return first, core, ConvSpec.pointwise(out, spec.out_channels, axes=spec.axes, groups=groups)


def tucker_form(spec: ConvSpec, first: Array, core: Array, last: Array | None, bias: Array | None) -> Form:
    """Return the form of three stages, or two.

    Args:
        spec: The layer's geometry, which ``without_tucker`` finds nothing against.
        first: Shape (groups * r, in / groups, 1, ...).
        core: Shape (groups * t, r, *kernel); (out, r, *kernel) without a last stage.
        last: Shape (out, t, 1, ...), or None.
        bias: Shape (out_channels,), or None.
    """
    groups = spec.groups
    specs = tucker_specs(spec, first.shape[0] // groups, None if last is None else core.shape[0] // groups)
    weights = (first, core) if last is None else (first, core, last)
    final = len(weights) - 1
    stages = tuple(
        Stage(spec=own, weight=weight, bias=bias if index == final else None, name=name)
        for index, (own, weight, name) in enumerate(zip(specs, weights, ("first", "core", "last"), strict=False))
    )
    return Form(name=FormKind.TUCKER, chains=(stages,))


def tucker_stages(
    spec: ConvSpec, found: Tucker, inner: int, outer: int | None
) -> tuple[FloatArray, FloatArray, FloatArray | None]:
    """Return the weights of first, core and last in float64, of these ranks; None for ``outer`` leaves the last out."""
    size = spec.group_out if outer is None else outer
    first, core, last = tucker_factors(found, inner, size)
    if outer is None:
        core = np.einsum("gob,gbat->goat", last, core)
    own = tucker_specs(spec, first.shape[1], None if outer is None else last.shape[2])
    shaped = [
        np.ascontiguousarray(weight.reshape(of.weight_shape))
        for weight, of in zip((first, core, last), own, strict=False)
    ]
    return shaped[0], shaped[1], shaped[2] if outer is not None else None
