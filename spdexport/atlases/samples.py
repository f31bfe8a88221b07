"""The data of an atlas: a file or batches, gone through more than once, as what a file to be watched takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spdexport.errors import ExampleInputError, UsageError
from spdexport.files.batches import DataSet, filled, named_batches, open_data
from spdexport.verification.data_feeds import data_feeds
from spdexport.verification.ports import Port

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from spdexport.conv import Array, FloatArray
    from spdexport.files.batches import Data

SMALLEST_IMAGE = 4
"""Pixels each way: what is smaller is no image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """A data set that can be gone through again.

    Attributes:
        origin: What messages call it.
        total: How many samples; None where nobody knows yet.
        files: The files that it is in.
    """

    origin: str
    total: int | None
    files: tuple[Path, ...]
    _data: DataSet | Data

    @classmethod
    def of(cls, data: str | Path | Data) -> Samples:
        """Take a file, a folder, or batches.

        Raises:
            ExampleInputError: The file cannot be read.
            UsageError: The batches can be had only once.
        """
        if isinstance(data, str | Path):
            opened = open_data(data)
            return cls(origin=str(opened.path), total=opened.samples, files=opened.files, _data=opened)
        if iter(data) is data:
            raise UsageError(
                "The data can be gone through only once, and an atlas reads them again for its pictures.",
                where="the data",
                hint="Give a list of batches, or a file.",
            )
        return cls(origin="the data", total=None, files=(), _data=data)

    def batches(self, size: int) -> Iterator[Mapping[str, Array]]:
        """Yield consecutive samples by the names that they have; batches that were given come as they are."""
        yield from self._data.batches(size) if isinstance(self._data, DataSet) else named_batches(self._data)

    def example(self) -> Mapping[str, Array]:
        """Return the first two samples, with which a model is traced.

        Raises:
            ExampleInputError: There are none.
        """
        first = next(iter(self.batches(2)), None)
        if first is None or not all(len(array) for array in first.values()):
            raise ExampleInputError("There are no data.", where=self.origin, hint="Give at least one sample.")
        return {name: array[:2] for name, array in first.items()}

    def feeds(self, ports: Sequence[Port], size: int, fixed: int | None) -> Iterator[tuple[int, dict[str, Array]]]:
        """Yield batches as a file takes them: the number of samples, and the arrays by the names of its inputs.

        Args:
            ports: The file's inputs.
            size: Samples of a batch.
            fixed: The batch of a file that takes no other: the last sample is repeated up to it, and not counted.

        Raises:
            ExampleInputError: The data are not of the file's names or types, or hold NaN or infinity.
        """
        for batch in self.batches(fixed or size):
            found = data_feeds(ports, batch, self.origin)
            for port in ports:
                has = Port(name=port.name, dtype=found[port.name].dtype, shape=found[port.name].shape)
                # The batch is as large as it is.
                if port.shape and port.conflicts(replace(has, shape=(port.shape[0], *(has.shape or ())[1:]))):
                    raise ExampleInputError(
                        f"The data have {has.describe()}.",
                        where=self.origin,
                        hint=f"The model takes {port.describe()}.",
                    )
            if not all(np.isfinite(array).all() for array in found.values() if array.dtype.kind == "f"):
                raise ExampleInputError(
                    "The data hold NaN or infinity.", where=self.origin, hint="Mend or remove these samples."
                )
            number = min(len(array) for array in found.values())
            for start in range(0, number, fixed or size):
                part = {name: array[start : start + (fixed or size)] for name, array in found.items()}
                yield min(number - start, fixed or size), dict(filled(part, fixed))


@dataclass(slots=True, kw_only=True, eq=False)
class ImageRange:
    """The input that is an image, and the least and greatest of each of its channels so far.

    Attributes:
        name: Of the input.
        shape: Channels, height and width.
        low: (channels,).
        high: (channels,).
        dtype: Of the data.
    """

    name: str
    shape: tuple[int, int, int]
    low: FloatArray
    high: FloatArray
    dtype: np.dtype[np.generic]

    @classmethod
    def find(cls, feeds: Mapping[str, Array]) -> ImageRange | None:
        """Return the first input that is images, (batch, channels, height, width); None where there is none."""
        for name, array in feeds.items():
            if array.ndim == 4 and array.dtype.kind in "fiu" and min(array.shape[2:]) >= SMALLEST_IMAGE:
                shape = (int(array.shape[1]), int(array.shape[2]), int(array.shape[3]))
                low, high = np.full(shape[0], np.inf), np.full(shape[0], -np.inf)
                return cls(name=name, shape=shape, low=low, high=high, dtype=array.dtype)
        return None

    def add(self, feeds: Mapping[str, Array]) -> None:
        """Take in a batch."""
        array = feeds[self.name].astype(np.float64)
        self.low = np.minimum(self.low, array.min(axis=(0, 2, 3)))
        self.high = np.maximum(self.high, array.max(axis=(0, 2, 3)))
