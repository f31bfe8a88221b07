"""Tracing a module, in the first of several ways that works."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from spdexport.capture.attention import PlainAttention
from spdexport.capture.axes import BATCH, Axes, DynamicAxes, check_axes, dynamic_shapes, with_batch
from spdexport.capture.call import bound_arguments, first_line
from spdexport.capture.scalars import constant_scalars, has_scalars
from spdexport.errors import CaptureError
from spdexport.loading.model import named_tensors
from spdexport.quiet import quiet

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from spdexport.loading.model import ExampleInputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traced:
    """A program and how it came about.

    Attributes:
        program: The program.
        inputs: What it was traced with.
        axes: The dynamic axes that it has.
        notes: What had to be given up for it.
    """

    program: ExportedProgram
    inputs: ExampleInputs
    axes: Axes
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Way:
    inputs: ExampleInputs
    axes: Axes
    strict: bool = False
    scalars: bool = False


def trace(module: torch.nn.Module, inputs: ExampleInputs, dynamic: DynamicAxes) -> Traced:
    """Trace a module in eval mode.

    Tried in turn: with a dynamic batch, where that is wanted; with a fixed one; and both again with torch's symbolic
    evaluation of the module's bytecode (``strict``), which traces some modules that running it does not, and with
    integer buffers of one number as constants (``constant_scalars``).

    Args:
        module: The module.
        inputs: Its inputs, no tensor of which is there twice.
        dynamic: The axes that may change at run time.

    Raises:
        UsageError: A dynamic axis names no input or no axis.
        CaptureError: No way works; tells what is wrong with the least demanding of them.
    """
    axes = {name: dict(found) for name, found in (dynamic.named or {}).items()}
    names = named_tensors(bound_arguments(module, inputs))
    check_axes(axes, names)
    ways = [_Way(inputs=inputs, axes=axes)]
    if dynamic.batch:
        tiled, batched = with_batch(inputs, names)
        wanted = {name: {0: BATCH} | axes.get(name, {}) for name in batched}
        wanted |= {name: found for name, found in axes.items() if name not in batched}
        ways.insert(0, _Way(inputs=tiled, axes=wanted))
    if not isinstance(module, torch.jit.ScriptModule):
        plain = tuple(ways)
        ways += [replace(way, strict=True) for way in plain]
        if has_scalars(module):
            ways += [replace(way, scalars=True) for way in plain]
    failures: list[CaptureError] = []
    for way in ways:
        try:
            program, scalars = _traced(module, way)
        except CaptureError as error:
            failures.append(error)
            continue
        notes = []
        if scalars:
            why = f"the trace fails otherwise: {failures[0].what}" if way.scalars else "sizes are computed from them"
            notes.append(f"buffers of one integer are constants, because {why}")
        if way.strict:
            notes.append(f"traced by torch's strict mode, because the other one fails: {failures[0].what}")
        elif failures and not way.scalars:
            notes.append(
                f"the batch size is fixed at the example's, because the trace depends on it: {failures[0].what}"
            )
        if (way.strict or way.scalars) and dynamic.batch and way.axes is axes:
            notes.append("the batch size is fixed at the example's, because the trace depends on it")
        return Traced(program=program, inputs=way.inputs, axes=way.axes, notes=tuple(notes))
    raise next(e for e, way in zip(failures, ways, strict=True) if way.axes is axes)


def _traced(module: torch.nn.Module, way: _Way) -> tuple[ExportedProgram, bool]:
    """The program, and whether integer buffers of one number are constants in it.

    They are made so where sizes would be read from them at run time, which the exporter does not always survive.
    """
    program = _export(module, way)
    if way.scalars or not (_reads_numbers(program) and has_scalars(module)):
        return program, way.scalars
    try:
        return _export(module, replace(way, scalars=True)), True
    except CaptureError:  # they are changed, say: the program that there is stays as good as it was
        return program, False


def _reads_numbers(program: ExportedProgram) -> bool:
    """Whether the program makes Python numbers of tensors, as data-dependent sizes are made."""
    return any(node.target is torch.ops.aten.item.default for node in program.graph.nodes)


def _export(module: torch.nn.Module, way: _Way) -> ExportedProgram:
    # A trace may write to its inputs, and torch.export keeps these as the program's example.
    inputs = way.inputs.copied()
    names = named_tensors(bound_arguments(module, inputs))
    if isinstance(module, torch.jit.ScriptModule):
        module = _from_torchscript(module, inputs)
    try:
        scalars = constant_scalars(module) if way.scalars else nullcontext()
        with torch.no_grad(), quiet(), PlainAttention(), scalars:
            return torch.export.export(
                module,
                inputs.args,
                dict(inputs.kwargs),
                dynamic_shapes=dynamic_shapes(module, inputs, way.axes, names),
                strict=way.strict,
            )
    # The tracer runs the module, and either may raise anything.
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot trace the model: {first_line(error)}",
            where=type(module).__name__,
            hint="Try torch.export.export on the module by itself; its message says which line to change.",
        ) from error


def _from_torchscript(module: torch.jit.ScriptModule, inputs: ExampleInputs) -> torch.nn.Module:
    """The TorchScript program as a module that torch.export can trace again; sizes of 1 become constants in it."""
    from torch._export.converter import TS2EPConverter

    try:
        with quiet():
            converted: torch.nn.Module = TS2EPConverter(module, inputs.args).convert().module()
    # The converter raises whatever it trips over.
    except Exception as error:
        raise CaptureError(
            f"The TorchScript archive cannot be converted: {first_line(error)}",
            where="torch's TorchScript converter",
            hint="Export the original module with torch.export instead, or give its state dict and --factory.",
        ) from error
    # The converter calls inputs after TorchScript's own values (`x_1`); torch.export takes the names from here.
    names = [argument.name for argument in module.forward.schema.arguments]  # type: ignore[attr-defined]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    type(converted).forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return converted
