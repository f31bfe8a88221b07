"""Where a model chooses: what of an operator's outputs is a choice, and when rounding may decide it otherwise.

TopK, ArgMax, comparisons, Floor, a cast to an integer, QuantizeLinear and others of their kind jump: next to a jump,
float64 and a runtime's float32 may land on different sides, and both be right. A `Rule` knows for one operator which
of its outputs hold the choice, what its outputs are *given* a choice, and whether a choice is within the noise of what
the operator read. What comes after it is then computed from the choice that was taken, and compared in full.

A choice between values that are equal and exact has no noise to hide behind: there the operator's definition decides.
For TopK, ArgMax, ArgMin and Hardmax, ONNX says that the lower index comes first; for the indices of MaxPool, of TopK
with ``sorted=0``, and for torch's topk and sort it says nothing, and any order is right.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from spdexport.conv import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """A node that chooses, at the moment of its evaluation.

    Attributes:
        op: The operator, by its ONNX name.
        name: Of the node.
        inputs: Floats in float64; None for one that is not there.
        outputs: What the evaluation itself makes of them.
        output_names: In the same order, empty for one that nobody reads.
        attributes: As the node has them; those it leaves out are missing.
        compute: The operator on other inputs.
        version: Of the operator set.
        is_inner: Whether the node is in a subgraph or a function, whose values have no names of the model's.
        ties_are_open: Whether any order of values that are equal and exact is right.
    """

    op: str
    name: str
    inputs: tuple[Array | None, ...]
    outputs: tuple[Array, ...]
    output_names: tuple[str, ...]
    attributes: Mapping[str, Any]
    compute: Callable[[Sequence[Array | None]], Sequence[Array]]
    version: int = 0
    is_inner: bool = False
    ties_are_open: bool = False

    @property
    def x(self) -> Array:
        """The first input."""
        return self.input(0)

    def input(self, index: int) -> Array:
        """Return an input that is known to be there."""
        value = self.inputs[index]
        assert value is not None, f"{self.op} has its input {index}"
        return value


Decide = Callable[[Decision], "Sequence[Array] | None"]
"""Told each node that chooses as it is evaluated; gives outputs to take in the place of its own, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noises:
    """How far rounding may move what a node reads.

    Attributes:
        inputs: For each input an array of its shape, 0 where the value is exact; None for what is no float.
        rounding: How far one rounding of the operator's own may move a value, relative to it.
    """

    inputs: tuple[Array | None, ...]
    rounding: float

    def of(self, index: int) -> Array:
        """Return the noise of an input that is known to be there; 0 for one that is no float."""
        noise = self.inputs[index] if index < len(self.inputs) else None
        return np.zeros(()) if noise is None else noise


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judged:
    """The elements at which a choice is another than that of float64.

    Attributes:
        places: Their indices in the output, (n, axes).
        right: What float64 chooses, (n,).
        got: What was chosen, (n,).
        margins: How far float64's values are from where the choice that was taken would be theirs, (n,).
        noises: How far rounding may move them, (n,).
        wrong: Whether the choice is beyond that, (n,).
        fault: What is no choice at all, such as an index out of range; empty where all of it is one.
    """

    places: Array
    right: Array
    got: Array
    margins: Array
    noises: Array
    wrong: Array
    fault: str = ""


class Rule(ABC):
    """What is known of one operator that chooses."""

    taken: ClassVar[tuple[int, ...]] = (0,)
    """The outputs that hold the choice: what must be known of a session to follow it."""

    reads: ClassVar[tuple[int, ...]] = (0,)
    """The inputs that it chooses by: only where one of them is a float does rounding matter."""

    def chooses(self, node: Decision) -> bool:
        """Return whether this node chooses by floats, and in a way that can be followed."""
        read = [node.inputs[i] for i in self.reads if i < len(node.inputs)]
        named = all(i < len(node.output_names) and node.output_names[i] for i in self.taken)
        return named and any(value is not None and value.dtype.kind == "f" for value in read)

    def choice(self, node: Decision, values: Sequence[Array]) -> Any:  # noqa: ARG002 - some tell it from the inputs too
        """Return the choice that a session's outputs tell; ``values`` are those in ``taken``."""
        return values

    @abstractmethod
    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, from the node's own inputs and the choice."""

    @abstractmethod
    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether the choice is one that rounding explains.

        Args:
            node: As float64 has it, given all choices before.
            choice: As ``choice`` told it.
            noises: Of the node's inputs.
        """


def nothing(fault: str = "") -> Judged:
    """Return no element that differs, or a fault that is no matter of elements."""
    none = np.zeros(0)
    return Judged(
        places=np.zeros((0, 0), int), right=none, got=none, margins=none, noises=none, wrong=none > 0, fault=fault
    )


def differing(right: Array, got: Array, margins: Any, noises: Any, wrong: Any = None, *, ties: bool = False) -> Judged:
    """Return the elements at which two arrays of choices differ, and those that are wrong in any case.

    Args:
        right: As float64 chooses.
        got: As was chosen, of the same shape.
        margins: Of a shape that spreads to theirs; not a number counts as beyond every noise.
        noises: The same.
        wrong: Which are wrong; None for those whose margin is beyond the noise.
        ties: Whether a choice without any margin is right where there is no noise either.
    """
    margins, noises = np.broadcast_to(margins, right.shape), np.broadcast_to(noises, right.shape)
    if wrong is None:
        explained = (margins <= noises) & ((noises > 0) | ties)
        wrong = ~explained & ~_same(right, got)
    where = ~_same(right, got) | wrong
    return Judged(
        places=np.argwhere(where),
        right=right[where],
        got=got[where],
        margins=margins[where],
        noises=noises[where],
        wrong=wrong[where],
    )


def _same(right: Array, got: Array) -> Array:
    same: Array = np.asarray(right == got)
    if right.dtype.kind == "f":
        same |= np.isnan(right) & np.isnan(got)
    return same


def noise_of(exact: Array, moved: Array, unit_rounding: float, factor: float) -> Array:
    """Return how far rounding may move the values of a tensor.

    A value that simulated rounding does not reach and that the model's dtype holds is exact. Of the others, each has
    the largest effect of its own in any run, or the root mean square of those of the tensor where that is more, since a
    few runs may happen to leave a value alone; and never less than one rounding.

    Args:
        exact: float64.
        moved: The largest effect of simulated rounding on each value.
        unit_rounding: Of the model's dtype.
        factor: How many times the effect is still noise.
    """
    reached = moved > 0
    usual = float(np.sqrt(np.mean(np.square(moved[reached])))) if reached.any() else 0.0
    size = np.where(reached, np.maximum(moved, usual), 0.0)
    with np.errstate(invalid="ignore"):
        own = np.where(is_held(exact, unit_rounding) & ~reached, 0.0, unit_rounding * np.abs(exact))
    noise: Array = factor * np.maximum(size, np.where(np.isfinite(exact), own, 0.0))
    return noise


def is_held(values: Array, unit_rounding: float) -> Array:
    """Return which float64 values a dtype of this unit rounding holds as they are; its range is taken as unbounded."""
    mantissa, _ = np.frexp(np.where(np.isfinite(values), values, 0.0))
    scaled = mantissa / unit_rounding
    held: Array = scaled == np.rint(scaled)
    return held
