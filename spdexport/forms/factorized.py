"""The factorized form: V as a convolution to components, perhaps a visible mask, U as a 1x1 convolution."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from spdexport.conv import ConvSpec
from spdexport.factors import absorb_mask, drop_dead, u_filters, v_filters
from spdexport.forms.base import Form, Stage
from spdexport.forms.kinds import FormKind

if TYPE_CHECKING:
    from spdexport.conv import Array
    from spdexport.factors import Factors
    from spdexport.forms.base import Chain
    from spdexport.forms.run_time import LiveInput, VariableMask


def factorized(
    spec: ConvSpec,
    factors: Factors,
    bias: Array | None,
    *,
    delta: Array | None = None,
    keep_mask: bool = False,
) -> Form:
    """V with the layer's own stride, padding, dilation and groups; U pointwise, with the bias; perhaps the delta.

    Args:
        spec: The layer's geometry.
        factors: V, U and mask, in the dtype they are to have in the graph.
        bias: Shape (out_channels,), or None.
        delta: A dense weight to add beside the components, shape ``spec.weight_shape``, or None.
        keep_mask: Whether the mask stays a multiplication between V and U. Otherwise zeros remove components and other
            values go into U.
    """
    mask = None
    if keep_mask and factors.mask is not None:
        mask = factors.mask.reshape(-1)
    else:
        factors = absorb_mask(drop_dead(factors))
    channels = spec.groups * factors.components
    v = Stage(spec=replace(spec, out_channels=channels), weight=v_filters(factors, spec), mask=mask, name="V")
    u = Stage(
        spec=ConvSpec.pointwise(channels, spec.out_channels, axes=spec.axes, groups=spec.groups),
        weight=u_filters(factors, spec),
        bias=bias,
        name="U",
    )
    if delta is None:
        return Form(name=FormKind.FACTORIZED, chains=((v, u),))
    return Form(
        name=FormKind.FACTORIZED_WITH_DELTA,
        chains=((v, u), (Stage(spec=spec, weight=np.ascontiguousarray(delta), name="delta"),)),
    )


def variable_form(
    spec: ConvSpec,
    factors: Factors,
    bias: Array | None,
    *,
    mask: VariableMask,
    delta: Array | None = None,
    delta_mask: VariableMask | None = None,
    routing: LiveInput | None = None,
) -> Form:
    """V, a mask that is known only at run time, U; no component is removed, and a constant mask besides is in U.

    With m the variable mask, c the constant one, d the delta mask and r the routing::

        y = r ? ((V conv x) * m) diag(c) U + bias + d * (delta conv x) : W conv x + bias

    Args:
        spec: The layer's geometry.
        factors: V, U and c, in the dtype they are to have in the graph.
        bias: Shape (out_channels,), or None.
        mask: m.
        delta: As for ``factorized``.
        delta_mask: d; None for 1.
        routing: r; None for the components everywhere.
    """
    factors = absorb_mask(factors)
    plain = factorized(spec, factors, bias, delta=delta)
    (v, u), *others = plain.chains
    chains: list[Chain] = [(replace(v, mask=mask), u)]
    chains += [(replace(stage, mask=delta_mask),) for (stage,) in others]
    return Form(name=plain.name, chains=tuple(chains), routing=routing)
