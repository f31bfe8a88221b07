"""The kinds of numbers that a file may be made to store, and all that making it again takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

Range = tuple[float, float]
"""The least and the greatest number that a value was seen to have."""


class Storage(StrEnum):
    """What numbers are stored as."""

    FLOAT16 = "float16"
    INT8 = "int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How the numbers of a float32 model are stored in a file.

    Attributes:
        storage: As what.
        ranges: Of eight bits, the range of each value between operators, by its name, as calibration saw it: steps and
            zero points follow from it.
        left: Nodes that stay in float32, by name.
    """

    storage: Storage
    ranges: Mapping[str, Range] = field(default_factory=dict)
    left: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, of which ``from_json`` makes the same again."""
        return {
            "storage": self.storage.value,
            "ranges": {name: list(self.ranges[name]) for name in sorted(self.ranges)},
            "left": list(self.left),
        }

    @classmethod
    def from_json(cls, content: object) -> Self:
        """Return what some JSON values tell.

        Raises:
            ValueError: They tell no precision; it says what is wrong.
        """
        if not isinstance(content, Mapping) or content.keys() != {"storage", "ranges", "left"}:
            raise ValueError("its precision has other entries than storage, ranges and left")
        storage, ranges, left = content["storage"], content["ranges"], content["left"]
        if not isinstance(storage, str) or storage not in set(Storage):
            raise ValueError(f"its precision stores numbers as {storage!r}")
        if not isinstance(left, list) or not all(isinstance(name, str) for name in left):
            raise ValueError("what its precision leaves alone is no list of names")
        if not isinstance(ranges, Mapping) or not all(map(_is_range, ranges.values())):
            raise ValueError("the ranges of its precision are no pairs of finite numbers")
        pairs = {str(name): (float(low), float(high)) for name, (low, high) in ranges.items()}
        return cls(storage=Storage(storage), ranges=pairs, left=tuple(left))


def _is_range(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    numbers = [v for v in value if isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 2**128]
    return len(numbers) == 2 and all(map(math.isfinite, numbers)) and numbers[0] <= numbers[1]
