"""The example inputs that a model is traced with: those that are given, else those that it keeps or that work."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from spdexport.errors import ExampleInputError
from spdexport.loading.guessing import kept_inputs, work_out_inputs
from spdexport.loading.inputs import check_shapes, inputs_from_file, inputs_from_shapes
from spdexport.loading.model import LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.loading import ExampleInputs, LoadedModel
    from spdexport.options import Options


def inputs_of(
    options: Options, loaded: LoadedModel, shapes: Sequence[str]
) -> tuple[ExampleInputs | None, tuple[str, ...]]:
    """Return the inputs to trace a model with, beside those that it was loaded with, and notes on those worked out.

    Args:
        options: What the user gave.
        loaded: The model.
        shapes: Of inputs that are known to fit, as ``--input-shape`` has them; empty for none.
    """
    inputs = _with_labels(example_inputs(options), loaded)
    if inputs is not None or loaded.inputs is not None or loaded.module is None:
        return inputs, ()
    inputs = kept_inputs(loaded.module)
    if inputs is not None:
        return inputs, ()
    found = work_out_inputs(loaded.module, shapes=shapes, seed=options.seed)
    return (None, ()) if found is None else (found[0], (found[1],))


def example_inputs(options: Options) -> ExampleInputs | None:
    """Return the example inputs that the options give: a file's, a caller's, or ones of the shapes given.

    None for none.
    """
    if options.inputs is None:
        return inputs_from_shapes(options.input_shape, options.seed) if options.input_shape else None
    inputs = inputs_from_file(options.inputs) if isinstance(options.inputs, Path) else options.inputs
    check_shapes(inputs, options.input_shape)
    return inputs


def _with_labels(inputs: ExampleInputs | None, loaded: LoadedModel) -> ExampleInputs | None:
    """The inputs with their labels as an input, where the model takes one of that name; else the labels are checked."""
    if inputs is None or inputs.labels is None:
        return inputs
    if loaded.program is not None:
        names = loaded.program.call_spec.in_spec.children()[1].context
    else:
        names = list(inspect.signature(loaded.module.forward).parameters) if loaded.module is not None else []
    if LABELS in names:
        return inputs.with_labels_as_input()
    check_labels(inputs)
    return inputs


def check_labels(inputs: ExampleInputs) -> None:
    """Refuse labels that are not one class for each sample.

    Raises:
        ExampleInputError: Says what they are instead.
    """
    labels, first = inputs.labels, next((t for t in inputs.tensors() if t.ndim), None)
    if labels is None:
        return
    is_class = not (labels.is_floating_point() or labels.is_complex())
    if not is_class or labels.ndim != 1 or (first is not None and labels.shape[0] != first.shape[0]):
        batch = "" if first is None else f", of {first.shape[0]} samples"
        raise ExampleInputError(
            f"The labels are {str(labels.dtype).removeprefix('torch.')} of shape {tuple(labels.shape)}.",
            where=f"{inputs.origin}, labels",
            hint=f"Save one whole number for each sample{batch}, or leave them out.",
        )
