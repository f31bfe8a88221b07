"""Calling a module with example inputs: the names of its inputs, eval mode, and what it returns."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from spdexport.errors import ExampleInputError
from spdexport.loading.guessing import shape_that_runs
from spdexport.loading.inputs import SHAPE
from spdexport.names import CLASSES
from spdexport.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spdexport.loading.model import ExampleInputs


@contextlib.contextmanager
def eval_mode(module: torch.nn.Module) -> Iterator[bool]:
    """Put a module in eval mode, and restore every submodule's own flag; gives whether any was training."""
    flags = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        yield any(training for _, training in flags)
    finally:
        for m, training in flags:
            m.training = training


def call_module(
    module: torch.nn.Module, inputs: ExampleInputs, replaced: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """Call a module in eval mode, and leave it as it was: what it writes into its parameters and buffers is taken back.

    Args:
        module: The module, which may raise anything.
        inputs: Its inputs; it gets copies of them.
        replaced: Parameters to use in the place of its own, by name; one that another part shares is not exchanged
            there.

    Returns:
        What the module returns, without gradients.
    """
    given = inputs.copied()
    with eval_mode(module), torch.no_grad(), _unheard(module), _WritesUndone(module) as writes:
        if replaced:
            result = torch.func.functional_call(
                module, dict(replaced), given.args, dict(given.kwargs), tie_weights=False
            )
        else:
            result = module(*given.args, **given.kwargs)
        # What is given out may be what is taken back.
        return pytree.tree_map_only(torch.Tensor, torch.clone, result) if writes.saved else result


class _WritesUndone(TorchDispatchMode):
    """Copies a module's parameter or buffer before the first operator that writes to its memory, and copies it back.

    Operators that run graphs (``torch.cond``, ``while_loop``) come here as well; torch refuses graphs that write to
    what they are given.
    """

    supports_higher_order_operators = True

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.saved: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._own: dict[int, list[torch.Tensor]] = {}
        for tensor in chain(module.parameters(), module.buffers()):
            self._own.setdefault(_memory(tensor), []).append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and func._schema.is_mutable:
            for value in pytree.tree_leaves((args, kwargs)):
                for tensor in self._own.pop(_memory(value), ()) if isinstance(value, torch.Tensor) else ():
                    self.saved.append((tensor, tensor.detach().clone()))
        return func(*args, **kwargs)

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for tensor, before in self.saved:
                tensor.copy_(before)


def _memory(tensor: torch.Tensor) -> int:
    """Return the address of the memory that a tensor is a view of."""
    return tensor.untyped_storage().data_ptr()


def bound_arguments(module: torch.nn.Module, inputs: ExampleInputs) -> dict[str, Any]:
    """Return the example inputs by the names that ``forward`` gives them, each as it was given.

    Raises:
        ExampleInputError: They do not fit its signature.
    """
    if isinstance(module, torch.jit.ScriptModule):
        schema: Any = module.forward.schema  # type: ignore[attr-defined]
        return dict(zip((a.name for a in schema.arguments[1:]), inputs.args, strict=False)) | dict(inputs.kwargs)
    try:
        bound = inspect.signature(module.forward).bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        signature = inspect.signature(module.forward)
        hint = f"Its forward takes {signature}; give one input for each required argument."
        if inputs.kwargs.keys() - signature.parameters.keys():
            hint += f" {CLASSES}"
        raise ExampleInputError(
            f"The model does not take these inputs: {error}.",
            where=inputs.origin or "example inputs",
            hint=hint,
        ) from error
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {f"{name}_{i}": v for i, v in enumerate(value)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named


def _unheard(module: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return what keeps away the warnings of a module that came as TorchScript: their texts are those of a file."""
    return quiet() if isinstance(module, torch.jit.ScriptModule) else contextlib.nullcontext()


def check_call(module: torch.nn.Module, inputs: ExampleInputs) -> None:
    """Run the module once, so that inputs it cannot take are told apart from models that cannot be traced.

    Dataclasses that it returns are made known to torch, which otherwise refuses to trace a module that returns one.
    """
    try:
        result = call_module(module, inputs)
    # A module may raise anything; that it does is the fault of its inputs, or shows that it cannot run at all.
    except Exception as error:
        shapes = ", ".join(map(described, inputs.tensors()))
        raise ExampleInputError(
            f"The model fails on the example inputs {shapes}: {first_line(error)}",
            where=inputs.origin or "example inputs",
            hint=_other_dtype(module, inputs)
            or "Give inputs that the model accepts (--input-shape, --inputs, or from the factory)."
            + _known(module, inputs),
        ) from error
    _register_dataclasses(result)


def _known(module: torch.nn.Module, inputs: ExampleInputs) -> str:
    """A sentence with a shape that the model runs on, where another was tried in vain."""
    shape = shape_that_runs(module) if inputs.origin == SHAPE and len(inputs.tensors()) == 1 else None
    return f" It runs on {SHAPE} {shape}." if shape else ""


def _other_dtype(module: torch.nn.Module, inputs: ExampleInputs) -> str | None:
    """What to do about inputs of another type of numbers than the weights'; None where there are none.

    Images are stored as whole numbers of a byte, and numpy's own numbers are float64. Wider whole numbers may be
    indices, which are right.
    """
    weights = {parameter.dtype for parameter in module.parameters() if parameter.dtype.is_floating_point}
    if len(weights) != 1:
        return None
    (wanted,) = (str(dtype).removeprefix("torch.") for dtype in weights)
    given = {str(tensor.dtype).removeprefix("torch.") for tensor in inputs.tensors()} - {wanted}
    if given & {"uint8", "int8"}:
        return (
            f"The model's weights are {wanted}: store the inputs as {wanted} too, scaled as the model was trained "
            "(often divided by 255, less a mean, over a deviation)."
        )
    if given & {"float64", "float32", "float16", "bfloat16"}:
        return f"The model's weights are {wanted}: store the inputs as {wanted} too."
    return None


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
    """Return what an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
