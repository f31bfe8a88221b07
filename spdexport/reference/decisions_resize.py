"""Choices of pixels: which one is nearest to a place between two, where an image is resized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.reference.decisions import Decision, Judged, Noises, Rule, differing, nothing
from spdexport.reference.noise import FLOAT32
from spdexport.reference.onnx_resize import nearest_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array
    from spdexport.reference.onnx_resize import NearestAxis

ROUNDINGS = 8
"""How many roundings to float32 coordinates may be off; runtimes multiply and divide in orders of their own."""

NEAR = 1e-3
"""Up to this share of a coordinate from a border between two pixels, either of them is looked for in the values."""

FITS = 0.25
"""How much less the values of another pixel have to be off than those of float64's."""


class NearestPixels(Rule):
    """Resize and Upsample with their mode nearest: the pixels that were taken are told from the values.

    Each axis has one pixel for each position, whatever the others are.
    """

    def chooses(self, node: Decision) -> bool:
        """Return whether the node chooses, and can be followed."""
        return bool(node.output_names[0]) and bool(self._axes(node))

    def choice(self, node: Decision, values: Sequence[Array]) -> Any:
        """Return the pixels of each axis."""
        axes = self._axes(node)
        found = [each.own.copy() for each in axes]
        for index, each in enumerate(axes):
            other = _beside(each)
            near = np.flatnonzero((other != each.own) & (_off(each, other) <= NEAR * (1 + np.abs(each.exact))))
            if not near.size:
                continue
            kept = [(a.axis, a.own) for k, a in enumerate(axes) if k != index]
            source, right = _taken(node.x, kept), values[0].take(near, each.axis)
            own, others = (
                _distance(source.take(rows[near], each.axis), right, each.axis) for rows in (each.own, other)
            )
            better = near[others < FITS * own]
            found[index][better] = other[better]
        return found

    def given(self, node: Decision, choice: Any) -> list[Array]:
        """Return all outputs, given the choice."""
        rows = [(each.axis, pixels) for each, pixels in zip(self._axes(node), choice, strict=True)]
        return [np.asarray(_taken(node.x, rows), dtype=node.outputs[0].dtype)]

    def judge(self, node: Decision, choice: Any, noises: Noises) -> Judged:
        """Return whether rounding explains the choice; where a scale is a power of two, there is none."""
        rank, scales = node.x.ndim, 0.0
        for index, value in enumerate(node.inputs[1:], 1):
            if value is not None and value.dtype.kind == "f" and value.size:
                scales = max(scales, float(np.max(noises.of(index) / np.maximum(np.abs(value), FLOAT32))))
        parts = []
        for each, pixels in zip(self._axes(node), choice, strict=True):
            rounding = scales + (0.0 if each.is_exact else ROUNDINGS * FLOAT32)
            noise = rounding * (1 + np.abs(each.exact))
            found = differing(each.own, pixels, _off(each, pixels), noise)
            places = np.zeros((len(found.right), rank), int)
            places[:, each.axis] = found.places[:, 0]
            parts.append((found, places))
        if not any(len(found.right) for found, _ in parts):
            return nothing()

        def of_all(name: str) -> Array:
            return np.concatenate([getattr(found, name) for found, _ in parts])

        return Judged(
            places=np.concatenate([places for _, places in parts]),
            right=of_all("right"),
            got=of_all("got"),
            margins=of_all("margins"),
            noises=of_all("noises"),
            wrong=of_all("wrong"),
        )

    @staticmethod
    def _axes(node: Decision) -> list[NearestAxis]:
        return nearest_axes(node.op, node.version, node.inputs, node.attributes, node.outputs[0].shape)


def _beside(each: NearestAxis) -> Array:
    """The pixel on the other side of the border that each coordinate is next to."""
    before, behind = each.region
    place = each.exact - each.own
    side = np.where(place + before < behind - place, -1, 1)
    beside: Array = np.clip(each.own + side, 0, each.length - 1)
    return beside


def _off(each: NearestAxis, pixels: Array) -> Array:
    """How far coordinates are from where they would be rounded to some pixels; those at the ends have all beyond."""
    before, behind = each.region
    low = np.where(pixels <= 0, -np.inf, pixels - before)
    high = np.where(pixels >= each.length - 1, np.inf, pixels + behind)
    off: Array = np.maximum(np.maximum(low - each.exact, each.exact - high), 0.0)
    return off


def _taken(x: Array, rows: Sequence[tuple[int, Array]]) -> Array:
    for axis, pixels in rows:
        x = x.take(pixels, axis)
    return x


def _distance(x: Array, y: Array, axis: int) -> Array:
    """How far two arrays are from each other, for each position of an axis."""
    off = np.abs(x.astype(np.float64) - y.astype(np.float64))
    sums: Array = np.nan_to_num(np.moveaxis(off, axis, 0).reshape(off.shape[axis], -1)).sum(axis=1)
    return sums


RULES: dict[str, Rule] = dict.fromkeys(("Resize", "Upsample"), NearestPixels())
