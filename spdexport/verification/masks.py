"""What a file says beside its weights: masks that stay visible, and the sizes that it holds for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spdexport.model_files import recorded_ranges
from spdexport.names import layer_of_call
from spdexport.rewrite.onnx_scopes import initializer_named
from spdexport.verification.result import EdgeResult, Status

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from spdexport.conv import Array
    from spdexport.planning import Plan
    from spdexport.ranges import Ranges


def mask_fault(file: ir.Model, plan: Plan) -> EdgeResult | None:
    """Return the weights edge as a failure, where a visible mask is not the plan's: None where there is nothing to say.

    The composed weights show a wrong mask too, unless the component that it wakes or kills hardly counts; and they do
    not say that it is the mask. A mask that the file has not under its own name is left to them.
    """
    if not plan.options.keep_masks:
        return None
    for decision in plan.decisions:
        layer = layer_of_call(decision.site.name)
        stored = initializer_named(file, f"{layer}.mask")
        wanted = None if decision.factors is None else decision.factors.mask
        if stored is None or stored.const_value is None or wanted is None:
            continue
        what = _difference(stored.const_value.numpy().reshape(-1), wanted.reshape(-1))
        if what is not None:
            reason = f"the mask of {layer} is not the one given: {what}"
            return EdgeResult(
                edge="weights",
                status=Status.FAIL,
                noise_ratio=float("inf"),
                first_divergence=decision.site.name,
                reason=reason,
            )
    return None


def ranges_fault(file: ir.Model, path: Path, ranges: Ranges) -> EdgeResult | None:
    """Return the weights edge as a failure, where a file says of other sizes than the trace that it holds for them.

    A file that says nothing of sizes promises none.

    Args:
        file: The file.
        path: Where it is.
        ranges: What the trace holds for.

    Raises:
        SourceError: What the file says are no sizes.
    """
    for name, axes in recorded_ranges(file, path).items():
        for axis, said in axes.items():
            held = ranges.get(name, {}).get(axis)
            if held != said:
                right = "no limit" if held is None else f"{held}"
                reason = f"the file says that {name} takes sizes {said} on axis {axis}, where {right} is right"
                return EdgeResult(edge="weights", status=Status.FAIL, first_divergence=name, reason=reason)
    return None


def _difference(mask: Array, wanted: Array) -> str | None:
    if mask.shape != wanted.shape:
        return f"it has {mask.size} components, and there are {wanted.size}"
    right = wanted.astype(mask.dtype)
    woken, killed = np.flatnonzero((right == 0) & ~(mask == 0)), np.flatnonzero((right != 0) & (mask == 0))
    parts = []
    if woken.size:
        parts.append(f"component {woken[0]} is dead and has {mask[woken[0]]:g} ({woken.size} such)")
    if killed.size:
        parts.append(f"component {killed[0]} is live, with {right[killed[0]]:g}, and has 0 ({killed.size} such)")
    other = np.flatnonzero(~(mask == right))
    if not parts and other.size:
        parts.append(f"component {other[0]} has {mask[other[0]]:.9g} where {right[other[0]]:.9g} is right")
    return "; ".join(parts) or None
