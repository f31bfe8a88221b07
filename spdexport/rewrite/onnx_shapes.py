"""The sizes of the values of an ONNX graph, as far as the file, or inputs, tell them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from spdexport.quiet import heard
from spdexport.rewrite.onnx_edit import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.conv import Array

BATCH = "batch"
"""What an unnamed batch axis is called."""

PROBE = 7919
"""A batch that no other size of a model is likely to be, to see which values have it too."""


def value_sizes(model: ir.Model, given: Mapping[str, Array] | None) -> dict[str, tuple[int, ...]]:
    """Return the sizes of a model's values by name, as far as they are numbers; a batch counts as 1.

    Args:
        model: The model; it is not changed.
        given: Inputs by name, whose sizes are taken, or None.
    """
    shapes = _inferred(model, {name: array.shape for name, array in (given or {}).items()})
    sizes = {}
    for name, dims in shapes.items():
        known = [1, *dims[1:]] if dims else []
        if all(isinstance(d, int) for d in known):
            sizes[name] = tuple(d for d in known if isinstance(d, int))
    return sizes


def live_sizes(model: ir.Model, given: Mapping[str, Array] | None) -> dict[str, tuple[Any, ...]]:
    """Return the sizes of a model's values by name: numbers, names of axes, or ``UNKNOWN``.

    Shape inference loses the batch where a file reshapes; with a number in its place it is found again.

    Args:
        model: The model; it is not changed.
        given: Inputs by name, whose sizes are taken where the file leaves axes other than the batch open, or None.
    """
    first = next((value for value in model.graph.inputs if not value.is_initializer() and value.shape), None)
    if first is None or first.shape is None:
        return {}
    size = _size(first.shape[0])
    batch = size or BATCH
    named = {} if size else {first.name or "": (BATCH, *map(_size, first.shape[1:]))}
    symbolic = _inferred(model, named)
    probed = {name: _probed(shape, batch, given, name) for name, shape in _inputs(model, named).items()}
    counted = _inferred(model, probed)
    is_fixed = all(isinstance(s, int) for shape in _inputs(model, named).values() for s in shape[1:])
    found: dict[str, tuple[Any, ...]] = {}
    for name in symbolic.keys() | counted.keys():
        own, probe = symbolic.get(name), counted.get(name)
        shape = own if own is not None else probe
        assert shape is not None, "one of the two has it"
        is_alike = probe is not None and len(probe) == len(shape)
        numbers = [d if isinstance(d, int) else None for d in probe or ()] if is_alike else [None] * len(shape)
        sizes: list[Any] = []
        for axis, (dim, number) in enumerate(zip(shape, numbers, strict=True)):
            if axis == 0 and number is not None and number % PROBE == 0:
                sizes.append(batch if number == PROBE else f"{number // PROBE}*{batch}")
            elif dim is not None:
                sizes.append(dim)
            else:
                sizes.append(UNKNOWN if number is None or (axis and not is_fixed) else number)
        found[name] = tuple(sizes)
    return found


def _inputs(model: ir.Model, named: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    own = (v for v in model.graph.inputs if not v.is_initializer() and v.shape is not None)
    return {v.name or "": named.get(v.name or "", tuple(map(_size, v.shape or ()))) for v in own}


def _probed(shape: tuple[Any, ...], batch: Any, given: Mapping[str, Array] | None, name: str) -> tuple[Any, ...]:
    """An input's sizes with a number for the batch, and those of inputs that are given."""
    sizes: tuple[Any, ...] = shape
    if given is not None and name in given and given[name].ndim == len(shape):
        sizes = tuple(own if isinstance(own, int) else int(n) for own, n in zip(shape, given[name].shape, strict=True))
    is_open = bool(shape) and shape[0] == batch and not isinstance(batch, int)
    return (PROBE, *sizes[1:]) if is_open else sizes


def _inferred(model: ir.Model, shapes: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[int | str | None, ...]]:
    """The sizes of values, with inputs of these shapes.

    Bodies beside each other may have values of one name: where their sizes differ, they are not known.
    """
    model = model.clone()
    for value in model.graph.inputs:
        if (shape := shapes.get(value.name or "")) is not None:
            value.shape = ir.Shape(shape)
    with heard("onnx_ir.passes.common"):
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    found: dict[str, tuple[int | str | None, ...]] = {}
    unlike: set[str] = set()
    for graph in model.graphs():
        for value in (*graph.inputs, *(v for node in graph for v in node.outputs)):
            if value.name is not None and value.shape is not None:
                sizes = tuple(map(_size, value.shape))
                if found.setdefault(value.name, sizes) != sizes:
                    unlike.add(value.name)
    return {name: sizes for name, sizes in found.items() if name not in unlike}


def _size(dim: int | ir.SymbolicDim) -> int | str | None:
    """A number or a name; what shape inference calls ``unk__3`` is not known."""
    if isinstance(dim, int):
        return dim
    return None if dim.value is None or dim.value.startswith("unk__") else dim.value or None
