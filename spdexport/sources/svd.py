"""Components from the exact singular value decomposition of a layer's weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spdexport.conv import Skipped
from spdexport.lowrank import svd_factors

if TYPE_CHECKING:
    from spdexport.conv import ConvSite
    from spdexport.factors import Factors


def svd_source(site: ConvSite) -> Factors | Skipped:
    """V and U whose product is the site's weight to rounding, or why the layer is better left alone.

    A grouped layer is decomposed group by group. Where each group has one output channel or reads one value, as in
    depthwise convolutions, its matrix has rank one already: V would be the weight itself, and U a scale.
    """
    spec = site.spec
    if spec.groups > 1 and min(spec.patch, spec.group_out) == 1:
        reason = "each group's weight is of rank one already, so V and U have nothing to gain"
        return Skipped(name=site.name, kind=spec.kind, reason=reason)
    if not np.isfinite(site.weight.astype(np.float64)).all():
        return Skipped(name=site.name, kind=spec.kind, reason="its weight holds NaN or infinity")
    return svd_factors(site.weight, spec)
