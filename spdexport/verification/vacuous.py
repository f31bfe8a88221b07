"""Whether outputs show anything: that they are equal does not where they do not react to inputs, or have no numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import Array
    from spdexport.verification.edge import Edge


MAP_AXES = 2
"""Values of more axes than these are maps, of channels by places."""


def shows_nothing(outputs: Mapping[str, Array]) -> bool:
    """Return whether no output has a number."""
    return all(not value.size or (value.dtype.kind in "fc" and np.isnan(value).all()) for value in outputs.values())


class EmptyMaps:
    """The inner maps that have no places; lists that are empty, as of boxes, mean something.

    Attributes:
        found: Their names.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def watch(self, name: str, value: Array) -> None:
        """Take in a value."""
        if value.ndim > MAP_AXES and not value.size and value.dtype.kind == "f":
            self.found.append(name)


class Outputs:
    """Remembers the first sample of each output, and whether a later one differed from it."""

    def __init__(self) -> None:
        self._first: dict[str, Array] = {}
        self._samples: dict[str, int] = {}
        self._varying: set[str] = set()

    def add(self, outputs: Mapping[str, Array]) -> None:
        """Take in the outputs of a case; axis 0 counts as samples."""
        for name, value in outputs.items():
            for row in value if value.ndim else value.reshape(1):
                first = self._first.setdefault(name, row)
                self._samples[name] = self._samples.get(name, 0) + 1
                if row.shape != first.shape or not np.array_equal(row, first):
                    self._varying.add(name)

    @property
    def still(self) -> list[str]:
        """The outputs that were the same for all of several samples."""
        return [name for name in self._first if name not in self._varying and self._samples[name] > 1]

    def judge(self, edges: Sequence[Edge]) -> list[str]:
        """Make passes inconclusive where no output reacts; where only some do not, name them in a note."""
        if not self.still:
            return []
        if len(self.still) < len(self._first):
            return [f"outputs that do not react to the inputs: {', '.join(self.still)}"]
        for edge in edges:
            if edge.result().status is Status.PASS:
                edge.settle(Status.INCONCLUSIVE, "no output reacts to the inputs, so that they agree shows nothing")
        return []
