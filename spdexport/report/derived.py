"""Masks made from data: in words, as a table, and as JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.text import Text

from spdexport.importance.statistics import Measure
from spdexport.names import count
from spdexport.report.made import made_json
from spdexport.report.tables import results_table
from spdexport.text import one_line

if TYPE_CHECKING:
    from spdexport.conv import FloatArray
    from spdexport.importance.result import DerivedMasks, LayerMask
    from spdexport.importance.statistics import Rule
    from spdexport.report.console import FittingTable

FORMATS = ("{:.3g}", "{:.3g}", "{:.1%}")
"""Of the greatest by each measure, in the order of ``Measure``."""

LEGEND = "peak, mean: the greatest of any component, over all samples and locations; fires: the most that any does"


def title(result: DerivedMasks) -> str:
    """Return what was kept of what, and by which rule."""
    live, all_of_them = (sum(getattr(x, what) for x in result.layers) for what in ("live", "components"))
    kept = f"{live} of {count(all_of_them, 'component')} kept"
    return f"{kept}: {rule(result)}" if result.told else f"{kept}, on {count(result.samples, 'sample')}: {rule(result)}"


def rule(result: DerivedMasks) -> str:
    """Return the rule in words."""
    made = result.rule
    if made is None:
        return result.told
    beside = f", of {result.told}" if result.told else ""
    return f"{_rule(made, is_told=bool(result.told))}{beside}"


def _rule(made: Rule, *, is_told: bool) -> str:
    what = {
        Measure.PEAK: "peak importance",
        Measure.MEAN: "mean importance",
        Measure.FREQUENCY: "firing density" if is_told else f"frequency of an importance above {made.threshold:g}",
    }[made.by]
    if made.top is not None:
        return f"the {made.top} of each layer with the greatest {what}"
    if made.by is Measure.FREQUENCY:
        return f"{what} at least {made.min_frequency:g}" if made.min_frequency else f"{what} above 0"
    return f"{what} above {made.threshold:g}"


def table(result: DerivedMasks) -> FittingTable:
    """Return a row for each layer."""
    made = results_table("layer", "C", "live", "peak", "mean", "fires")
    for layer in result.layers:
        found = [None if layer.importances is None else layer.importances.measured(m) for m in Measure]
        peak, mean, fires = ("-" if x is None else form.format(x.max()) for x, form in zip(found, FORMATS, strict=True))
        made.add_row(Text(one_line(layer.name)), str(layer.components), str(layer.live), peak, mean, fires)
    return made


def _known(layer: LayerMask, measure: Measure) -> FloatArray | None:
    return None if layer.importances is None else layer.importances.measured(measure)


def masks_json(result: DerivedMasks) -> dict[str, Any]:
    """Return the names of the JSON report."""
    return {
        "samples": result.samples,
        "told": result.told,
        "rule": None
        if (made := result.rule) is None
        else {
            "by": made.by.value,
            "threshold": made.threshold,
            "min_frequency": made.min_frequency,
            "top": made.top,
        },
        "layers": [
            {
                "name": layer.name,
                "components": layer.components,
                "live": layer.live,
                "kept": [int(index) for index in layer.mask.nonzero()[0]],
                **{m.value: None if (x := _known(layer, m)) is None else x.tolist() for m in Measure},
            }
            for layer in result.layers
        ],
        **made_json(result),
    }
