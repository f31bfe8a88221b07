"""The noise ratio of every layer as points on a plane: where each goes, for a template to draw.

Up is the noise ratio on a logarithmic scale, to the right go the layers in the model's order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdexport.report.numbers import ratio
from spdexport.verification.compare import FACTOR
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.verification.result import LayerResult

WIDTH, HEIGHT = 960, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 56, 40
"""The margins around the plane: tick labels at the left, names of failing layers on top, numbers of layers below."""

ROWS = 3
"""Rows of names of failing layers; those without room are named in the table below alone."""
_CHARACTER = 7.5
"""Generous width of a letter, in the picture's units."""
_NAME = 34
"""Characters of a name in the picture; longer ones lose their middle."""

_LOWEST, _HIGHEST = 1e-4, 1e12
"""Ratios beyond these are drawn at the edge: there is nothing to see in how much further they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One ratio of one layer.

    Attributes:
        x, y: In the picture's units, y downwards.
        kind: ``weights`` or ``output``.
        failed: Whether it is above the limit.
        beyond: Whether it is further up than it is drawn, for an infinite ratio.
        title: What it is, in words.
    """

    x: float
    y: float
    kind: str
    failed: bool
    beyond: bool
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Text at a place; ``anchor`` is SVG's text-anchor."""

    x: float
    y: float
    text: str
    anchor: str = "middle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All that is drawn.

    Attributes:
        points: Of all layers.
        ticks: At powers of ten, left of the plane.
        limit: The height of the largest ratio that passes.
        names: Of failing layers, above the plane.
        stems: x of the lines from these names down to their layers, with the y where each begins.
        layers: Names of layers, or the numbers of some, below the plane.
    """

    points: tuple[Point, ...]
    ticks: tuple[Label, ...]
    limit: float
    names: tuple[Label, ...]
    stems: tuple[tuple[float, float], ...]
    layers: tuple[Label, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def draw(layers: Sequence[LayerResult]) -> Picture | None:
    """Return the picture of some layers; None where no ratio of any is known."""
    found = [(i, x, kind, r) for i, x in enumerate(layers) for kind, r in _ratios(x)]
    if not found:
        return None
    finite = [r for *_, r in found if math.isfinite(r) and r > 0]
    low = math.floor(math.log10(min([0.01, max(_LOWEST, min(finite, default=1.0))])))
    high = math.ceil(math.log10(max([100.0, min(_HIGHEST, max(finite, default=1.0))])))

    def up(number: float) -> float:
        share = (math.log10(number) - low) / (high - low) if number > 0 else 0.0
        return HEIGHT - BOTTOM - min(max(share, 0.0), 1.0) * (HEIGHT - BOTTOM - TOP)

    def along(index: int) -> float:
        return LEFT + (index + 0.5) / len(layers) * (WIDTH - RIGHT - LEFT)

    points = tuple(
        Point(
            x=round(along(i), 1),
            y=round(TOP if math.isinf(r) else up(r), 1),
            kind=kind,
            failed=not r <= FACTOR,
            beyond=math.isinf(r),
            title=f"{layer.name}: {kind} {ratio(r)}",
        )
        for i, layer, kind, r in found
    )
    names, stems = _named([(along(i), x.name) for i, x in enumerate(layers) if x.status is Status.FAIL])
    step = max(1, math.ceil((high - low) / 8))
    return Picture(
        points=points,
        ticks=tuple(
            Label(x=LEFT - 8, y=round(up(10.0**p) + 4, 1), text=_power(p), anchor="end")
            for p in range(low, high + 1, step)
        ),
        limit=round(up(FACTOR), 1),
        names=names,
        stems=stems,
        layers=_below(layers, [along(i) for i in range(len(layers))]),
    )


def _ratios(layer: LayerResult) -> list[tuple[str, float]]:
    known = (("weights", layer.weights_ratio), ("output", layer.output_ratio))
    return [(kind, number) for kind, number in known if number is not None and not math.isnan(number)]


def _named(failing: Sequence[tuple[float, str]]) -> tuple[tuple[Label, ...], tuple[tuple[float, float], ...]]:
    """Names above the plane, kept inside of the picture; one that finds no room in any row is left to the table."""
    free = [0.0] * ROWS  # how far each row is taken
    labels, stems = [], []
    for x, name in failing:
        text = shortened(name)
        start = min(max(x - len(text) * _CHARACTER / 2, 4.0), WIDTH - 4 - len(text) * _CHARACTER)
        row = next((row for row, taken in enumerate(free) if taken <= start), None)
        if row is None:
            continue
        free[row] = start + (len(text) + 2) * _CHARACTER
        y = TOP - 12.0 - 14 * row
        labels.append(Label(x=round(start, 1), y=y, text=text, anchor="start"))
        stems.append((round(x, 1), y + 3.0))
    return tuple(labels), tuple(stems)


def _below(layers: Sequence[LayerResult], places: Sequence[float]) -> tuple[Label, ...]:
    """What stands below the plane: the layers' names where they all fit, else some of their numbers."""
    names = [layer.name for layer in layers]
    fit = (max(map(len, names)) + 2) * _CHARACTER * len(names) <= WIDTH - RIGHT - LEFT
    step = 1 if fit else max(1, math.ceil(len(names) / 12))
    return tuple(
        Label(x=round(places[i], 1), y=HEIGHT - BOTTOM + 18, text=names[i] if fit else str(i + 1))
        for i in range(0, len(names), step)
    )


def shortened(name: str) -> str:
    """Return a name with its middle left out if it is long: both ends tell more than one."""
    half = (_NAME - 1) // 2
    return name if len(name) <= _NAME else f"{name[:half]}…{name[-half:]}"


def _power(exponent: int) -> str:
    return f"{10**exponent:g}" if -3 <= exponent <= 3 else f"1e{exponent}"
