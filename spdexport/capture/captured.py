"""The captured model: a loaded module traced, or a loaded program as it is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch.utils import _pytree as pytree

from spdexport.capture.axes import tensor_inputs
from spdexport.capture.call import bound_arguments, check_call, described, eval_mode
from spdexport.capture.ranges import axis_ranges, check_asked
from spdexport.capture.trace import trace
from spdexport.errors import CaptureError, ExampleInputError, SourceError, UsageError
from spdexport.loading.guessing import blanks_in, shape_like, shape_that_runs
from spdexport.ranges import told

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.export import ExportedProgram

    from spdexport.capture.axes import DynamicAxes
    from spdexport.loading.model import ExampleInputs, LoadedModel
    from spdexport.ranges import Ranges


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """A traced model.

    Attributes:
        program: The traced program, in eval mode.
        inputs: The example inputs it was traced with; None for a program that brought none.
        axes: Names of the dynamic axes: input name to axis to dimension name. Empty for a program that was loaded.
        notes: What the user should know, such as that the batch had to stay static.
        ranges: The sizes that the trace holds for, of dynamic axes that have a limit.
    """

    program: ExportedProgram
    inputs: ExampleInputs | None
    axes: Mapping[str, Mapping[int, str]]
    notes: tuple[str, ...] = ()
    ranges: Ranges = field(default_factory=dict)


def capture(loaded: LoadedModel, inputs: ExampleInputs | None, dynamic: DynamicAxes) -> Captured:
    """Trace the loaded module, or take the loaded program as it is.

    The caller's module is not changed: it is in eval mode for the trace only.

    Args:
        loaded: What loading gave.
        inputs: Example inputs of the user's; where None, those that the source brought.
        dynamic: The axes that may change at run time; a loaded program keeps its own.

    Raises:
        ExampleInputError: There are no example inputs, or the module cannot be called with them.
        CaptureError: torch.export cannot trace the module.
        SourceError: A loaded program was captured in training mode.
        UsageError: A dynamic axis names no input or no axis, or is asked of a loaded program.
    """
    inputs = inputs or loaded.inputs
    if loaded.program is not None:
        _refuse_training_program(loaded.program, loaded)
        if dynamic.named:
            raise UsageError(
                "The source is a program that was traced already: its dynamic axes are what they are.",
                where="--dynamic",
                hint="Leave the option out, or trace the program again with torch.export.",
            )
        return _with_ranges(Captured(program=loaded.program, inputs=_as_traced(loaded.program, inputs), axes={}))
    module = loaded.module
    assert module is not None, "a loaded model has a module or a program"
    _refuse_quantized(module)
    if inputs is None:
        raise _without_inputs(loaded, module)
    # The same tensor may be given twice, and is two inputs then.
    inputs = inputs.copied()
    with eval_mode(module) as training:
        notes = []
        # Of a module that a factory has just made it says nothing.
        if training and loaded.kind in ("module", "pickle"):
            notes.append("the model was in training mode; it is exported in eval mode")
        arguments = bound_arguments(module, inputs)
        check_call(module, inputs)
        if isinstance(module, torch.jit.ScriptModule):
            # The converter knows positional inputs only.
            inputs = replace(inputs, args=tuple(arguments.values()), kwargs={})
        traced = trace(module, inputs, dynamic)
    fixed = [leaf for leaf in pytree.tree_leaves((inputs.args, dict(inputs.kwargs))) if _is_constant(leaf)]
    if fixed:
        notes.append(f"inputs that are no tensors keep the example's value: {', '.join(map(repr, fixed))}")
    found = Captured(program=traced.program, inputs=traced.inputs, axes=traced.axes, notes=(*notes, *traced.notes))
    captured = _with_ranges(found)
    check_asked(dynamic.ranges, captured.ranges)
    return captured


def _without_inputs(loaded: LoadedModel, module: torch.nn.Module) -> ExampleInputError:
    runs = shape_that_runs(module)
    shape = runs or shape_like(module.state_dict())
    told = f"{shape}, which is one that the model runs on" if runs else f"{shape} with sizes that the model takes"
    error = ExampleInputError(
        "Tracing needs example inputs, and the source brings none.",
        where=str(loaded.path or "the factory"),
        hint=f"Give --input-shape, such as {told}, or --inputs FILE, or return them from the factory.",
    )
    error.missing, error.blanks = ("--input-shape", shape), tuple(blanks_in(shape))
    return error


def _with_ranges(captured: Captured) -> Captured:
    """The same with the sizes that the trace holds for, which the user should know."""
    ranges = axis_ranges(captured.program)
    return replace(captured, ranges=ranges, notes=(*captured.notes, *told(ranges)))


def _is_constant(leaf: object) -> bool:
    return leaf is not None and not isinstance(leaf, torch.Tensor)


def _as_traced(program: ExportedProgram, inputs: ExampleInputs | None) -> ExampleInputs | None:
    """The inputs with keywords in the program's own order.

    Raises:
        ExampleInputError: The program takes inputs of another structure, dtype or size.
    """
    if inputs is None:
        return None
    names = list(program.call_spec.in_spec.children()[1].context)
    kwargs = dict(inputs.kwargs)
    if set(kwargs) == set(names):
        inputs = replace(inputs, kwargs={name: kwargs[name] for name in names})
    where = inputs.origin or "example inputs"
    taken, tensors = list(tensor_inputs(program)), inputs.tensors()
    structure = pytree.tree_structure((inputs.args, dict(inputs.kwargs)))
    if structure != program.call_spec.in_spec or len(taken) != len(tensors):
        positions = program.call_spec.in_spec.children()[0].num_children
        takes, given = _counted(positions, names), _counted(len(inputs.args), list(kwargs))
        raise ExampleInputError(
            f"The program takes {takes}, and is given {given}, or inputs nested in another way.",
            where=where,
            hint="Give the inputs as the program was exported with them: the same positions, keywords and nesting.",
        )
    for (name, fake), tensor in zip(taken, tensors, strict=True):
        if not _fits(tensor, fake):
            raise ExampleInputError(
                f"The program's input {name} is {described(fake)}, and is given {described(tensor)}.",
                where=where,
                hint="Give an input of that shape and dtype, or export the program again with these inputs.",
            )
    return inputs


def _counted(positions: int, names: list[str]) -> str:
    return f"{positions} positional inputs" + (f" and {', '.join(names)}" if names else "")


def _fits(tensor: torch.Tensor, fake: torch.Tensor) -> bool:
    sizes = zip(tensor.shape, fake.shape, strict=True) if tensor.ndim == fake.ndim else [(0, 1)]
    return tensor.dtype is fake.dtype and all(isinstance(b, torch.SymInt) or a == b for a, b in sizes)


def _refuse_quantized(module: torch.nn.Module) -> None:
    """Refuse layers whose weights are packed in objects that torch.export does not know, by their name."""
    for name, layer in module.named_modules():
        if hasattr(layer, "_packed_params") and ".quantized." in type(layer).__module__:
            raise CaptureError(
                f"The layer {name or 'of the model'} is quantized ({type(layer).__name__}), and torch.export "
                "cannot trace its packed weights.",
                where=name or type(layer).__name__,
                hint="Give the model as it was before quantization.",
            )


def _refuse_training_program(program: ExportedProgram, loaded: LoadedModel) -> None:
    """Refuse a program with batch norm or dropout in training mode; the exporter would make it inference, silently."""
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        target = str(node.target)
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        arguments = dict(zip([a.name for a in schema.arguments], node.args, strict=False)) | dict(node.kwargs)
        training = arguments.get("training", arguments.get("train"))
        if training is True and any(word in target for word in ("batch_norm", "dropout", "rnn", "lstm", "gru")):
            raise SourceError(
                f"The program was captured in training mode: {target} has training=True.",
                where=f"{loaded.path or 'the program'}, node {node.name}",
                hint="Call module.eval() before torch.export.export, and save the program again.",
            )
