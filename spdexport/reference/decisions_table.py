"""The rules of all operators that choose, by the operators' ONNX names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.reference import decisions_elementwise, decisions_order, decisions_selection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.reference.decisions import Rule

RULES: Mapping[str, Rule] = {
    **decisions_elementwise.RULES,
    **decisions_order.RULES,
    **decisions_selection.RULES,
}
