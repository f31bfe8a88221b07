"""Which layer a node of a file belongs to, for reports alone, and how a layer is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.rewrite.onnx_names import name_scopes
from spdexport.verification.compare import FACTOR
from spdexport.verification.result import LayerResult, Status

if TYPE_CHECKING:
    import onnx_ir as ir


def layer_of(node: ir.Node) -> str:
    """Return the layer whose weight the node reads; else the module path that the exporter recorded.

    Else the node's name.

    A node without a name has that of its first output, as there may be many of its operator.
    """
    paths = [s for s in name_scopes(node)[:-1] if s]
    return layer_of_weight(node) or (paths[-1] if paths else node.name or node.outputs[0].name or node.op_type)


def layer_of_weight(node: ir.Node) -> str:
    """Return the layer whose weight the node reads, by the weight's name; empty where no weight has such a name.

    A convolution that a batch norm was folded into has the scope of the batch norm: its weight has the better name.
    """
    for value in node.inputs:
        if value is not None and value.is_initializer() and "." in (value.name or ""):
            return str(value.name).rpartition(".")[0]
    return ""


def layer_at(node: ir.Node) -> str:
    """Return the layer that the node belongs to.

    For one without a name of the model's, the first that its value goes into.

    Empty where there is none.
    """
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop(0)
        paths = [s for s in name_scopes(current)[:-1] if s]
        layer = layer_of_weight(current) or (paths[-1] if paths else "")
        if layer:
            return layer
        for use in (use for value in current.outputs for use in value.uses()):
            if use.node not in seen:
                seen.add(use.node)
                waiting.append(use.node)
    return ""


def judged(name: str, weights: float | None, output: float | None, bound: float | None) -> LayerResult:
    """Return a layer with its status: it fails where a ratio is above the factor, or is not a number."""
    known = [ratio for ratio in (weights, output) if ratio is not None]
    status = Status.NOT_RUN if not known else Status.PASS
    if not all(ratio <= FACTOR for ratio in known):
        status = Status.FAIL
    return LayerResult(name=name, status=status, weights_ratio=weights, output_ratio=output, bound=bound)
