"""What to call a layer of an ONNX graph. Nothing is recognized by these names."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from spdexport.names import layer_of_parameter
from spdexport.rewrite.onnx_constants import source_of

if TYPE_CHECKING:
    import onnx_ir as ir

    from spdexport.rewrite.onnx_graph import OnnxStage


def layer_name(layers: tuple[OnnxStage, ...], bias: ir.Value | None) -> str:
    """Return what to call the layer that a chain stands for.

    The parent of the initializer that holds the last weight: ``conv1`` for ``conv1.U`` and ``conv1.U.weight``. Where
    that has no dot (the exporter calls a transposed weight ``val_3``), the parent of the bias, then of the other
    weights, then the module path that torch's exporter notes; else the name of the last node.

    Args:
        layers: The layers of the chain, U last.
        bias: The value that holds the chain's bias, or None.
    """
    last, *others = (_initializer_name(layer.weight) for layer in reversed(layers))
    for name in (last, _initializer_name(bias), *others):
        if "." in name:
            return layer_of_parameter(name)
    for layer in reversed(layers):
        scopes = name_scopes(layer.node)
        if len(scopes) > 1 and scopes[-2]:
            return layer_of_parameter(f"{scopes[-2]}.weight")
    return node_name(layers[-1].node)


def _initializer_name(value: ir.Value | None) -> str:
    """The name of the initializer that a constant is made of, or ``""``."""
    source = source_of(value)
    return (source.name or "") if source is not None and source.is_initializer() else ""


def name_scopes(node: ir.Node) -> list[str]:
    """Return the module paths around a node, outermost first, as torch's exporter writes them; empty if it did not."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    except (ValueError, SyntaxError):
        return []
    return [str(scope) for scope in scopes] if isinstance(scopes, list) else []


def node_name(node: ir.Node) -> str:
    """Return the node's name; for a node without one, its output's."""
    return node.name or node.outputs[0].name or node.op_type
