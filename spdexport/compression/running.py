"""Samples as batches of a network's inputs, and what whole networks answer on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from spdexport.errors import ExampleInputError, SourceError
from spdexport.ort.sessions import RuntimeFailure, Session, SessionSettings, open_session
from spdexport.verification.data_feeds import LABELS, data_feeds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from spdexport.compression.data import Samples
    from spdexport.compression.dense_model import DenseModel
    from spdexport.compression.execution import Kept, Shelf
    from spdexport.conv import Array
    from spdexport.engine.work import Shard


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Some samples.

    Attributes:
        feeds: The network's inputs, by name.
        labels: The right answers; None where there are none.
        number: How many samples count; what is beyond them fills up a batch of fixed size.
    """

    feeds: Mapping[str, Array]
    labels: Array | None
    number: int


def batches_of(dense: DenseModel, samples: Samples, *, whole: bool = False) -> Iterator[Batch]:
    """Yield samples in batches that a network takes.

    Args:
        dense: The network.
        samples: The samples.
        whole: Whether to leave out what would have to be filled up to a batch of fixed size.

    Raises:
        ExampleInputError: They do not fit the network, or hold NaN or infinity.
    """
    fixed = dense.batch
    for arrays in samples.batches(dense.together):
        number = min(len(array) for array in arrays.values())
        feeds = data_feeds(dense.ports, arrays, samples.where)
        for name, array in feeds.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ExampleInputError(
                    f"The data hold NaN or infinity, in {name}.",
                    where=samples.where,
                    hint="Mend or remove these samples.",
                )
        if fixed is not None and number < fixed:
            if whole:
                continue
            feeds = {n: np.concatenate([a, np.repeat(a[-1:], fixed - number, axis=0)]) for n, a in feeds.items()}
        labels = arrays.get(LABELS)
        yield Batch(
            feeds=feeds, labels=None if labels is None else labels.reshape(number, *labels.shape[1:]), number=number
        )


class Network:
    """A whole network that answers.

    Args:
        model: A file, or a graph in memory.
        threads: Of one operator; None leaves it to ONNX Runtime.
    """

    def __init__(self, model: ir.Model | Path, *, threads: int | None = None) -> None:
        source = ir.to_proto(model).SerializeToString() if isinstance(model, ir.Model) else model
        try:
            self._session: Session = open_session(source, SessionSettings(optimized=True, threads=threads))
        except RuntimeFailure as failure:
            raise _unusable(failure) from failure

    def answers(self, batch: Batch) -> dict[str, Array]:
        """Return the outputs for the samples that count."""
        try:
            found = self._session.run(batch.feeds)
        except RuntimeFailure as failure:
            raise _unusable(failure) from failure
        return {name: array[: batch.number] if array.ndim else array for name, array in found.items()}


def _unusable(failure: RuntimeFailure) -> SourceError:
    return SourceError(
        f"ONNX Runtime does not run the model on the data: {failure}",
        where="the data and the model's inputs",
        hint="Give data of the shapes that the model takes; spdexport verify says more about the model.",
    )


class DenseAnswers:
    """What the dense network answers on some samples, run once and kept; in another process, run there.

    Args:
        dense: The network.
        samples: The samples.
        shelf: Where the answers are kept; None to keep none.
    """

    def __init__(self, dense: DenseModel, samples: Samples, shelf: Shelf | None) -> None:
        self.dense, self.samples, self._shelf = dense, samples, shelf
        self._kept: dict[int, dict[str, Kept]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Tell how another process makes them anew, which keeps none."""
        return type(self), (self.dense.alone(), self.samples, None)

    def pairs(
        self, network: Network, dense: Callable[[], Network], shard: Shard
    ) -> Iterator[tuple[dict[str, Array], dict[str, Array], Array | None]]:
        """Yield for each batch the answers of the dense network and of another one, and the labels.

        Args:
            network: The other one.
            dense: Returns the dense one, where answers are missing.
            shard: Of the samples.
        """
        samples = self.samples.part(shard)
        for number, batch in enumerate(batches_of(self.dense, samples), shard.start // self.dense.together):
            if number in self._kept:
                before = {name: kept.get() for name, kept in self._kept[number].items()}
            else:
                before = dense().answers(batch)
                _check_finite(before, self.samples.where)
                if self._shelf is not None:
                    self._kept[number] = {name: self._shelf.put(array) for name, array in before.items()}
            yield before, network.answers(batch), batch.labels


def _check_finite(answers: Mapping[str, Array], where: str) -> None:
    for name, array in answers.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ExampleInputError(
                f"The dense model gives NaN or infinity for the data, in {name}.",
                where=where,
                hint="Mend or remove these samples.",
            )
