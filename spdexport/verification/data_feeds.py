"""Batches of a data set as the inputs of a file: by its names, and of its types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.errors import ExampleInputError
from spdexport.files.batches import UNNAMED
from spdexport.verification.ports import Port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import Array

LABELS = "labels"
"""The array of a data set that is the right answers, unless the file has an input of that name."""


def data_feeds(ports: Sequence[Port], batch: Mapping[str, Array], where: str) -> dict[str, Array]:
    """Return a batch by the names of the file's own inputs, without the labels.

    Raises:
        ExampleInputError: The names or dtypes are not those of the file.
    """
    declared = ", ".join(port.describe() for port in ports)
    given = {name: array for name, array in batch.items() if name != LABELS or any(p.name == name for p in ports)}
    if len(ports) == len(given) == 1:
        given = {ports[0].name: next(iter(given.values()))}
    if set(given) != {port.name for port in ports}:
        told = ", ".join(name if name != UNNAMED else "an array without a name" for name in given) or "nothing"
        raise ExampleInputError(
            f"The data hold {told}.", where=where, hint=f"The file takes {declared or 'no inputs'}."
        )
    for port in ports:
        if port.conflicts(Port(name=port.name, dtype=given[port.name].dtype, shape=None)):
            raise ExampleInputError(
                f"The data have {given[port.name].dtype} for {port.name}.",
                where=where,
                hint=f"The file takes {declared}.",
            )
    return given
