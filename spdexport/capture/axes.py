"""Which axes of the inputs may change their size at run time."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.export import Dim, ShapesCollection
from torch.export.graph_signature import InputKind, TensorArgument

from spdexport.errors import UsageError
from spdexport.ranges import SizeRange

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.export import ExportedProgram

    from spdexport.loading.model import ExampleInputs

BATCH = "batch"

Axes = dict[str, dict[int, str]]
"""Input name to axis to the name that the dimension has in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicAxes:
    """Which axes of the inputs may change their size at run time.

    Attributes:
        batch: Whether axis 0 of all inputs that share the first input's size there is dynamic, where the model can.
        named: Further axes: input name to axis to the name that the dimension has in the file. An input inside of
            another one is called after its path, such as ``batch_image`` or ``frames_0``.
        ranges: Sizes that these are to have, where that is asked for.
    """

    batch: bool = True
    named: Mapping[str, Mapping[int, str]] | None = None
    ranges: Mapping[str, Mapping[int, SizeRange]] = field(default_factory=dict)

    @classmethod
    def parse(cls, texts: tuple[str, ...], *, batch: bool) -> DynamicAxes:
        """Read ``NAME:AXIS=DIM`` options, with ``:LEAST..MOST`` behind for sizes that are to be.

        Raises:
            UsageError: A text has another form.
        """
        named: Axes = {}
        ranges: dict[str, dict[int, SizeRange]] = {}
        for text in texts:
            match = re.fullmatch(r"([A-Za-z_]\w*):(\d+)=([A-Za-z_]\w*)(?::(\d{1,9})\.\.(\d{1,9}))?", text)
            if match is None or (match[4] and int(match[4]) > int(match[5])):
                raise UsageError(
                    f"{text!r} does not name a dynamic axis.",
                    where="--dynamic",
                    hint="Write NAME:AXIS=DIM, such as --dynamic x:2=height, or with its sizes x:2=height:16..512.",
                )
            named.setdefault(match[1], {})[int(match[2])] = match[3]
            if match[4]:
                ranges.setdefault(match[1], {})[int(match[2])] = SizeRange(least=int(match[4]), most=int(match[5]))
        return cls(batch=batch, named=named, ranges=ranges)


def check_axes(axes: Mapping[str, Mapping[int, str]], names: Mapping[str, torch.Tensor]) -> None:
    """Refuse axes that the inputs do not have.

    Raises:
        UsageError: Names the input and the axis.
    """
    for name, found in axes.items():
        if name not in names:
            raise UsageError(
                f"There is no input named {name!r}.", where="--dynamic", hint=f"The inputs are {', '.join(names)}."
            )
        for axis in found:
            if axis >= names[name].ndim:
                raise UsageError(
                    f"Input {name!r} has {names[name].ndim} axes, so there is no axis {axis}.",
                    where="--dynamic",
                    hint="Axes count from 0.",
                )


def with_batch(inputs: ExampleInputs, names: Mapping[str, torch.Tensor]) -> tuple[ExampleInputs, list[str]]:
    """Return the inputs with a batch of 1 tiled to 2, and the names of the inputs that carry the batch.

    torch.export takes a size of 1 for a constant, so that a batch of 1 would not become dynamic.
    """
    sizes = [t.shape[0] for t in names.values() if t.ndim]
    if not sizes:
        return inputs, []
    size = sizes[0]
    batched = [n for n, t in names.items() if t.ndim and t.shape[0] == size]
    if size != 1:
        return inputs, batched
    chosen = {id(names[n]) for n in batched}
    tiled = [torch.cat([t, t]) if id(t) in chosen else t for t in inputs.tensors()]
    return inputs.with_tensors(tiled), batched


def dynamic_shapes(
    module: torch.nn.Module,
    inputs: ExampleInputs,
    axes: Mapping[str, Mapping[int, str]],
    names: Mapping[str, torch.Tensor],
) -> Any:
    """Return what torch.export takes as ``dynamic_shapes``; None for no dynamic axis.

    Args:
        module: The module.
        inputs: Its inputs, no tensor of which is there twice.
        axes: The dynamic axes.
        names: The tensors of these very inputs by name.
    """
    if not axes:
        return None
    # The batch is one dimension of all inputs. Of the others torch finds the range that the model allows (a height of
    # at least 3, say), which a named dimension would have to state.
    batch = Dim(BATCH)
    shapes = ShapesCollection()
    for name, found in axes.items():
        shapes[names[name]] = {axis: batch if dim == BATCH else Dim.DYNAMIC for axis, dim in found.items()}
    return shapes.dynamic_shapes(module, inputs.args, dict(inputs.kwargs))


def tensor_inputs(program: ExportedProgram) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names and fake values of a program's own inputs, as far as they are tensors."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument):
            yield spec.arg.name, values[spec.arg.name]
