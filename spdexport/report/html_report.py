"""The HTML report: one page that needs nothing but itself, to keep beside a file or to attach to a build."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from spdexport import __version__
from spdexport.ablation.ablate import Ablations
from spdexport.compression.result import Compression
from spdexport.folding import Folding
from spdexport.invocation import command_line
from spdexport.names import some
from spdexport.pipeline import Conversion, Inspection
from spdexport.report import ablations, compression
from spdexport.report.common import names_of, verification_of
from spdexport.report.cost_bars import cost_bars
from spdexport.report.explain import (
    advice,
    edge_names,
    edge_reason,
    failing_layers,
    layer_reason,
    tolerance,
)
from spdexport.report.headline import headline, saved_bytes
from spdexport.report.json_report import to_json
from spdexport.report.numbers import below, ratio, short, size
from spdexport.report.pages import date, page_environment
from spdexport.report.picture import draw
from spdexport.report.summary import macs_left
from spdexport.report.tables import words
from spdexport.report.terminal import version_texts
from spdexport.verification.result import Status, Verification

if TYPE_CHECKING:
    import jinja2

    from spdexport.planning import Plan
    from spdexport.report.common import Result

NAMES_SHOWN = 12
"""Failing layers named at the top; the table below has them all."""


def to_html(result: Result) -> str:
    """Return a result as an HTML page.

    Nothing in it is loaded from elsewhere, no script runs but the one that sorts tables, and every name and reason is
    escaped: they come from models and files that nobody vouches for.
    """
    if isinstance(result, Ablations):
        return _environment().get_template("ablations.html.jinja").render(ablations.values(result))
    return _environment().get_template("report.html.jinja").render(_values(result))


def _environment() -> jinja2.Environment:
    environment = page_environment()
    environment.filters.update(
        sortable=lambda number: "" if number is None else "1e999" if math.isinf(number) else number,
        ratio=ratio,
        shown_short=lambda number: "-" if number is None else short(number),
    )
    environment.globals["words"] = words
    return environment


def _values(result: Result) -> dict[str, Any]:
    """What the template shows. What is common to all commands is taken as the JSON report has it."""
    report = to_json(result)
    found = verification_of(result)
    first = headline(result)
    plan = _plan(result)
    layers = found.layers if found else ()
    return {
        "title": names_of(result),
        "status": Status.FAIL if first.has_failed else first.status,
        "verdict": first.verdict,
        "exceeded": first.exceeded,
        "tiles": _tiles(result, plan),
        "edges": _edges(found) if found else [],
        "advice": advice(found) if found else None,
        "failing": some([layer.name for layer in failing_layers(found)], NAMES_SHOWN) if found else "",
        "tolerance": tolerance(found) if found else "",
        "approximation": found.approximation if found else None,
        "search": compression.values(result.search) if isinstance(result, Compression) else None,
        "picture": draw(layers) if any(x.weights_ratio or x.output_ratio for x in layers) else None,
        "is_exact": any(x.weights_ratio == 0 for x in layers),
        "bars": cost_bars(plan.layers) if plan else (),
        "layers": _layers(found, plan),
        "skipped": report["skipped"],
        "inputs": report["inputs"],
        "notes": report["notes"],
        "seed": report["seed"],
        "versions": version_texts(report["versions"]),
        "artifacts": {name: entry["sha256"] for name, entry in report["artifacts"].items()},
        "command": command_line(),
        "date": date(),
        "made_by": f"spdexport {__version__}",
    }


def _tiles(result: Result, plan: Plan | None) -> list[dict[str, str]]:
    """What has changed, each as a few large characters with what they are."""
    tiles = []
    if plan is not None and plan.macs_before:
        after = plan.macs_after
        trimming = result.trimming if isinstance(result, Conversion) else None
        if trimming is not None and trimming.layers:
            after = macs_left(plan, trimming)
        times = f"{after / plan.macs_before:.2f} times"
        tiles.append(_tile("MACs for one sample", short(plan.macs_before), short(after), times))
        tiles.append(_tile("parameters of these layers", short(plan.params_before), short(plan.params_after)))
    if isinstance(result, Conversion | Folding):
        for path in result.outputs:
            number = path.stat().st_size
            saved = saved_bytes(result) if isinstance(result, Conversion) and len(result.outputs) == 1 else 0
            tiles.append(_tile(path.name, size(number + saved) if saved else "", size(number)))
    found = verification_of(result)
    change = found.approximation if found else None
    if change is not None and change.top1_before is not None and change.top1_after is not None:
        tiles.append(_tile("accuracy on the labels", f"{change.top1_before:.1%}", f"{change.top1_after:.1%}"))
    elif change is not None and change.top1_agreement is not None:
        tiles.append(_tile("samples with the same top class", "", f"{change.top1_agreement:.1%}"))
    if change is not None:
        tiles.append(_tile("change of the outputs, in norm", "", f"{change.relative_l2:.1%}"))
    return tiles


def _tile(what: str, before: str, after: str, beside: str = "") -> dict[str, str]:
    return {"what": what, "before": before, "after": after, "beside": beside}


def _edges(found: Verification) -> list[dict[str, Any]]:
    names = edge_names(found.edges)
    return [
        {"name": name, "status": edge.status, "noise_ratio": edge.noise_ratio, "reason": edge_reason(edge)}
        for edge, name in zip(found.edges, names, strict=True)
    ]


def _plan(result: Result) -> Plan | None:
    match result:
        case Verification() | Conversion() | Inspection():
            return result.plan
    return None


def _layers(found: Verification | None, plan: Plan | None) -> list[dict[str, Any]]:
    """A row for each layer: what it is, where there is a plan, and what was found of it, where something was."""
    planned = {layer.name: layer for layer in plan.layers} if plan else {}
    checked = {layer.name: layer for layer in found.layers} if found else {}
    rows = []
    for name in {**planned, **checked}:
        layer, check = planned.get(name), checked.get(name)
        rows.append(
            {
                "name": name,
                "geometry": layer.geometry if layer else "",
                "form": layer.form if layer else "",
                "components": layer.components if layer else None,
                "live": layer.live if layer else None,
                "break_even": below(layer.break_even) if layer else "-",
                "macs_before": layer.macs_before if layer else None,
                "macs_after": layer.macs_after if layer else None,
                "delta": layer.delta if layer else "",
                "delta_ratio": layer.delta_ratio if layer else None,
                "status": check.status if check else Status.NOT_RUN,
                "weights_ratio": check.weights_ratio if check else None,
                "output_ratio": check.output_ratio if check else None,
                "bound": check.bound if check else None,
                "reason": layer_reason(check) if check else "",
            }
        )
    return rows
