"""Which part of an image each place of a layer reads, found by changing the image stripe by stripe.

No operator is looked at: what moves a place is measured, so that it holds for every architecture. A stripe counts where
it moves the activations at a place by at least a hundredth of what the most influential stripe does; the edges of a
receptive field that is large on paper and hardly used, and what reaches every place through a mean over the whole
image, are no part of it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.atlases.result import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from spdexport.conv import Array, FloatArray

STRIPES = 32
"""Along each axis at most: thumbnails have hardly more pixels."""

_LEAST = 0.01
_IMAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """What the places of one layer read, in pixels of the image: begin and end for each row and column of places."""

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]
    height: int
    width: int

    def box(self, place: Sequence[int]) -> Box | None:
        """Return the part of the image that a place (row, column) reads; None where that is all of it."""
        (top, bottom), (left, right) = self.rows[place[0]], self.columns[place[1]]
        if (top, left, bottom, right) == (0, 0, self.height, self.width):
            return None
        return Box(top=top / self.height, left=left / self.width, bottom=bottom / self.height, right=right / self.width)

    @property
    def middle(self) -> tuple[int, int] | None:
        """Height and width of what the place in the middle reads; None where that is all of the image."""
        (top, bottom), (left, right) = self.rows[len(self.rows) // 2], self.columns[len(self.columns) // 2]
        size = (bottom - top, right - left)
        return None if size == (self.height, self.width) else size


def find_fields(
    activations: Callable[[Array], Mapping[str, Array]],
    shape: tuple[int, int, int],
    low: FloatArray,
    high: FloatArray,
    *,
    batch: int,
    seed: int,
    dtype: np.dtype[np.generic],
) -> dict[str, Fields]:
    """Measure what the places of all layers read.

    Args:
        activations: From images (batch, channels, height, width) to the activations of V by layer, (batch, *places, C);
            layers whose places are no rows and columns are left out of the result.
        shape: Channels, height and width.
        low: The least of each channel of the data.
        high: The greatest.
        batch: Images in each run, 2 at least.
        seed: Of the images, which are noise.
        dtype: Of the images.
    """
    random = np.random.default_rng(seed)
    moved: dict[str, list[list[FloatArray]]] = {}

    def noise() -> Array:
        drawn = random.uniform(low[:, None, None], high[:, None, None], shape)
        return np.asarray(np.rint(drawn) if dtype.kind in "iu" else drawn).astype(dtype)

    edges = tuple(_edges(size) for size in shape[1:])
    for _ in range(_IMAGES):
        image = noise()
        for axis in (0, 1):
            for layer, sizes in _influences(activations, image, noise, edges[axis], axis, batch):
                moved.setdefault(layer, [[], []])[axis].append(sizes)
    return {
        layer: Fields(
            rows=_reach(np.max(rows, axis=0), edges[0]),
            columns=_reach(np.max(columns, axis=0), edges[1]),
            height=shape[1],
            width=shape[2],
        )
        for layer, (rows, columns) in moved.items()
    }


def _edges(size: int) -> list[int]:
    return [round(x) for x in np.linspace(0, size, min(size, STRIPES) + 1)]


def _influences(
    activations: Callable[[Array], Mapping[str, Array]],
    image: Array,
    noise: Callable[[], Array],
    edges: Sequence[int],
    axis: int,
    batch: int,
) -> Iterator[tuple[str, FloatArray]]:
    """By how much each stripe moves each row or column of places: (stripes, rows or columns)."""
    found: dict[str, list[FloatArray]] = {}
    stripes = list(itertools.pairwise(edges))
    for start in range(0, len(stripes), batch - 1):
        images = [image]
        for begin, end in stripes[start : start + batch - 1]:
            at = (slice(None), slice(begin, end)) if axis == 0 else (slice(None), slice(None), slice(begin, end))
            changed = image.copy()
            changed[at] = noise()[at]
            images.append(changed)
        number = len(images)
        images += [image] * (batch - number)
        for layer, values in activations(np.stack(images)).items():
            if values.ndim == 4:
                change = np.abs(values[1:number].astype(np.float64) - values[0])
                found.setdefault(layer, []).append(change.max(axis=(2 - axis, 3)))
    yield from ((layer, np.concatenate(parts)) for layer, parts in found.items())


def _reach(influence: FloatArray, edges: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """For each row or column of places, the first and the last stripe that count: their pixels, begin and end."""
    reached = []
    for sizes in influence.T:
        counted = np.flatnonzero(sizes >= _LEAST * sizes.max()) if sizes.max() > 0 else np.arange(len(sizes))
        reached.append((edges[counted[0]], edges[counted[-1] + 1]))
    return tuple(reached)
