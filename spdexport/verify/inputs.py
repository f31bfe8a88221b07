"""The inputs that a check runs on: the user's own, and seeded ones of various kinds and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch.export import ExportedProgram

    from spdexport.loading import ExampleInputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One set of inputs.

    Attributes:
        name: In words, such as ``normal, batch 2``.
        inputs: What the program is called with.
        own: Whether the inputs are the user's rather than generated.
    """

    name: str
    inputs: ExampleInputs
    own: bool


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator)


def _sparse(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.1)


def _large(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return 100 * torch.randn(shape, generator=generator)


def _tiny(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return 1e-3 * torch.randn(shape, generator=generator)


def _constant(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn((), generator=generator).expand(shape).contiguous()


RECIPES: tuple[tuple[str, int, Callable[[tuple[int, ...], torch.Generator], torch.Tensor]], ...] = (
    ("normal", 2, _normal),
    ("uniform", 1, _uniform),
    ("sparse", 3, _sparse),
    ("large", 1, _large),
    ("tiny", 1, _tiny),
    ("constant", 2, _constant),
)
"""Name, batch size (where the batch is dynamic) and maker of each kind of generated float input, most telling first."""


def cases(program: ExportedProgram, example: ExampleInputs | None, *, own: bool, seed: int) -> Iterator[Case]:
    """The cases for a program, the user's own first.

    Args:
        program: Tells names, dtypes and dynamic sizes of the inputs.
        example: Inputs that the program takes; integer inputs are drawn from the range they span.
        own: Whether the example's values are the user's, so that they are a case themselves.
        seed: Of the random generator.
    """
    if example is None:
        example = _from_signature(program)
    elif own:
        yield Case(name=f"given by {example.origin or 'the caller'}", inputs=example, own=True)
    symbol = _batch_symbol(program)
    values = _placeholders(program)
    tensors = [*example.args, *example.kwargs.values()]
    for number, (name, batch, make) in enumerate(RECIPES):
        generator = torch.Generator().manual_seed(seed * 1000 + number)
        made = [
            _redraw(tensor, _resized(tensor, fake, symbol, batch), make, generator)
            for tensor, fake in zip(tensors, values, strict=True)
        ]
        args = tuple(made[: len(example.args)])
        kwargs = dict(zip(example.kwargs, made[len(example.args) :], strict=True))
        label = f"{name}, batch {batch}" if symbol is not None else name
        yield Case(name=label, inputs=type(example)(args=args, kwargs=kwargs, origin=label), own=False)


def _placeholders(program: ExportedProgram) -> list[torch.Tensor]:
    names = set(program.graph_signature.user_inputs)
    return [n.meta["val"] for n in program.graph.nodes if n.op == "placeholder" and n.name in names]


def _batch_symbol(program: ExportedProgram) -> str | None:
    """The symbol of axis 0 of the first input, where it may take the sizes of the recipes."""
    for value in _placeholders(program):
        if isinstance(value, torch.Tensor) and value.ndim and isinstance(value.shape[0], torch.SymInt):
            symbol = value.shape[0].node.expr
            bounds = program.range_constraints.get(symbol)
            fits = bounds is None or (bounds.lower <= 2 and bounds.upper >= 3)
            return str(symbol) if symbol.is_Symbol and fits else None
    return None


def _resized(tensor: torch.Tensor, fake: torch.Tensor, symbol: str | None, batch: int) -> tuple[int, ...]:
    return tuple(
        batch if isinstance(dim, torch.SymInt) and str(dim.node.expr) == symbol else size
        for size, dim in zip(tensor.shape, fake.shape, strict=True)
    )


def _redraw(
    tensor: torch.Tensor,
    shape: tuple[int, ...],
    make: Callable[[tuple[int, ...], torch.Generator], torch.Tensor],
    generator: torch.Generator,
) -> torch.Tensor:
    if tensor.is_floating_point():
        return make(shape, generator).to(tensor.dtype)
    if tensor.dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if tensor.is_complex():
        return torch.complex(make(shape, generator), make(shape, generator)).to(tensor.dtype)
    # Integers are indices more often than numbers: what the example holds is known to be allowed.
    low, high = int(tensor.min()), int(tensor.max())
    return torch.randint(low, high + 1, shape, generator=generator, dtype=tensor.dtype)


def _from_signature(program: ExportedProgram) -> ExampleInputs:
    """Inputs of the traced sizes for a program that brought none."""
    from spdexport.loading import ExampleInputs

    spec = program.call_spec.in_spec
    values: list[torch.Tensor] = []
    for fake in _placeholders(program):
        shape = tuple(int(d.node.hint) if isinstance(d, torch.SymInt) else d for d in fake.shape)
        values.append(torch.zeros(shape, dtype=fake.dtype))
    args, kwargs = torch.utils._pytree.tree_unflatten(values, spec)
    return ExampleInputs(args=tuple(args), kwargs=dict(kwargs), origin="the program's signature")


def feeds(program: ExportedProgram, inputs: ExampleInputs) -> Mapping[str, torch.Tensor]:
    """The inputs by the names that they have in the program and in the exported file."""
    flat = [*inputs.args, *inputs.kwargs.values()]
    return dict(zip(program.graph_signature.user_inputs, flat, strict=True))
