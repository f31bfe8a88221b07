"""The inputs that an ONNX model has beside its own: their names, and the ones that an omitted one stands for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.forms import LiveInput


def name_inputs(model: ir.Model, inputs: Sequence[LiveInput], *, required: bool) -> None:
    """Call the inputs ``mask/<layer>`` and so on, and give each a default of ones.

    The default has one sample, whatever the batch: an initializer of shape (1, C) behind the input, which multiplying
    broadcasts. ONNX Runtime calls that an overridable initializer. The batch axis of such an input has a symbol of its
    own: were it the model's, ONNX Runtime would take the buffer of a value of one sample for one of the whole batch.

    Args:
        model: The exported model, whose last inputs are these, under their keywords.
        inputs: What they are, in any order.
        required: Whether to leave the default out.
    """
    values = {value.name: value for value in model.graph.inputs}
    for wanted in inputs:
        value = values[wanted.keyword]
        value.name = wanted.name
        if not required:
            _give_default(model, value, wanted)


def _give_default(model: ir.Model, value: ir.Value, wanted: LiveInput) -> None:
    assert value.shape is not None, "the exporter knows the shape of every input"
    assert value.dtype is not None, "and its dtype"
    ones = np.ones([size if isinstance(size, int) else 1 for size in value.shape], dtype=value.dtype.numpy())
    value.const_value = ir.tensor(ones, dtype=value.dtype, name=wanted.name)
    model.graph.register_initializer(value)
    if not isinstance(value.shape[0], int):
        _rename_batch(value, ir.SymbolicDim(f"batch_or_1_{wanted.keyword}"))


def _rename_batch(value: ir.Value, symbol: ir.SymbolicDim) -> None:
    """Give axis 0 of a value, and of all that is computed from it and constants alone, its own symbol."""
    if value.shape is not None:
        value.shape = ir.Shape([symbol, *list(value.shape)[1:]])
    for node, _ in value.uses():
        others = [source for source in node.inputs if source is not None and source is not value]
        if all(source.const_value is not None and not source.is_graph_input() for source in others):
            for output in node.outputs:
                _rename_batch(output, symbol)
