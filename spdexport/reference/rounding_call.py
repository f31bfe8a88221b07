"""One call of an ONNX node, as error models see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spdexport.conv import Array
    from spdexport.reference.noise import Draw, Magnitudes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a node.

    Attributes:
        op: The operator.
        identity: The node's name, and how often it ran before.
        node: Has the attributes, by name.
        inputs: Floats in float64; None for one that is left out.
        y: The first output.
        draw: Of the call.
        again: The operator on other inputs.
        version: Of the operator set.
        magnitudes: What the runs of one case share.
    """

    op: str
    identity: tuple[str, int]
    node: Any
    inputs: Sequence[Any]
    y: Array
    draw: Draw
    again: Callable[[Sequence[Any]], Sequence[Any]]
    version: int
    magnitudes: Magnitudes

    def attribute(self, name: str, default: Any) -> Any:
        """Return an attribute; its default where the node has none."""
        value = getattr(self.node, name, None)
        return default if value is None else value

    def input(self, index: int) -> Any:
        """Return an input; None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    @property
    def x(self) -> Array:
        """The first input."""
        x: Array = self.inputs[0]
        return x
