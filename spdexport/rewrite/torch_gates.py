"""Causal-importance functions as nodes of a torch graph; their formulas are those of ``spdexport.gates``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from spdexport.rewrite.torch_edit import ProgramEdit

aten = torch.ops.aten


def thresholded(edit: ProgramEdit, gate: torch.fx.Node, threshold: float, like: torch.fx.Node) -> torch.fx.Node:
    """1 where the importance is greater than the threshold, 0 elsewhere, in the importance's dtype.

    The threshold is rounded to that dtype, as that of a fixed mask is.
    """
    dtype = gate.meta["val"].dtype
    rounded = float(torch.tensor(threshold, dtype=dtype))
    above = edit.call(aten.gt.Scalar, (gate, rounded), like, "above")
    return edit.call(aten.to.dtype, (above, dtype), like, "gate")


def gate_nodes(*_: Any) -> torch.fx.Node:
    raise NotImplementedError
