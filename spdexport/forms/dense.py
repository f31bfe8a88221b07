"""The dense form: one stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.forms.base import Form, Stage
from spdexport.forms.kinds import FormKind

if TYPE_CHECKING:
    from spdexport.conv import Array, ConvSpec


def dense(spec: ConvSpec, weight: Array, bias: Array | None) -> Form:
    """Return one convolution.

    Args:
        spec: The layer's geometry.
        weight: Shape ``spec.weight_shape``, already in the dtype it is to have in the graph.
        bias: Shape (out_channels,), or None.
    """
    return Form(name=FormKind.DENSE, chains=((Stage(spec=spec, weight=weight, bias=bias),),))
