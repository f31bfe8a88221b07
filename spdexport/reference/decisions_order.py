"""Choices by order: the largest, the k largest, a whole order, and where the largest in a window is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from spdexport.reference.decisions import Decision, Judged, Noises, Rule, differing, nothing

if TYPE_CHECKING:
    from spdexport.conv import Array


class Largest(Rule):
    """ArgMax and ArgMin."""

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        return [np.asarray(choice[0], dtype=node.outputs[0].dtype)]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        axis = int(node.attributes.get("axis", 0))
        kept = bool(node.attributes.get("keepdims", 1))
        got, right = (v if kept else np.expand_dims(v, axis) for v in (choice[0], node.outputs[0]))
        sign = -1.0 if node.op == "ArgMin" else 1.0
        last = bool(node.attributes.get("select_last_index", 0))
        found = ordered(sign * node.x, right, got, noises.of(0), axis, last=last, ties=node.ties_are_open)
        return found if kept else _without(found, axis)


class Largests(Rule):
    """TopK, which is also what a sort is: the indices are the choice, the values follow from them."""

    taken: ClassVar[tuple[int, ...]] = (1,)

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        indices = np.asarray(choice[0], dtype=node.outputs[1].dtype)
        axis = int(node.attributes.get("axis", -1))
        inside = np.clip(indices, 0, max(node.x.shape[axis] - 1, 0))
        return [np.take_along_axis(node.x, inside, axis=axis), indices]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        sign = 1.0 if node.attributes.get("largest", 1) else -1.0
        is_sorted = bool(node.attributes.get("sorted", 1))
        return ordered(
            sign * node.x,
            node.outputs[1],
            choice[0],
            noises.of(0),
            int(node.attributes.get("axis", -1)),
            is_sorted=is_sorted,
            ties=node.ties_are_open or not is_sorted,
        )


class OneHotLargest(Rule):
    """Hardmax: 1 at the largest."""

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        return [np.asarray(choice[0], dtype=node.outputs[0].dtype)]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        got, x, noise = choice[0].astype(np.float64), node.x, np.broadcast_to(noises.of(0), node.x.shape)
        axis = int(node.attributes.get("axis", -1 if node.version >= 13 else 1))
        right = node.outputs[0]
        if node.version < 13:
            # Before opset 13 all axes from `axis` on are one.
            rows = int(np.prod(x.shape[:axis]))
            got, right, x, noise = (v.reshape(rows, -1) for v in (got, right, x, noise))
            axis = -1
        if not (np.isin(got, (0, 1)).all() and (got.sum(axis=axis) == 1).all()):
            return nothing("it does not give a single 1 among zeros")
        chosen, own = (np.argmax(v, axis=axis, keepdims=True) for v in (got, right))
        return ordered(x, own, chosen, noise, axis, ties=node.ties_are_open)


class LargestInWindow(Rule):
    """MaxPool with its second output, the places of the largest values; they are the choice, the values are steady."""

    taken: ClassVar[tuple[int, ...]] = (1,)

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        return [node.outputs[0], np.asarray(choice[0], dtype=node.outputs[1].dtype)]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice."""
        x, own, got = node.x, node.outputs[1], choice[0]
        places = x.size if not node.attributes.get("of_plane") else int(np.prod(x.shape[2:]))
        if not ((got >= 0) & (got < places)).all():
            return nothing("an index is out of range")
        mine, theirs = self._places(node, own), self._places(node, got)
        kernel = node.attributes["kernel_shape"]
        steps = node.attributes.get("dilations") or [1] * len(kernel)
        here = np.indices(got.shape)
        beside = (theirs[0] != here[0]) | (theirs[1] != here[1])
        for mine_at, there, size, step in zip(mine[2:], theirs[2:], kernel, steps, strict=True):
            beside |= (np.abs(mine_at - there) > (size - 1) * step) | ((mine_at - there) % step != 0)
        noise = np.broadcast_to(noises.of(0), x.shape)
        with np.errstate(invalid="ignore"):
            margins = np.abs(x[mine] - x[theirs])
        return differing(own, got, np.where(beside, np.inf, margins), noise[mine] + noise[theirs], ties=True)

    @staticmethod
    def _places(node: Decision, indices: Array) -> tuple[Array, ...]:
        """The indices as places in the input, one array for each axis."""
        shape = node.x.shape
        if node.attributes.get("of_plane"):  # as torch counts
            here = np.indices(indices.shape)
            return (here[0], here[1], *np.unravel_index(indices, shape[2:]))
        if not node.attributes.get("storage_order"):
            return tuple(np.unravel_index(indices, shape))
        plane = int(np.prod(shape[2:]))
        outer = np.unravel_index(indices // plane, shape[:2])
        inner = np.unravel_index(indices % plane, shape[2:], order="F")
        return (*outer, *inner)


def ordered(
    x: Array,
    right: Array,
    got: Array,
    noise: Array,
    axis: int,
    *,
    is_sorted: bool = True,
    last: bool = False,
    ties: bool = False,
) -> Judged:
    """Judge the indices of the largest values along an axis.

    They are right where some values within the noise have this order: none comes behind a value that is smaller by
    more than the noise of the two, and none that is left out is larger so than one that is taken.

    Args:
        x: The values, of which the largest are to come first.
        right: The indices by float64, of ``got``'s shape.
        got: The indices that were chosen.
        noise: Of ``x``.
        axis: That is searched.
        is_sorted: Whether those that are taken have an order.
        last: Whether of equal and exact values the last comes first, rather than the first.
        ties: Whether these may come in any order.
    """
    if got.shape != right.shape:
        return nothing(f"it gives indices of shape {got.shape} where {right.shape} is right")
    size = x.shape[axis]
    if not ((got >= 0) & (got < size)).all():
        return nothing("an index is out of range")
    values, noises, mine, theirs = (np.moveaxis(v, axis, -1) for v in (x, np.broadcast_to(noise, x.shape), right, got))
    if (np.diff(np.sort(theirs, axis=-1), axis=-1) == 0).any():
        return nothing("an index is there twice")
    # Infinities are exact, and the differences of equal ones no numbers.
    finite = np.nan_to_num(values, posinf=np.finfo(float).max / 4, neginf=-np.finfo(float).max / 4)
    low, high = finite - noises, finite + noises
    taken_low, taken_high = (np.take_along_axis(v, theirs, axis=-1) for v in (low, high))
    taken, taken_noise = (np.take_along_axis(v, theirs, axis=-1) for v in (finite, noises))
    margins = np.abs(np.take_along_axis(finite, mine, axis=-1) - taken)
    sizes = np.take_along_axis(noises, mine, axis=-1) + taken_noise
    wrong = np.zeros(theirs.shape, dtype=bool)
    if not theirs.size:
        return nothing()
    rank = -np.arange(size) if last else np.arange(size)
    ranks = rank[theirs]
    if is_sorted and theirs.shape[-1] > 1:
        before = np.minimum.accumulate(taken_high, axis=-1)[..., :-1]
        off = taken_low[..., 1:] > before
        equal = (taken[..., 1:] == taken[..., :-1]) & (taken_noise[..., 1:] == 0) & (taken_noise[..., :-1] == 0)
        off |= equal & (ranks[..., 1:] < ranks[..., :-1]) & (not ties)
        wrong[..., 1:] |= off
    if theirs.shape[-1] < size:
        out = np.ones(values.shape, dtype=bool)
        np.put_along_axis(out, theirs, False, axis=-1)
        best = np.where(out, low, -np.inf).argmax(axis=-1)[..., None]
        best_low, best_value = (np.take_along_axis(v, best, axis=-1) for v in (low, finite))
        best_noise = np.take_along_axis(noises, best, axis=-1)
        beaten = best_low > taken_high
        if not ties:
            # Of those that are equal and exact, one that should have come first may be left out for the last taken.
            least = taken.min(axis=-1, keepdims=True)
            exact = (taken == least) & (taken_noise == 0)
            latest = np.where(exact, ranks, rank.min() - 1).max(axis=-1, keepdims=True)
            passed = out & (finite == least) & (noises == 0) & (rank < latest)
            beaten |= exact & (ranks == latest) & passed.any(axis=-1, keepdims=True)
        wrong |= beaten
        margins = np.where(beaten, best_value - taken, margins)
        sizes = np.where(beaten, best_noise + taken_noise, sizes)
    mine, theirs, margins, sizes, wrong = (np.moveaxis(v, -1, axis) for v in (mine, theirs, margins, sizes, wrong))
    return differing(mine, theirs, margins, sizes, wrong)


def _without(found: Judged, axis: int) -> Judged:
    """The same for an output that lacks the axis."""
    places = np.delete(found.places, axis, axis=1) if found.places.size else found.places
    return replace(found, places=places)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("ArgMax", "ArgMin"), Largest()),
    "TopK": Largests(),
    "Hardmax": OneHotLargest(),
    "MaxPool": LargestInWindow(),
}
