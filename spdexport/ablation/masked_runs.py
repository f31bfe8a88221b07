"""Runs of one session in which every copy of the samples has masks of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.errors import ExampleInputError, SourceError
from spdexport.ort.sessions import RuntimeFailure, open_session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from spdexport.ablation.sets import ComponentsOf
    from spdexport.conv import Array
    from spdexport.ort.sessions import Session, SessionSettings
    from spdexport.verification.bounded import Bounded

MASK = "mask/"
BESIDE = ("mask/", "delta_mask/", "routing/")
"""What the names of inputs begin with that are not the model's own."""

SHOWN = ("ci/", "activation/")
"""What the names of outputs begin with that are not the model's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeMask:
    """A run-time mask of the file: its layer, the axes between batch and components (None where open), and C."""

    layer: str
    inner: tuple[int | None, ...]
    channels: int
    dtype: np.dtype[np.generic]

    def filled(self, rows: Array, sizes: tuple[int, ...]) -> Array:
        """Masks (rows, C), each the same at every location."""
        if not self.inner:
            return np.ascontiguousarray(rows, self.dtype)
        spread = rows.reshape(len(rows), *(1,) * len(self.inner), self.channels)
        return np.ascontiguousarray(np.broadcast_to(spread, (len(rows), *sizes, self.channels)), self.dtype)


def read_runtime_masks(model: ir.Model) -> dict[str, RuntimeMask]:
    """Return the run-time masks of a file by the names of their inputs, in the file's order."""
    found = {}
    for value in model.graph.inputs:
        name, shape = value.name or "", value.shape
        if not name.startswith(MASK) or shape is None or value.dtype is None:
            continue
        sizes = [d if isinstance(d, int) else None for d in shape]
        if len(sizes) > 1 and sizes[-1] is not None:
            found[name] = RuntimeMask(
                layer=name.removeprefix(MASK), inner=tuple(sizes[1:-1]), channels=sizes[-1], dtype=value.dtype.numpy()
            )
    return found


def opened_file(path: Path, settings: SessionSettings) -> Session:
    """Open a session on a file that the user named.

    Raises:
        SourceError: ONNX Runtime does not load it.
    """
    try:
        return open_session(path, settings)
    except RuntimeFailure as failure:
        raise SourceError(
            f"ONNX Runtime does not load the file: {failure}", where=str(path), hint="spdexport verify says more of it."
        ) from failure


class MaskedRuns:
    """One session, and the masks that its runs start from.

    Args:
        session: Of the file.
        masks: The file's run-time masks by the names of their inputs.
        output: The output that is wanted.
        start: The masks to start from, (C,) by layer.
        keep: Whether an ablation removes all but what it names.
        rows: Samples times ablations in one run.

    Attributes:
        notes: What the user should know.
    """

    def __init__(
        self,
        session: Session,
        masks: Mapping[str, RuntimeMask],
        output: str,
        start: Mapping[str, Array],
        bounded: Bounded,
        *,
        keep: bool,
        rows: int,
    ) -> None:
        self._session, self._masks, self._output = session, masks, output
        self._start, self._keep, self._rows = start, keep, rows
        self._bounded = bounded
        self._required = {port.name for port in session.inputs if port.required}
        self._sizes = {name: tuple(size or 1 for size in mask.inner) for name, mask in masks.items()}
        self.notes: list[str] = []

    def baseline(self, feeds: Mapping[str, Array], samples: int, where: str) -> Array:
        """Return the output without an ablation; errors are those of ``values``."""
        return self.values([self._output], feeds, samples, where)[self._output]

    def values(self, names: Sequence[str], feeds: Mapping[str, Array], samples: int, where: str) -> Mapping[str, Array]:
        """Return outputs without an ablation, by name.

        Raises:
            ExampleInputError: ONNX Runtime does not take the inputs.
            SourceError: The file is beyond a limit on them.
        """
        given = self._given(feeds, {layer: np.tile(mask, (samples, 1)) for layer, mask in self._start.items()})
        self._bounded.check(given)
        try:
            return self._session.run(given, names)
        except RuntimeFailure as failure:
            raise ExampleInputError(
                f"The file does not run on the data: {failure}", where=where, hint="Give the inputs that it takes."
            ) from failure

    def ablated(
        self, feeds: Mapping[str, Array], samples: int, wanted: Sequence[ComponentsOf]
    ) -> Iterator[tuple[slice, Array]]:
        """Yield the outputs of some ablations at a time: (ablations, samples, ...)."""
        together = max(self._rows // samples, 1)
        start = 0
        while start < len(wanted):
            part = wanted[start : start + together]
            try:
                outputs = self._together(feeds, samples, part)
            except RuntimeFailure:
                if together == 1:
                    raise
                # A batch that cannot change: one ablation after another.
                together = 1
                self.notes.append("the batch of the file cannot change: every ablation took a run of its own")
                continue
            yield slice(start, start + len(part)), outputs
            start += len(part)

    def _together(self, feeds: Mapping[str, Array], samples: int, part: Sequence[ComponentsOf]) -> Array:
        masks = {}
        for layer, mask in self._start.items():
            if any(layer in one.members for one in part):
                masks[layer] = np.repeat([self._changed(mask, one.members.get(layer)) for one in part], samples, axis=0)
            else:
                masks[layer] = np.tile(mask, (samples * len(part), 1))
        tiled = {name: np.concatenate([array] * len(part)) for name, array in feeds.items()}
        found = self._session.run(self._given(tiled, masks), [self._output])[self._output]
        return found.reshape(len(part), samples, *found.shape[1:])

    def _changed(self, mask: Array, indices: tuple[int, ...] | None) -> Array:
        if indices is None:
            return mask
        removed = np.ones(mask.shape, bool) if self._keep else np.zeros(mask.shape, bool)
        removed[list(indices)] = not self._keep
        return np.where(removed, 0.0, mask)

    def _given(self, feeds: Mapping[str, Array], masks: Mapping[str, Array]) -> dict[str, Array]:
        """All that the file takes: the inputs, the masks that are not all ones, and what else it requires."""
        given = dict(feeds)
        rows = len(next(iter(masks.values())))
        for name, mask in self._masks.items():
            # What may be left out means ones, and ones cost nothing then.
            if name in self._required or not (masks[mask.layer] == 1).all():
                given[name] = mask.filled(masks[mask.layer], self._sizes[name])
        for port in self._session.inputs:
            if port.required and port.name.startswith(BESIDE) and port.name not in given:
                sizes = (size if isinstance(size, int) else 1 for size in port.shape[1:])
                given[port.name] = np.ones((rows, *sizes), port.dtype)
        return given
