"""What the float64 reference cannot compute, and what stands in the place of it while the rest is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx.reference.op_run import OpRun

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spdexport.conv import Array


class ReferenceUnavailable(Exception):  # noqa: N818 - no fault of the model or the user: there is nothing to compare with
    """The float64 reference cannot compute a node.

    Attributes:
        op: The operator, with its domain where that is not ONNX's own: ``com.microsoft.FusedConv``.
        node: The node's name, or that of its first output.
        reason: Why not.
        is_beyond: Whether it is a limit that was come to, which ONNX Runtime does not know.
        is_missing: Whether the operator, or what it is asked for, has no reference, whatever the values are.
    """

    def __init__(self, op: str, node: str, reason: str, *, is_beyond: bool = False, is_missing: bool = False) -> None:
        super().__init__(f"the float64 reference cannot compute {op} (node {node}): {reason}")
        self.op = op
        self.node = node
        self.reason = reason
        self.is_beyond = is_beyond
        self.is_missing = is_missing


class UndefinedFormError(NotImplementedError):
    """An operator is asked for in a form that has no definition here.

    onnx's own operators raise ``NotImplementedError`` for the same: it becomes ``ReferenceUnavailable``, with the node.
    """


def missing(error: ReferenceUnavailable) -> type[OpRun]:
    """Return an operator that says why it has no reference when it is to be computed."""

    def run(self: OpRun, *arguments: Any, **attributes: Any) -> tuple[Array, ...]:  # noqa: ARG001 - any operator's
        raise error

    return type("Missing", (OpRun,), {"_run": run, "op_schema": None})


def check_computed(arguments: Iterable[Any]) -> None:
    """Raise what stands in the place of values that could not be computed, if there is any among some.

    Raises:
        ReferenceUnavailable: One of them was not computed.
    """
    for argument in arguments:
        if isinstance(argument, ReferenceUnavailable):
            raise argument
