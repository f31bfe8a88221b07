"""Choices of places and boxes: nearest samples, what is not zero, what is distinct, which boxes are kept."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from spdexport.reference.decisions import Decision, Judged, Noises, Rule, differing, nothing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array


class NearestSample(Rule):
    """GridSample with its mode nearest: the pixels that were read are told from the values."""

    reads = (1,)

    def chooses(self, node: Decision) -> bool:
        """Return whether the node chooses, and can be followed."""
        return node.attributes.get("mode") == "nearest" and super().chooses(node)

    def choice(self, node: Decision, values: Sequence[Array]) -> Any:
        """Return the pixel of each output, (..., axes) in the order of the grid's own axes.

        Of several that fit, the nearest.

        Beyond the border, all that lie in one row or column may have the same value.
        """
        pixels = self._pixels(node)
        best = np.rint(pixels)
        least = self._off(node, best, values[0])
        far = np.abs(best - pixels).sum(axis=-1)
        low = np.floor(pixels)
        for corner in itertools.product((0.0, 1.0), repeat=pixels.shape[-1]):
            candidate = low + np.asarray(corner)
            off = self._off(node, candidate, values[0])
            distance = np.abs(candidate - pixels).sum(axis=-1)
            better = (off < least) | ((off == least) & (distance < far))
            best = np.where(better[..., None], candidate, best)
            least = np.where(better, off, least)
            far = np.where(better, distance, far)
        return best

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        return [np.asarray(node.compute([node.x, self._grid(node, choice)])[0], dtype=node.outputs[0].dtype)]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        pixels = self._pixels(node)
        own = np.rint(pixels)
        with np.errstate(invalid="ignore"):
            margins = np.where(choice == own, 0.0, np.abs(pixels - (choice + own) / 2))
            noise = noises.of(1) * self._half(node) + noises.rounding * (np.abs(pixels) + 1)
        differs = choice != own
        worst = np.where(differs, margins - noise, -np.inf).argmax(axis=-1)[..., None]
        sizes = np.asarray(self._sizes(node))
        strides = np.concatenate(([1], np.cumprod(sizes)[:-1]))
        right, got = ((np.clip(v, 0, sizes - 1) * strides).sum(axis=-1) for v in (own, choice))
        margin, size = (np.take_along_axis(v, worst, axis=-1)[..., 0] for v in (margins, noise))
        return differing(right, got, margin, size)

    def _sizes(self, node: Decision) -> list[int]:
        """The input's spatial sizes, in the order of the grid's axes, which is the other way round."""
        return list(reversed(node.x.shape[2:]))

    def _half(self, node: Decision) -> Array:
        """How many pixels a step of 1 in the grid is."""
        sizes = np.asarray(self._sizes(node), dtype=np.float64)
        half: Array = (sizes - 1) / 2 if node.attributes.get("align_corners") else sizes / 2
        return half

    def _pixels(self, node: Decision) -> Array:
        middle = (np.asarray(self._sizes(node), dtype=np.float64) - 1) / 2
        pixels: Array = node.input(1) * self._half(node) + middle
        return np.where(np.isfinite(pixels), pixels, 0.0)

    def _grid(self, node: Decision, pixels: Array) -> Array:
        half = self._half(node)
        middle = (np.asarray(self._sizes(node), dtype=np.float64) - 1) / 2
        grid: Array = np.divide(pixels - middle, half, out=np.zeros_like(pixels), where=half > 0)
        return grid

    def _off(self, node: Decision, pixels: Array, values: Array) -> Array:
        """How far the values at some pixels are from those that were computed, over all channels."""
        found = node.compute([node.x, self._grid(node, pixels)])[0]
        off: Array = np.abs(found - values.astype(np.float64)).max(axis=1, initial=0.0)
        return off


class NotZero(Rule):
    """NonZero: the places themselves."""

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        return [np.asarray(choice[0], dtype=node.outputs[0].dtype)]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        x, places = node.x, choice[0]
        outside = (places < 0) | (places >= np.asarray(x.shape).reshape(-1, 1))
        if places.shape[:1] != (x.ndim,) or outside.any():
            return nothing("an index is out of range")
        if (np.diff(np.ravel_multi_index(tuple(places), x.shape)) <= 0).any():
            return nothing("the indices are not in the order of the elements")
        got = np.zeros(x.shape, dtype=bool)
        got[tuple(places)] = True
        return differing(x != 0, got, np.abs(x), noises.of(0))


class Distinct(Rule):
    """Unique of all elements: values within the noise of each other may be one or several."""

    taken: ClassVar[tuple[int, ...]] = (2,)

    def chooses(self, node: Decision) -> bool:
        """Return whether the node chooses, and can be followed."""
        return "axis" not in node.attributes and super().chooses(node)

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        inverse = np.asarray(choice[0], dtype=np.int64)
        _, first, counts = np.unique(inverse, return_index=True, return_counts=True)
        outputs = [node.x.reshape(-1)[first], first, inverse, counts]
        return outputs[: len(node.outputs)]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        x, inverse = node.x.reshape(-1), choice[0]
        noise = np.broadcast_to(noises.of(0), node.x.shape).reshape(-1)
        names, first = np.unique(inverse, return_index=True)
        if inverse.shape != x.shape or not np.array_equal(names, np.arange(names.size)):
            return nothing("the inverse indices are not those of all distinct values")
        heads, head_noise = x[first], noise[first]
        joined = np.abs(x - heads[inverse]) > noise + head_noise[inverse]
        order = np.argsort(heads, kind="stable")
        split = np.zeros(names.size, dtype=bool)
        ends = (heads[order], head_noise[order])
        # Those that are equal and exact cannot be two.
        split[order[1:]] = (np.diff(ends[0]) == 0) & (ends[1][1:] + ends[1][:-1] == 0)
        if node.attributes.get("sorted", 1):
            highest = np.maximum.accumulate(heads - head_noise)
            split[1:] |= heads[1:] + head_noise[1:] < highest[:-1]
        wrong = joined | split[inverse]
        own = node.outputs[2].astype(np.float64) if len(node.outputs) > 2 else inverse.astype(np.float64)
        margins = np.abs(x - heads[inverse])
        return differing(own, inverse.astype(np.float64), margins, noise + head_noise[inverse], wrong)


class KeptBoxes(Rule):
    """NonMaxSuppression: the boxes that are kept, in their order."""

    reads = (0, 1)

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        return [np.asarray(choice[0], dtype=node.outputs[0].dtype)]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        boxes, scores, kept = node.x, node.input(1), choice[0]
        limits = [boxes.shape[0], scores.shape[1], boxes.shape[1]]
        if kept.ndim != 2 or kept.shape[1] != 3 or not ((kept >= 0) & (kept < limits)).all():
            return nothing("an index is out of range")
        groups = kept[:, 0] * limits[1] + kept[:, 1]
        if (np.diff(groups) < 0).any():
            return nothing("the boxes are not in the order of batches and classes")
        corners = _corners(boxes, bool(node.attributes.get("center_point_box", 0)))
        box_noise = 2 * np.broadcast_to(noises.of(0), boxes.shape).max(axis=-1)
        box_noise = box_noise + noises.rounding * np.abs(corners).max(axis=-1)
        score_noise = np.broadcast_to(noises.of(1), scores.shape)
        for batch in range(limits[0]):
            for label in range(limits[1]):
                chosen = kept[groups == batch * limits[1] + label, 2]
                fault = _kept_fault(
                    node, chosen, corners[batch], box_noise[batch], scores[batch, label], score_noise[batch, label]
                )
                if fault:
                    return nothing(f"of class {label} in sample {batch}, {fault}")
        if kept.shape == node.outputs[0].shape:
            return differing(node.outputs[0], kept, 0.0, 1.0)
        mine, theirs = (set(map(tuple, v.tolist())) for v in (node.outputs[0], kept))
        odd = np.asarray(sorted(mine ^ theirs)).reshape(-1, 3)
        ones = np.ones(len(odd))
        return Judged(
            places=odd, right=np.asarray([tuple(o) in mine for o in odd.tolist()]),
            got=np.asarray([tuple(o) in theirs for o in odd.tolist()]), margins=0 * ones, noises=ones, wrong=ones < 0,
        )  # fmt: skip


def _kept_fault(
    node: Decision, chosen: Array, corners: Array, box_noise: Array, scores: Array, score_noise: Array
) -> str:
    """What of the boxes kept of one class cannot come of rounding; empty where all can."""

    def scalar(index: int, default: float) -> float:
        value = node.inputs[index] if index < len(node.inputs) else None
        return default if value is None or not value.size else float(value.reshape(-1)[0])

    most, most_overlap, least_score = int(scalar(2, 0)), scalar(3, 0.0), scalar(4, -np.inf)
    if chosen.size != np.unique(chosen).size:
        return "a box is kept twice"
    if chosen.size > most:
        return f"{chosen.size} boxes are kept where {most} are allowed"
    # Certainly and possibly suppressed by what was kept so far.
    certain, possible = (np.zeros(scores.shape, dtype=bool) for _ in range(2))
    certain |= scores + score_noise <= least_score - np.where(score_noise > 0, 0, np.abs(least_score) * 1e-15)
    possible |= scores - score_noise <= least_score
    left = np.ones(scores.shape, dtype=bool)
    for box in chosen:
        if certain[box]:
            return f"box {box} is kept in spite of its score or of a box before it"
        rivals = left & ~possible & (scores - score_noise > scores[box] + score_noise[box])
        if rivals.any():
            return f"box {box} is kept before box {int(np.argmax(rivals))}, whose score is larger"
        left[box] = False
        least, most_likely = _overlaps(corners, box_noise, int(box))
        certain |= least > most_overlap
        possible |= most_likely >= most_overlap
    forgotten = left & ~possible
    if chosen.size < most and forgotten.any():
        return f"box {int(np.argmax(forgotten))} is not kept"
    return ""


def _corners(boxes: Array, are_centers: bool) -> Array:
    """Boxes as (..., 4): the smaller and the larger end on the first axis, then on the second."""
    a, b, c, d = np.moveaxis(boxes, -1, 0)
    if are_centers:
        ends = (b - d / 2, b + d / 2, a - c / 2, a + c / 2)
    else:
        ends = (np.minimum(a, c), np.maximum(a, c), np.minimum(b, d), np.maximum(b, d))
    return np.stack(ends, axis=-1)


def _overlaps(corners: Array, noise: Array, box: int) -> tuple[Array, Array]:
    """The least and the largest intersection over union of a box with each, its ends moved within the noise."""
    found = []
    for sign in (-1.0, 1.0):
        move = sign * (noise + noise[box])
        heights, widths = (
            np.maximum(np.minimum(hi, hi[box]) - np.maximum(lo, lo[box]) + move, 0.0)
            for lo, hi in ((corners[:, 0], corners[:, 1]), (corners[:, 2], corners[:, 3]))
        )
        sides = [np.maximum(corners[:, i + 1] - corners[:, i] - move, 0.0) for i in (0, 2)]
        areas = sides[0] * sides[1]
        shared = heights * widths
        union = areas + areas[box] - shared
        # Boxes smaller than their noise may be all of what they share.
        unknown = np.where((shared > 0) & (sign > 0), np.inf, 0.0)
        found.append(np.divide(shared, union, out=unknown, where=union > 0))
    return found[0], found[1]


RULES: dict[str, Rule] = {
    "GridSample": NearestSample(),
    "NonZero": NotZero(),
    "Unique": Distinct(),
    "NonMaxSuppression": KeptBoxes(),
}
