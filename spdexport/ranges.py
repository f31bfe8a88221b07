"""The sizes that a traced model holds for, on the axes that may change: kept in its file, and told wherever it goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRange:
    """The sizes that an axis may have.

    Attributes:
        least: The smallest.
        most: The largest; None for no limit.
    """

    least: int
    most: int | None

    def __contains__(self, size: int) -> bool:
        """Return whether the axis may have this size."""
        return self.least <= size and (self.most is None or size <= self.most)

    def nearest(self, size: int) -> int:
        """Return the size in the range that is nearest to one."""
        return max(self.least, size if self.most is None else min(size, self.most))

    def __str__(self) -> str:
        """Return the range in words."""
        return f"{self.least} to {self.most}" if self.most is not None else f"{self.least} and more"


Ranges: TypeAlias = "Mapping[str, Mapping[int, SizeRange]]"
"""By the name of an input and the number of an axis; axes of which nothing is known are left out."""


def ranges_json(ranges: Ranges) -> dict[str, dict[str, list[int | None]]]:
    """Return ranges as JSON values: ``{"x": {"3": [2, 40]}}``, null for no limit."""
    return {name: {str(axis): [r.least, r.most] for axis, r in axes.items()} for name, axes in ranges.items()}


def read_ranges(value: Any) -> Ranges:
    """Return ranges of JSON values, which anyone may have written.

    Raises:
        ValueError: They are no ranges; says what is wrong.
    """
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    found: dict[str, dict[int, SizeRange]] = {}
    for name, axes in value.items():
        if not isinstance(axes, dict):
            raise ValueError(f"{name!r} has no axes")
        for axis, pair in axes.items():
            known = axis.isdecimal() and len(axis) < 4 and isinstance(pair, list) and len(pair) == 2
            least, most = pair if known else (-1, None)
            if not _is_size(least) or not (most is None or (_is_size(most) and least <= most)):
                raise ValueError(f"of axis {axis!r} of {name!r} it has no least and most size")
            found.setdefault(name, {})[int(axis)] = SizeRange(least=least, most=most)
    return found


REACH = 4
"""How many times the size of an example inputs are made, at most, to come to the end of a range."""


def ends(held: SizeRange, size: int) -> tuple[int, int]:
    """Return the sizes at both ends of a range, the largest first, as far as they are in reach of a known size.

    Where there is no largest, one that is larger than the known one has its place.
    """
    most = size + 1 if held.most is None else min(held.most, REACH * max(size, 1))
    return held.nearest(most), held.least


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def told(ranges: Ranges) -> list[str]:
    """Return what there is to know of ranges, one sentence for each axis."""
    return [
        f"{name} may have sizes {held} on axis {axis}, for the trace holds for no others"
        for name, axes in ranges.items()
        for axis, held in axes.items()
    ]


def outside(ranges: Ranges, name: str, shape: tuple[int, ...]) -> str | None:
    """Return what is wrong about the shape of an input, in words; None where it is in its ranges."""
    for axis, held in ranges.get(name, {}).items():
        if axis < len(shape) and shape[axis] not in held:
            return f"{name} has size {shape[axis]} on axis {axis}, and the model was traced for {held}"
    return None
