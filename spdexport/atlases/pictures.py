"""Arrays as pictures: what a component reads, where it fires, and what the samples look like. Pure numpy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from spdexport.atlases.png import encode_colours, encode_indexed, rounded
from spdexport.atlases.result import Picture
from spdexport.names import count, shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.conv import Array, FloatArray

PATCHES = 64
"""Patches in the picture of V, those of the channels with the greatest norm."""

LARGEST = 4096
"""Values in the picture of V."""

COLOURS = 3

_LEVELS = 7
"""Shades of either sign: with 0 and what is not drawn, the 16 colours of 4 bits."""

_NEGATIVE, _ZERO, _POSITIVE = (33, 102, 172), (247, 247, 247), (178, 24, 43)
"""Of ColorBrewer's RdBu: told apart by those who do not see red and green."""

_SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Five of matplotlib's viridis, from the least to the most."""


def _between(stops: Sequence[tuple[int, int, int]], number: int) -> Array:
    """Return colours that go evenly from stop to stop: (number, 3), uint8."""
    at = np.linspace(0, len(stops) - 1, number)
    channels = [np.interp(at, range(len(stops)), [stop[c] for stop in stops]) for c in range(3)]
    return np.rint(np.stack(channels, axis=1)).astype(np.uint8)


_SIGNED = np.concatenate([_between((_NEGATIVE, _ZERO, _POSITIVE), 2 * _LEVELS + 1), np.zeros((1, 3), np.uint8)])
_NOT_DRAWN = len(_SIGNED) - 1
_RISING = _between(_SCALE, 16)


def signed_levels(values: FloatArray) -> Array:
    """Return the colour of each value on a scale from minus to plus the greatest of them, white in the middle."""
    greatest = np.abs(values).max(initial=0.0)
    scaled = values / greatest if greatest > 0 else np.zeros_like(values)
    return np.asarray(np.rint(scaled * _LEVELS) + _LEVELS, np.uint8)


def weights_picture(weights: Array) -> Picture:
    """Return what a component reads, one filter of V, as a picture.

    Args:
        weights: Shape (channels, *kernel); a linear layer's have the shape of what it reads, or (inputs,).
    """
    values = np.asarray(weights, np.float64)
    if values.ndim == 3 and len(values) == COLOURS and values[0].size > 1:
        return _picture(_in_colour(_reduced(values)))
    if math.prod(values.shape[1:]) == 1:
        return _indexed(signed_levels(_in_rows(values.reshape(-1))))
    patches = values.reshape(-1, *((1, *values.shape[1:]) if values.ndim == 2 else values.shape[-2:]))
    patches = _reduced(patches)
    most = max(min(PATCHES, LARGEST // patches[0].size), 1)
    if len(patches) > most:
        norms = np.linalg.norm(patches.reshape(len(patches), -1), axis=1)
        patches = patches[np.sort(np.argsort(-norms, kind="stable")[:most])]
    return _indexed(_grid(signed_levels(patches)))


def told_of_weights(shape: Sequence[int], *, flattened: bool) -> str:
    """Return in words what ``weights_picture`` shows of weights of a shape."""
    channels, kernel = shape[0], shape[1:]
    what = "maps" if flattened else "patches"
    if len(shape) == 3 and channels == COLOURS and math.prod(kernel) > 1:
        return f"one patch of {shape_of(kernel)} in colour, grey is 0"
    if math.prod(kernel) == 1:
        return f"{count(channels, 'input')}, row by row; red is positive, blue negative"
    if channels == 1:
        return f"one patch of {shape_of(kernel)}; red is positive, blue negative"
    most = max(min(PATCHES, LARGEST // math.prod(kernel[-2:])), 1)
    of = f"the strongest {most} of {channels} channels" if channels > most else f"{channels} channels"
    return f"{what} of {shape_of(kernel)}, of {of}; red is positive, blue negative"


def places_picture(shares: FloatArray) -> Picture:
    """Return the share of samples that fire at each place as a picture; the brightest is the greatest share.

    Args:
        shares: Shape (*places,).
    """
    rows = shares[None] if shares.ndim == 1 else shares.reshape(-1, shares.shape[-1])
    if rows.shape[0] == 1 and rows.shape[1] > LARGEST // 64:
        rows = _reduced(rows[None])[0]
    rows = _reduced(rows[None], side=32)[0]
    greatest = rows.max(initial=0.0)
    levels = np.rint(rows / greatest * (len(_RISING) - 1)) if greatest > 0 else np.zeros_like(rows)
    return _made(encode_indexed(levels.astype(np.uint8), _RISING), rows.shape)


def as_pixels(sample: Array, low: FloatArray, high: FloatArray) -> Array:
    """Return a sample as an image: (height, width, 3) or (height, width, 1), uint8.

    Args:
        sample: Shape (channels, height, width); of other numbers of channels than 1 and 3, their mean is taken.
        low: What becomes black, (channels,): the least of the data.
        high: What becomes white, the greatest.
    """
    span = np.where(high > low, high - low, 1.0)
    scaled = (np.asarray(sample, np.float64) - low[:, None, None]) / span[:, None, None]
    if len(scaled) != COLOURS:
        scaled = scaled.mean(axis=0, keepdims=True)
    return np.rint(np.clip(np.moveaxis(scaled, 0, -1), 0, 1) * 255).astype(np.uint8)


def smaller(pixels: Array, side: int) -> Array:
    """Return an image of at most ``side`` pixels each way, each the mean of a block."""
    found = _reduced(np.moveaxis(pixels, -1, 0).astype(np.float64), side=side)
    return np.rint(np.moveaxis(found, 0, -1)).astype(np.uint8)


def thumbnail(pixels: Array, side: int) -> Picture:
    """Return a small picture of an image of ``as_pixels``."""
    small = smaller(pixels, side)
    return _picture(rounded(np.repeat(small, 3, axis=2) if small.shape[2] == 1 else small))


def _reduced(planes: Array, side: int = 64) -> Array:
    """Return planes (number, height, width) as means of blocks, so that neither size is above ``side``."""
    height, width = planes.shape[1:]
    block = -(-max(height, width) // side)
    if block == 1:
        return planes
    # Blocks at the lower and right edges are smaller where the sizes are no multiples.
    rows, columns = range(0, height, block), range(0, width, block)
    sums = np.add.reduceat(np.add.reduceat(planes, rows, axis=1), columns, axis=2)
    counted = np.add.reduceat(np.add.reduceat(np.ones((height, width)), rows, axis=0), columns, axis=1)
    return np.asarray(sums / counted)


def _in_colour(values: FloatArray) -> Array:
    greatest = np.abs(values).max(initial=0.0)
    scaled = values / greatest if greatest > 0 else values
    return np.rint(127.5 + 127.5 * np.moveaxis(scaled, 0, -1)).astype(np.uint8)


def _in_rows(values: FloatArray) -> FloatArray:
    """Return a vector as rows, four times as wide as high; of very long ones, the greatest of each few."""
    if values.size > LARGEST:
        few = -(-values.size // LARGEST)
        groups = np.pad(values, (0, -values.size % few)).reshape(-1, few)
        values = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0]
    width = min(values.size, max(16, math.ceil(math.sqrt(4 * values.size))))
    return np.pad(values, (0, -values.size % width), constant_values=0).reshape(-1, width)


def _grid(patches: Array) -> Array:
    """Return patches (number, height, width) of colours side by side, with a line that is not drawn between them."""
    number, height, width = patches.shape
    columns = min(max(math.ceil(math.sqrt(number * (height + 1) / (width + 1))), 1), number)
    rows = -(-number // columns)
    made = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), _NOT_DRAWN, np.uint8)
    for i, patch in enumerate(patches):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        made[top : top + height, left : left + width] = patch
    return made


def _indexed(levels: Array) -> Picture:
    return _made(encode_indexed(levels, _SIGNED, transparent=_NOT_DRAWN), levels.shape)


def _picture(pixels: Array) -> Picture:
    return _made(encode_colours(pixels), pixels.shape)


def _made(content: bytes, shape: Sequence[int]) -> Picture:
    return Picture(png=content, height=int(shape[0]), width=int(shape[1]))
