"""Which sizes a program holds for, as torch.export found out when it traced the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils._sympy.value_ranges import bound_sympy

from spdexport.capture.axes import tensor_inputs
from spdexport.errors import UsageError
from spdexport.ranges import SizeRange

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.export import ExportedProgram

    from spdexport.ranges import Ranges

ASSUMED = 2
"""torch.export assumes of every dynamic size that it is at least this, whatever the model does."""


def axis_ranges(program: ExportedProgram) -> Ranges:
    """Return the sizes that a program holds for, of the axes of its inputs that have a limit.

    Args:
        program: The program; its ``range_constraints`` have what the trace depended on.
    """
    found: dict[str, dict[int, SizeRange]] = {}
    for name, value in tensor_inputs(program):
        for axis, size in enumerate(value.shape):
            if not isinstance(size, torch.SymInt):
                continue
            bounds = bound_sympy(size.node.expr, dict(program.range_constraints))
            least = int(bounds.lower) if bounds.lower.is_Integer else 0
            most = int(bounds.upper) if bounds.upper.is_Integer else None
            if most is not None or least > ASSUMED:
                found.setdefault(name, {})[axis] = SizeRange(least=least, most=most)
    return found


def check_asked(asked: Mapping[str, Mapping[int, SizeRange]], found: Ranges) -> None:
    """Refuse sizes that the trace does not hold for.

    Args:
        asked: The sizes that the model is to take.
        found: Those that it takes, as far as they have a limit.

    Raises:
        UsageError: Names the input, the axis and both ranges.
    """
    for name, axes in asked.items():
        for axis, wanted in axes.items():
            held = found.get(name, {}).get(axis)
            if held is None or (wanted.least in held and wanted.most is not None and wanted.most in held):
                continue
            raise UsageError(
                f"The trace holds for sizes {held} of axis {axis} of {name}, and {wanted} are asked for.",
                where="--dynamic",
                hint="Ask for sizes in that range, or give an example of another size: a model may branch on it.",
            )
