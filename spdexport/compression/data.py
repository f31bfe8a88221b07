"""The samples of a search: those that the weights are fitted on, those that choose, and those that only judge.

A set that is given for more than one of them is divided at random, each class by itself where there are labels. Data
are read in batches, as often as they are needed, and never all at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spdexport.errors import ExampleInputError, UsageError
from spdexport.files.batches import UNNAMED, DataSet, open_data
from spdexport.files.hashing import sha256_arrays, sha256_file
from spdexport.names import count
from spdexport.verification.data_feeds import LABELS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spdexport.conv import Array
    from spdexport.engine.work import Shard

CALIBRATION = 512
"""Samples that weights are fitted on, at most, where ``--calibration-samples`` says nothing: with 128 a small ResNet
lost 2.4 points, with 512 1.5, and with 2,048 1.3, at four times the work."""

SHARE = 0.25
"""Of a set that is divided, the part that is fitted on, where that is no more than ``CALIBRATION``."""

BATCH = 32
"""Samples that run together."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArraySet:
    """A data set in memory, with what of ``DataSet`` is used here.

    Attributes:
        arrays: By name; axis 0 counts the samples.
        samples: How many samples there are.
        path: What it is called.
    """

    arrays: Mapping[str, Array]
    samples: int
    path: str = "the data"

    def batches(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[Mapping[str, Array]]:
        """Yield consecutive samples, ``size`` of them or fewer at the end; see ``DataSet.batches``."""
        last = self.samples if stop is None else stop
        for first in range(start, last, size):
            yield {name: array[first : min(first + size, last)] for name, array in self.arrays.items()}


Data = str | Path | Mapping[str, "Array"] | np.ndarray
"""A file or folder, or arrays by name, or one array for a model with one input."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Some samples of a data set, in its order.

    Attributes:
        data: The set.
        chosen: Their numbers, sorted.
        labels: The right answer of each; None where the set has none.
        role: What they are for, in a word.
    """

    data: DataSet | ArraySet
    chosen: Array
    labels: Array | None
    role: str

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.chosen)

    @property
    def where(self) -> str:
        """The set's path, for messages."""
        return str(self.data.path)

    def part(self, shard: Shard) -> Samples:
        """Return some of them."""
        own = slice(shard.start, shard.stop)
        labels = None if self.labels is None else self.labels[own]
        return replace(self, chosen=self.chosen[own], labels=labels)

    def batches(self, size: int = BATCH) -> Iterator[dict[str, Array]]:
        """Yield batches of ``size`` samples, and fewer in the last; labels are among the arrays."""
        if not len(self):
            return
        waiting: list[dict[str, Array]] = []
        held, start = 0, int(self.chosen[0])
        for batch in self.data.batches(max(size, 256), start, int(self.chosen[-1]) + 1):
            number = min(len(array) for array in batch.values())
            low, high = np.searchsorted(self.chosen, (start, start + number))
            index = self.chosen[low:high] - start
            start += number
            if not len(index):
                continue
            waiting.append({name: array[index] for name, array in batch.items()})
            held += len(index)
            if held >= size:
                joined = {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}
                whole = held - held % size
                for begin in range(0, whole, size):
                    yield {name: array[begin : begin + size] for name, array in joined.items()}
                waiting = [{name: array[whole:] for name, array in joined.items()}] if held > whole else []
                held -= whole
        if held:
            yield {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sets:
    """The samples of a search, apart from each other.

    Attributes:
        calibration: What weights are fitted on.
        selection: What decides which candidates are taken.
        test: What nothing is decided by.
        told: How they came about, in a sentence.
        hashes: SHA-256 of what was read, by name.
    """

    calibration: Samples
    selection: Samples
    test: Samples
    told: str
    hashes: Mapping[str, str]


def read_sets(
    data: Data, selection: Data | None, test: Data | None, *, calibration: int | None = None, seed: int = 0
) -> Sets:
    """Open the data of a search, and divide what is given for more than one purpose.

    Args:
        data: What weights are fitted on, and all else that nothing is given for.
        selection: What chooses; None to take it from ``data``.
        test: What judges; None to take it from ``data``.
        calibration: How many samples weights are fitted on; None for ``CALIBRATION``, or ``SHARE`` of a set that is
            divided.
        seed: Of the division.

    Raises:
        ExampleInputError: A set cannot be read, or has too few samples.
        UsageError: More samples are to be fitted on than there are.
    """
    rng = np.random.default_rng(seed)
    first = _open(data)
    given = {"selection": selection, "test": test}
    roles = [role for role, value in given.items() if value is None]
    labels = _labels(first)
    whole = first.samples
    wanted = min(CALIBRATION, round(whole * SHARE) if roles else whole) if calibration is None else calibration
    least = len(roles) + 1
    if whole < least or not 1 <= wanted <= whole - len(roles):
        too_many = calibration is not None and whole >= least
        error = UsageError if too_many else ExampleInputError
        raise error(
            f"{count(whole, 'sample')} cannot be divided: {wanted} to fit weights on"
            + "".join(f", some for {role}" for role in roles)
            + ".",
            where="--calibration-samples" if too_many else str(first.path),
            hint="Give fewer." if too_many else "Give more samples, or sets of their own: --selection and --test.",
        )
    # What nothing is to be taken from is a part like the others, or there is none.
    sizes = tuple(size for size in _sizes(whole, wanted, max(len(roles), 1)) if size)
    parts = _divided(labels, whole, sizes, rng)
    names = ("calibration", *roles)
    found = {
        role: Samples(data=first, chosen=part, labels=None if labels is None else labels[part], role=role)
        for role, part in zip(names, parts, strict=False)
    }
    hashes = _hashes(first, "data")
    for role, value in given.items():
        if value is not None:
            opened = _open(value)
            chosen = np.arange(opened.samples)
            found[role] = Samples(data=opened, chosen=chosen, labels=_labels(opened), role=role)
            hashes |= _hashes(opened, role)
    return Sets(**found, told=_told(found, roles, whole, labels is not None, seed), hashes=hashes)


def _open(data: Data) -> DataSet | ArraySet:
    if isinstance(data, str | Path):
        return open_data(data)
    arrays = (
        {UNNAMED: np.asarray(data)} if isinstance(data, np.ndarray) else {n: np.asarray(a) for n, a in data.items()}
    )
    lengths = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or not (samples := lengths.pop()):
        raise ExampleInputError(
            "The arrays have no common number of samples on axis 0.",
            where="the data",
            hint="Give arrays whose first axis is the same, one entry for each sample.",
        )
    return ArraySet(arrays=arrays, samples=samples)


def _hashes(data: DataSet | ArraySet, role: str) -> dict[str, str]:
    if isinstance(data, DataSet):
        return {f"{role} {file.name}": sha256_file(file) for file in data.files}
    return {role: sha256_arrays(data.arrays)}


def _labels(data: DataSet | ArraySet) -> Array | None:
    """The labels of a whole set; None where it has none."""
    found = [batch[LABELS] for batch in data.batches(4096) if LABELS in batch]
    return np.concatenate(found) if found else None


def _sizes(whole: int, calibration: int, others: int) -> tuple[int, ...]:
    """How many samples each part has: what is not fitted on is halved where two parts are to have it."""
    rest = whole - calibration
    return (calibration, rest // 2, rest - rest // 2) if others > 1 else (calibration, rest)


def _divided(labels: Array | None, whole: int, sizes: Sequence[int], rng: np.random.Generator) -> list[Array]:
    """Numbers of samples for parts of these sizes, with the classes of each as in the whole, as near as can be."""
    order = rng.permutation(whole)
    ends = np.cumsum(sizes)
    if labels is not None and labels.ndim == 1 and labels.dtype.kind in "iub":
        # The members of each class lie evenly on the line from 0 to 1, and each part is a piece of that line.
        place = np.empty(whole)
        for label in np.unique(labels):
            members = order[labels[order] == label]
            place[members] = (np.arange(len(members)) + rng.random()) / len(members)
        owner = np.searchsorted(ends[:-1] / whole, place, side="right")
        parts = [np.flatnonzero(owner == number) for number in range(len(sizes))]
        if all(map(len, parts)):
            return parts
    return [np.sort(order[end - size : end]) for end, size in zip(ends, sizes, strict=True)]


def _told(found: Mapping[str, Samples], roles: Sequence[str], whole: int, labelled: bool, seed: int) -> str:
    parts = ", ".join(f"{len(found[role])} for {role}" for role in ("calibration", "selection", "test"))
    how = ""
    if roles:
        classes = ", each class by itself" if labelled else ""
        how = f"; the {whole} samples of --data were divided at random (seed {seed}){classes}"
    elif len(found["calibration"]) < whole:
        how = f"; of the {whole} samples of --data, those for calibration were drawn at random (seed {seed})"
    return f"{parts}{how}"
