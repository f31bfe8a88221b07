"""What an ONNX file takes and gives, and the inputs of one comparison."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from spdexport.errors import ExampleInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx_ir as ir

    from spdexport.conv import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or output as a file declares it.

    Attributes:
        name: Its name.
        dtype: numpy's or ml_dtypes' dtype.
        shape: A number, a name, or None where nothing is known, for each axis; None where not even the rank is known.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | str | None, ...] | None

    def describe(self) -> str:
        """Return it for messages: ``x float32 (batch, 3, 32, 32)``."""
        shape = "of any shape" if self.shape is None else f"({', '.join(str(d) for d in self.shape)})"
        return f"{self.name} {self.dtype} {shape}"

    def narrowed(self, other: Port) -> Port:
        """Return the port with the axes that another file has a number for, where this one has none."""
        if self.shape is None or other.shape is None or self.conflicts(other):
            return self
        shape = tuple(b if isinstance(b, int) else a for a, b in zip(self.shape, other.shape, strict=True))
        return replace(self, shape=shape)

    def conflicts(self, other: Port) -> bool:
        """Return whether two declarations cannot be of the same values; an axis without a number fits any size."""
        if self.name != other.name or self.dtype != other.dtype:
            return True
        if self.shape is None or other.shape is None:
            return False
        return len(self.shape) != len(other.shape) or any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(self.shape, other.shape, strict=True)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileCase:
    """One set of inputs for a file.

    Attributes:
        name: In words.
        inputs: By name.
        own: Whether they are the user's rather than generated.
        plain: The same without run-time masks; None for a model that has none.
        given: The run-time masks by name; all ones where the file is run without them.
    """

    name: str
    inputs: Mapping[str, Array]
    own: bool
    plain: Mapping[str, Array] | None = None
    given: Mapping[str, Array] = field(default_factory=dict)

    @property
    def unmasked(self) -> Mapping[str, Array]:
        """The inputs of the model without run-time masks."""
        return self.inputs if self.plain is None else self.plain

    @property
    def batch(self) -> int:
        """The size of axis 0 of the first input that has axes."""
        return next((int(a.shape[0]) for a in self.inputs.values() if a.ndim), 1)


def input_ports(model: ir.Model) -> tuple[Port, ...]:
    """Return the inputs that a caller must give: those without a default in the file.

    Raises:
        ExampleInputError: An input is no tensor of numbers.
    """
    required = [v for v in model.graph.inputs if v.name not in model.graph.initializers]
    return tuple(_port(value) for value in required)


def input_shapes(model: ir.Model) -> tuple[str, ...]:
    """Return the shapes of a file's inputs as ``--input-shape`` has them; none where more than the batch is unknown.

    Inputs of masks are no inputs of the model that the file was made of.
    """
    ports = [port for port in input_ports(model) if "/" not in port.name]
    told = []
    for port in ports:
        first, *rest = port.shape or (None, None)
        if not port.name.isidentifier() or not all(isinstance(size, int) for size in rest):
            return ()
        sizes = "x".join(map(str, (first if isinstance(first, int) else 2, *rest)))
        told.append(f"{port.name}={sizes}:{port.dtype.name}")
    return tuple(told)


def output_ports(model: ir.Model) -> tuple[Port, ...]:
    """Return the outputs.

    Raises:
        ExampleInputError: An output is no tensor of numbers.
    """
    return tuple(_port(value) for value in model.graph.outputs)


def _port(value: ir.Value) -> Port:
    dtype = None
    if value.dtype is not None:
        try:
            dtype = value.dtype.numpy()
        except TypeError:
            dtype = None
    if dtype is None or dtype.kind == "O":
        raise ExampleInputError(
            f"{value.name} is no tensor of numbers.",
            where="the file's inputs and outputs",
            hint="Only tensors can be compared; give a model without sequences, maps and strings at its ends.",
        )
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return Port(name=value.name or "", dtype=dtype, shape=shape)
