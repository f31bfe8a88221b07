"""From a loaded model to an ExportedProgram: torch.export with example inputs and dynamic axes."""

from __future__ import annotations

import contextlib
import inspect
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.export import Dim, ExportedProgram, ShapesCollection

from spdexport.errors import CaptureError, ExampleInputError, SourceError, UsageError
from spdexport.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spdexport.loading.model import ExampleInputs, LoadedModel

BATCH = "batch"


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicAxes:
    """Which axes of the inputs may change their size at run time.

    Attributes:
        batch: Whether axis 0 of all inputs that share the first input's size there is dynamic, where the model can.
        named: Further axes: input name to axis to the name that the dimension has in the file.
    """

    batch: bool = True
    named: Mapping[str, Mapping[int, str]] | None = None

    @classmethod
    def parse(cls, texts: tuple[str, ...], *, batch: bool) -> DynamicAxes:
        """Read ``NAME:AXIS=DIM`` options.

        Raises:
            UsageError: A text has another form.
        """
        named: dict[str, dict[int, str]] = {}
        for text in texts:
            match = re.fullmatch(r"([A-Za-z_]\w*):(\d+)=([A-Za-z_]\w*)", text)
            if match is None:
                raise UsageError(
                    f"{text!r} does not name a dynamic axis.",
                    where="--dynamic",
                    hint="Write NAME:AXIS=DIM, such as --dynamic x:2=height.",
                )
            named.setdefault(match[1], {})[int(match[2])] = match[3]
        return cls(batch=batch, named=named)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """A traced model.

    Attributes:
        program: The traced program, in eval mode.
        inputs: The example inputs it was traced with; None for a program that brought none.
        axes: Names of the dynamic axes: input name to axis to dimension name. Empty for a program that was loaded.
        notes: What the user should know, such as that the batch had to stay static.
    """

    program: ExportedProgram
    inputs: ExampleInputs | None
    axes: Mapping[str, Mapping[int, str]]
    notes: tuple[str, ...] = ()


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
        UsageError: A dynamic axis names no input or no axis.
    """
    inputs = inputs or loaded.inputs
    if loaded.program is not None:
        _refuse_training_program(loaded.program, loaded)
        return Captured(program=loaded.program, inputs=inputs, axes={})
    module = loaded.module
    assert module is not None, "a loaded model has a module or a program"
    if inputs is None:
        raise ExampleInputError(
            "Tracing needs example inputs, and the source brings none.",
            where=str(loaded.path or "the factory"),
            hint="Give --input-shape such as 2x3x224x224, or --inputs FILE, or return them from the factory.",
        )
    with eval_mode(module) as training:
        notes = []
        if training:
            notes.append("the model was in training mode; it is exported in eval mode")
        names = _input_names(module, inputs)
        _check_call(module, inputs)
        if isinstance(module, torch.jit.ScriptModule):
            # The converter knows positional inputs only.
            inputs = replace(inputs, args=tuple(names.values()), kwargs={})
        program, axes, traced, more = _trace(module, inputs, names, dynamic)
    return Captured(program=program, inputs=traced, axes=axes, notes=(*notes, *more))


@contextlib.contextmanager
def eval_mode(module: torch.nn.Module) -> Iterator[bool]:
    """Put a module in eval mode, and restore every submodule's own flag; gives whether any was training.

    Buffers that the module changes as it runs, such as counters, get their values back too.
    """
    flags = [(m, m.training) for m in module.modules()]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in module.buffers()]
    try:
        module.eval()
        yield any(training for _, training in flags)
    finally:
        for m, training in flags:
            m.training = training
        with torch.no_grad():
            for buffer, version, before in buffers:
                if buffer._version != version:
                    buffer.copy_(before)


def _input_names(module: torch.nn.Module, inputs: ExampleInputs) -> dict[str, torch.Tensor]:
    """The example inputs by the names that ``forward`` gives them."""
    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = module.forward.schema  # type: ignore[attr-defined]
        return dict(zip((a.name for a in schema.arguments[1:]), inputs.args, strict=False)) | dict(inputs.kwargs)
    try:
        signature = inspect.signature(module.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        raise ExampleInputError(
            f"The model does not take these inputs: {error}.",
            where=inputs.origin or "example inputs",
            hint=f"Its forward takes {inspect.signature(module.forward)}; give one input for each required argument.",
        ) from error
    named: dict[str, torch.Tensor] = {}
    for name, value in signature.arguments.items():
        kind = signature.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}_{i}": v for i, v in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def _check_call(module: torch.nn.Module, inputs: ExampleInputs) -> None:
    """Run the module once, so that inputs it cannot take are told apart from models that cannot be traced."""
    # A model may write to its inputs, and these are the caller's.
    args, kwargs = tuple(t.clone() for t in inputs.args), {name: t.clone() for name, t in inputs.kwargs.items()}
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(f"{tuple(t.shape)}:{str(t.dtype).removeprefix('torch.')}" for t in _tensors(inputs))
        raise ExampleInputError(
            f"The model fails on the example inputs {shapes}: {_first_line(error)}",
            where=inputs.origin or "example inputs",
            hint="Give inputs that the model accepts (--input-shape, --inputs, or from the factory).",
        ) from error


def _tensors(inputs: ExampleInputs) -> tuple[torch.Tensor, ...]:
    return (*inputs.args, *inputs.kwargs.values())


def _from_torchscript(module: torch.jit.ScriptModule, inputs: ExampleInputs) -> torch.nn.Module:
    """The TorchScript program as a module that torch.export can trace again; sizes of 1 become constants in it."""
    from torch._export.converter import TS2EPConverter

    try:
        with quiet():
            converted: torch.nn.Module = TS2EPConverter(module, inputs.args).convert().module()
    except Exception as error:
        raise CaptureError(
            f"The TorchScript archive cannot be converted: {_first_line(error)}",
            where="torch's TorchScript converter",
            hint="Export the original module with torch.export instead, or give its state dict and --factory.",
        ) from error
    # The converter calls inputs after TorchScript's own values (`x_1`); torch.export takes the names from here.
    names = [argument.name for argument in module.forward.schema.arguments]  # type: ignore[attr-defined]
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    type(converted).forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return converted


def _trace(
    module: torch.nn.Module, inputs: ExampleInputs, names: Mapping[str, torch.Tensor], dynamic: DynamicAxes
) -> tuple[ExportedProgram, dict[str, dict[int, str]], ExampleInputs, list[str]]:
    axes = {name: dict(found) for name, found in (dynamic.named or {}).items()}
    _check_axes(axes, names)
    if not dynamic.batch:
        return _export(module, inputs, axes, names), axes, inputs, []

    tiled, batched = _with_batch(inputs, names)
    wanted = {name: {0: BATCH} | axes.get(name, {}) for name in batched} | {
        name: found for name, found in axes.items() if name not in batched
    }
    try:
        return _export(module, tiled, wanted, names), wanted, tiled, []
    except CaptureError as error:
        program = _export(module, inputs, axes, names)
        note = f"the batch size is fixed at the example's, because the trace depends on it: {error.what}"
        return program, axes, inputs, [note]


def _check_axes(axes: Mapping[str, Mapping[int, str]], names: Mapping[str, torch.Tensor]) -> None:
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


def _with_batch(inputs: ExampleInputs, names: Mapping[str, torch.Tensor]) -> tuple[ExampleInputs, list[str]]:
    """The inputs that carry the batch, and the inputs with a batch of 1 tiled to 2.

    torch.export takes a size of 1 for a constant, so that a batch of 1 would not become dynamic.
    """
    sizes = [t.shape[0] for t in names.values() if isinstance(t, torch.Tensor) and t.ndim]
    if not sizes:
        return inputs, []
    size = sizes[0]
    batched = [n for n, t in names.items() if isinstance(t, torch.Tensor) and t.ndim and t.shape[0] == size]
    if size != 1:
        return inputs, batched
    chosen = {id(names[n]) for n in batched}

    def tile(tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat([tensor, tensor]) if id(tensor) in chosen else tensor

    return (
        replace(inputs, args=tuple(map(tile, inputs.args)), kwargs={k: tile(v) for k, v in inputs.kwargs.items()}),
        batched,
    )


def _export(
    module: torch.nn.Module,
    inputs: ExampleInputs,
    axes: Mapping[str, Mapping[int, str]],
    names: Mapping[str, torch.Tensor],
) -> ExportedProgram:
    # The same tensor given twice would be one entry of the collection, hence the copies.
    inputs = replace(
        inputs, args=tuple(t.clone() for t in inputs.args), kwargs={k: v.clone() for k, v in inputs.kwargs.items()}
    )
    by_name = dict(zip(names, inputs.args, strict=False)) | dict(inputs.kwargs)
    # The batch is one dimension of all inputs. Of the others torch finds the range that the model allows (a height of
    # at least 3, say), which a named dimension would have to state.
    batch = Dim(BATCH)
    shapes = ShapesCollection()
    for name, found in axes.items():
        shapes[by_name[name]] = {axis: batch if dim == BATCH else Dim.DYNAMIC for axis, dim in found.items()}
    if isinstance(module, torch.jit.ScriptModule):
        module = _from_torchscript(module, inputs)
    try:
        with torch.no_grad(), quiet():
            return torch.export.export(
                module,
                inputs.args,
                dict(inputs.kwargs),
                dynamic_shapes=shapes.dynamic_shapes(module, inputs.args, dict(inputs.kwargs)) if axes else None,
            )
    except Exception as error:
        raise CaptureError(
            f"torch.export cannot trace the model: {_first_line(error)}",
            where=type(module).__name__,
            hint="Try torch.export.export on the module by itself; its message says which line to change.",
        ) from error


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


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text: Any = lines[0] if lines else type(error).__name__
    return f"{type(error).__name__}: {text}" if lines else str(text)
