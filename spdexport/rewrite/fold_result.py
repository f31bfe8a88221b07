"""What folding tells of the layers that it made, for graphs of either kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spdexport.conv import ConvSpec
    from spdexport.forms import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedChain:
    """Nodes of a graph that became one layer.

    Attributes:
        name: The layer's name.
        nodes: The names of the nodes that it replaces, in the graph's order.
        spec: The geometry of the layer.
        macs_before: Multiply-accumulates of the replaced layers for one output location.
        macs_after: Those of the folded layer.
    """

    name: str
    nodes: tuple[str, ...]
    spec: ConvSpec
    macs_before: int
    macs_after: int


def unfit(stage: Stage, dtype: np.dtype[np.generic]) -> str | None:
    """Why a folded layer cannot be stored in ``dtype``: rounding to it must keep every finite number finite.

    Small floats overflow: a product that leaves their range is not what V and U compute.
    """
    with np.errstate(over="ignore"):  # it is what is asked here
        for values in (stage.weight, stage.bias):
            if values is not None and (np.isfinite(values) > np.isfinite(values.astype(dtype))).any():
                return f"the folded weight does not fit the type {dtype}"
    return None
