"""The rules of all operators that choose, by the operators' ONNX names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.reference import (
    decisions_elementwise,
    decisions_order,
    decisions_quantized,
    decisions_resize,
    decisions_selection,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.reference.decisions import Rule

RULES: Mapping[str, Rule] = {
    **decisions_elementwise.RULES,
    **decisions_order.RULES,
    **decisions_quantized.RULES,
    **decisions_resize.RULES,
    **decisions_selection.RULES,
}

_MICROSOFT = frozenset((*decisions_quantized.MICROSOFT, "QuantizeLinear"))


def has_rule(domain: str, op: str) -> bool:
    """Return whether an operator of a file is one that may choose."""
    return op in _MICROSOFT if domain == "com.microsoft" else not domain and op in RULES
