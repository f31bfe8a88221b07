"""Ablations: in words, as a table, as bars for a page, and as JSON values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from spdexport import __version__
from spdexport.names import count
from spdexport.report.made import artifacts_json
from spdexport.report.numbers import ratio
from spdexport.report.tables import results_table
from spdexport.text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spdexport.ablation.ablate import Ablated, Ablations
    from spdexport.report.console import FittingTable

SHOWN = 15
"""Ablations in the table, the greatest first, as long as --verbose is not given."""

WIDTH, HEIGHT, LEFT, BOTTOM = 960, 150, 56, 22
"""Of the picture of a layer, in its own units."""


def title(result: Ablations) -> str:
    """Return what was done to what."""
    how = "alone kept in its layers" if result.kept else "removed"
    what = count(len(result.found), "ablation")
    whole = (
        f"{what}, each {how}, on {count(result.samples, 'sample')}: change of {result.output} from {result.baseline}"
    )
    return f"{whole}; at work throughout: {'; '.join(result.active)}" if result.active else whole


def ranked(result: Ablations) -> list[Ablated]:
    """Return those that did something, the greatest effect first.

    By KL divergence where there is one, else by the change.
    """

    def size(one: Ablated) -> tuple[float, float]:
        assert one.effect is not None, "only those with an effect are ranked"
        return (one.effect.kl or 0.0, one.effect.change)

    return sorted((one for one in result.found if one.effect is not None), key=size, reverse=True)


def table(result: Ablations, *, shown: int | None) -> FittingTable:
    """Return the greatest effects.

    Args:
        result: All of them.
        shown: How many; None for all.
    """
    made = results_table("ablated", "KL", "top changes", "change", "relative", "largest")
    for one in ranked(result)[:shown]:
        effect = one.effect
        assert effect is not None, "only those with an effect are ranked"
        made.add_row(
            Text(one_line(one.components.name)),
            ratio(effect.kl),
            "-" if effect.top_changed is None else f"{effect.top_changed:.1%}",
            ratio(effect.change),
            ratio(effect.relative),
            ratio(effect.largest),
        )
    return made


def remarks(result: Ablations, *, shown: int | None) -> list[str]:
    """Return what is not in the table, and what its columns are."""
    said = []
    live = ranked(result)
    if shown is not None and len(live) > shown:
        said.append(f"and {len(live) - shown} more; --verbose shows all, --report and --html have them")
    if dead := len(result.found) - len(live):
        said.append(f"{count(dead, 'ablation')} of components that the baseline has removed already")
    said.append("KL: of the softmax, in nats; change: 2-norm, mean over samples; relative: to the baseline's norm")
    return said


def ablations_json(result: Ablations) -> dict[str, Any]:
    """Return the names of the JSON report."""
    found = asdict(result)
    found["ablations"] = [
        {
            "name": one.components.name,
            "members": {layer: list(indices) for layer, indices in one.components.members.items()},
            **({"dead": True} if one.effect is None else {"dead": False, **asdict(one.effect)}),
        }
        for one in result.found
    ]
    del found["found"]
    found["artifacts"] = artifacts_json(found.pop("hashes"))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One ablation in a picture; y goes downwards."""

    x: float
    y: float
    width: float
    height: float
    dead: bool
    title: str


def bars(found: Sequence[Ablated], greatest: float) -> tuple[Bar, ...]:
    """Bars of some ablations side by side.

    Args:
        found: In order.
        greatest: The effect that is as high as the picture.
    """
    step = (WIDTH - LEFT) / max(len(found), 1)
    made = []
    for number, one in enumerate(found):
        size = 0.0 if one.effect is None else _size(one)
        height = (HEIGHT - BOTTOM - 8) * size / greatest if greatest > 0 else 0.0
        told = "removed in the baseline" if one.effect is None else f"{ratio(size)}"
        made.append(
            Bar(
                x=round(LEFT + number * step + 0.1 * step, 2),
                y=round(HEIGHT - BOTTOM - max(height, 1.0), 2),
                width=round(0.8 * step, 2),
                height=round(max(height, 1.0), 2),
                dead=one.effect is None,
                title=f"{one.components.name}: {told}",
            )
        )
    return tuple(made)


def _size(one: Ablated) -> float:
    assert one.effect is not None, "what was not run has no size"
    return one.effect.change if one.effect.kl is None else one.effect.kl


def values(result: Ablations) -> dict[str, Any]:
    """Return what the page shows: a picture for each layer, or one for all sets."""
    groups: dict[str, list[Ablated]] = {}
    for one in result.found:
        layers = list(one.components.members)
        single = len(layers) == 1 and one.components.name.startswith(f"{layers[0]}:")
        groups.setdefault(layers[0] if single else "sets", []).append(one)
    live = ranked(result)
    measure = "mean change of the output, 2-norm" if any(o.effect and o.effect.kl is None for o in live) else (
        "mean KL divergence of the softmax, in nats"
    )  # fmt: skip
    pictures = []
    for name, found in groups.items():
        greatest = max((_size(one) for one in found if one.effect is not None), default=0.0)
        pictures.append({"name": name, "bars": bars(found, greatest), "greatest": greatest, "number": len(found)})
    return {
        "title": title(result),
        "file": result.file,
        "measure": measure,
        "pictures": pictures,
        "rows": live,
        "notes": result.notes,
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "bottom": HEIGHT - BOTTOM,
        "versions": result.versions,
        "hashes": result.hashes,
        "made_by": f"spdexport {__version__}",
    }
