"""Calling a module with example inputs: the names of its inputs, eval mode, and what it returns."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from spdexport.errors import ExampleInputError
from spdexport.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spdexport.loading.model import ExampleInputs


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


def bound_arguments(module: torch.nn.Module, inputs: ExampleInputs) -> dict[str, Any]:
    """The example inputs by the names that ``forward`` gives them, each as it was given.

    Raises:
        ExampleInputError: They do not fit its signature.
    """
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
    named: dict[str, Any] = {}
    for name, value in signature.arguments.items():
        kind = signature.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}_{i}": v for i, v in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def unheard(module: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return what keeps away the warnings of a module that came as TorchScript: their texts are those of a file."""
    return quiet() if isinstance(module, torch.jit.ScriptModule) else contextlib.nullcontext()


def check_call(module: torch.nn.Module, inputs: ExampleInputs) -> None:
    """Run the module once, so that inputs it cannot take are told apart from models that cannot be traced.

    Dataclasses that it returns are made known to torch, which otherwise refuses to trace a module that returns one.
    """
    # A model may write to its inputs.
    given = inputs.copied()
    try:
        with torch.no_grad(), unheard(module):
            result = module(*given.args, **given.kwargs)
    # A module may raise anything; that it does is the fault of its inputs, or shows that it cannot run at all.
    except Exception as error:
        shapes = ", ".join(map(described, inputs.tensors()))
        raise ExampleInputError(
            f"The model fails on the example inputs {shapes}: {first_line(error)}",
            where=inputs.origin or "example inputs",
            hint="Give inputs that the model accepts (--input-shape, --inputs, or from the factory).",
        ) from error
    _register_dataclasses(result)


def _register_dataclasses(value: Any) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value) not in pytree.SUPPORTED_NODES:
            torch.export.register_dataclass(type(value))
        for field in dataclasses.fields(value):
            _register_dataclasses(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for part in value.values():
            _register_dataclasses(part)
    elif isinstance(value, list | tuple):
        for part in value:
            _register_dataclasses(part)


def described(tensor: torch.Tensor) -> str:
    """Shape and dtype as ``--input-shape`` takes them, ``2x3x8x8:float32``; ``*`` for a size that may be any."""
    sizes = "x".join("*" if isinstance(size, torch.SymInt) else str(size) for size in tensor.shape)
    return f"{sizes or 'scalar'}:{str(tensor.dtype).removeprefix('torch.')}"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
