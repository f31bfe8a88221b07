"""Which models can be stored in fewer bits, and that one cannot, which is told where it was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import onnx


class Unstorable(Exception):  # noqa: N818 - a fact about the model, which the caller makes an error of if it is one
    """A model's numbers cannot be stored as asked; its text says why, in a clause about the model."""


def in_memory(model: ir.Model, who: str) -> onnx.ModelProto:
    """Return a model as its file has it, with all weights in it.

    Args:
        model: The model.
        who: What is to change it, for messages.

    Raises:
        Unstorable: It has graphs inside of graphs, or functions.
    """
    if len(list(model.graphs())) > 1 or model.functions:
        raise Unstorable(f"it has bodies of If, Loop or Scan, or local functions, which {who} leaves out")
    if any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values()):
        model = ir.external_data.load_to_model(model.clone())
    return ir.to_proto(model)
