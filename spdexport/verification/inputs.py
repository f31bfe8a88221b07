"""The inputs that a program is checked on: the user's own, and generated ones of various kinds and batch sizes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.export.graph_signature import InputKind, TensorArgument

from spdexport.arrays import to_numpy, to_torch
from spdexport.capture.axes import tensor_inputs
from spdexport.capture.ranges import axis_ranges
from spdexport.loading.model import ExampleInputs
from spdexport.ranges import ends
from spdexport.verification.recipes import Recipe, draw, generators, span_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from torch.export import ExportedProgram

    from spdexport.conv import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One set of inputs.

    Attributes:
        name: In words, such as ``normal, batch 2``.
        inputs: What the program is called with.
        own: Whether the inputs are the user's rather than generated.
        plain: The same without run-time masks; None for a model that has none.
        given: The run-time masks by the names that the file has for them.
        omitted: Whether the file is run without them: they are all ones then.
    """

    name: str
    inputs: ExampleInputs
    own: bool
    plain: ExampleInputs | None = None
    given: Mapping[str, Array] = field(default_factory=dict)
    omitted: bool = False

    @property
    def unmasked(self) -> Case:
        """The same for the model without run-time masks."""
        return self if self.plain is None else replace(self, inputs=self.plain)

    @property
    def batch(self) -> int:
        """The size of axis 0 of the first input that has axes."""
        first = next((t for t in self.inputs.tensors() if t.ndim), None)
        return 1 if first is None else int(first.shape[0])


def cases(program: ExportedProgram, example: ExampleInputs | None, *, own: bool, seed: int) -> Iterator[Case]:
    """Yield the cases for a program, the user's own first.

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
    tensors = example.tensors()
    others = _other_sizes(program, tensors, symbol)
    most, least = _ends(program, tensors, symbol)
    for number, (recipe, random) in enumerate(generators(seed)):
        # The first and second case, which are never left out for time, have other sizes on the further dynamic axes:
        # those at the ends of what the trace holds for.
        sizes = most if number == 0 else {**others, **least} if number == 1 else {}
        made = [
            _redraw(tensor, _resized(tensor, fake, {**sizes, symbol: recipe.batch}), recipe, random)
            for tensor, fake in zip(tensors, values, strict=True)
        ]
        label = recipe.label(dynamic=symbol is not None)
        if sizes:
            label += f", {' and '.join(dict.fromkeys(_different(tensors, made, batch=symbol is not None)))}"
        yield Case(name=label, inputs=example.with_tensors(made, origin=label), own=False)


def feeds(program: ExportedProgram, inputs: ExampleInputs) -> Mapping[str, Array]:
    """Return the inputs by the names that they have in the program and in the exported file."""
    flat = [to_numpy(t) for t in inputs.tensors()]
    return dict(zip(input_names(program), flat, strict=True))


def input_names(program: ExportedProgram) -> list[str]:
    """Return the names of a program's tensor inputs; what is no tensor (None, numbers) is no input of an ONNX file."""
    specs = program.graph_signature.input_specs
    return [s.arg.name for s in specs if s.kind is InputKind.USER_INPUT and isinstance(s.arg, TensorArgument)]


def _placeholders(program: ExportedProgram) -> list[torch.Tensor]:
    names = set(input_names(program))
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


def _other_sizes(
    program: ExportedProgram, tensors: Sequence[torch.Tensor], batch: str | None
) -> Mapping[str | None, int]:
    """For each dynamic axis but the batch another size than the example has, by its symbol.

    Axes whose size is an expression of a symbol are left as they are, and so is the symbol.
    """
    dims: list[tuple[Any, int]] = []
    for tensor, fake in zip(tensors, _placeholders(program), strict=True):
        for size, dim in zip(tensor.shape, fake.shape, strict=True):
            if isinstance(dim, torch.SymInt):
                dims.append((dim.node.expr, size))
    tied = {symbol for expr, _ in dims if not expr.is_Symbol for symbol in expr.free_symbols}
    found: dict[str | None, int] = {}
    for symbol, size in dims:
        if not symbol.is_Symbol or symbol in tied or str(symbol) == batch:
            continue
        bounds = program.range_constraints.get(symbol)
        fits = [n for n in (size + 1, size - 1) if bounds is None or bounds.lower <= n <= bounds.upper]
        found |= {str(symbol): n for n in fits[:1]}
    return found


def _ends(
    program: ExportedProgram, tensors: Sequence[torch.Tensor], batch: str | None
) -> tuple[Mapping[str | None, int], Mapping[str | None, int]]:
    """The largest and the least sizes that the program holds for, by symbol, of axes that have a limit."""
    ranges, found = axis_ranges(program), (dict[str | None, int](), dict[str | None, int]())
    free = _other_sizes(program, tensors, batch)
    for name, tensor, fake in zip(input_names(program), tensors, _placeholders(program), strict=True):
        for axis, held in ranges.get(name, {}).items():
            dim = fake.shape[axis]
            key = str(dim.node.expr) if isinstance(dim, torch.SymInt) else None
            if key in free:
                for sizes, size in zip(found, ends(held, tensor.shape[axis]), strict=True):
                    sizes[key] = size
    return found


def _different(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], *, batch: bool) -> list[str]:
    """The sizes that differ, in words; not that of the batch, axis 0."""
    return [
        f"size {b} in the place of {a}"
        for old, new in zip(before, after, strict=True)
        for axis, (a, b) in enumerate(zip(old.shape, new.shape, strict=True))
        if a != b and not (batch and axis == 0)
    ]


def _resized(tensor: torch.Tensor, fake: torch.Tensor, sizes: Mapping[str | None, int]) -> tuple[int, ...]:
    return tuple(
        sizes.get(str(dim.node.expr), size) if isinstance(dim, torch.SymInt) else size
        for size, dim in zip(tensor.shape, fake.shape, strict=True)
    )


def _redraw(tensor: torch.Tensor, shape: tuple[int, ...], recipe: Recipe, random: np.random.Generator) -> torch.Tensor:
    values = to_numpy(tensor)
    return to_torch(draw(recipe, shape, values.dtype, random, span=span_of(values)))


def _from_signature(program: ExportedProgram) -> ExampleInputs:
    """Inputs of the traced sizes for a program that brought none."""
    spec = program.call_spec.in_spec
    fakes = dict(tensor_inputs(program))
    values: list[object] = []
    for given in (s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT):
        if isinstance(given, TensorArgument):
            fake = fakes[given.name]
            shape = tuple(int(d.node.hint) if isinstance(d, torch.SymInt) else d for d in fake.shape)
            values.append(torch.zeros(shape, dtype=fake.dtype))
        else:
            values.append(getattr(given, "value", None))
    args, kwargs = torch.utils._pytree.tree_unflatten(values, spec)
    return ExampleInputs(args=tuple(args), kwargs=dict(kwargs), origin="the program's signature")
