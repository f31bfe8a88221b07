"""Which layer a node of a file belongs to, for reports alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.export import name_scopes

if TYPE_CHECKING:
    import onnx_ir as ir


def layer_of(node: ir.Node) -> str:
    """The layer whose weight the node reads; else the module path that the exporter recorded; else the node's name."""
    paths = [s for s in name_scopes(node)[:-1] if s]
    return layer_of_weight(node) or (paths[-1] if paths else node.name or node.op_type)


def layer_of_weight(node: ir.Node) -> str:
    """The layer whose weight the node reads, by the weight's name; empty where no weight has such a name.

    A convolution that a batch norm was folded into has the scope of the batch norm: its weight has the better name.
    """
    for value in node.inputs:
        if value is not None and value.is_initializer() and "." in (value.name or ""):
            return str(value.name).rpartition(".")[0]
    return ""
