"""The HTML report: one page that needs nothing but itself, to keep beside a file or to attach to a build."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spdexport import __version__
from spdexport.ablation.ablate import Ablations
from spdexport.compression.result import Compression
from spdexport.names import some
from spdexport.pipeline import Conversion, Inspection
from spdexport.report import ablations, compression
from spdexport.report.common import names_of, verification_of
from spdexport.report.explain import (
    advice,
    edge_names,
    edge_reason,
    failing_layers,
    layer_reason,
    tolerance,
)
from spdexport.report.headline import VERDICTS, what_is
from spdexport.report.json_report import to_json
from spdexport.report.numbers import below, ratio, short
from spdexport.report.pages import page_environment
from spdexport.report.picture import draw
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
    """A result as an HTML page.

    Nothing in it is loaded from elsewhere, no script runs, and every name and reason is escaped: they come from models
    and files that nobody vouches for.
    """
    if isinstance(result, Ablations):
        return _environment().get_template("ablations.html.jinja").render(ablations.values(result))
    return _environment().get_template("report.html.jinja").render(_values(result))


def _environment() -> jinja2.Environment:
    environment = page_environment()
    environment.filters.update(ratio=ratio, short=short)
    environment.globals["words"] = words
    return environment


def _values(result: Result) -> dict[str, Any]:
    """What the template shows. What is common to all commands is taken as the JSON report has it."""
    report = to_json(result)
    found = verification_of(result)
    status = Status.NOT_RUN if found is None else found.verdict
    return {
        "title": names_of(result),
        "status": status,
        "verdict": VERDICTS[status] + what_is(found),
        "edges": _edges(found) if found else [],
        "advice": advice(found) if found else None,
        "failing": some([layer.name for layer in failing_layers(found)], NAMES_SHOWN) if found else "",
        "tolerance": tolerance(found) if found else "",
        "approximation": found.approximation if found else None,
        "picture": draw(found.layers) if found else None,
        "search": compression.values(result.search) if isinstance(result, Compression) else None,
        "layers": _layers(found, _plan(result)),
        "skipped": report["skipped"],
        "inputs": report["inputs"],
        "notes": report["notes"],
        "seed": report["seed"],
        "versions": version_texts(report["versions"]),
        "artifacts": {name: entry["sha256"] for name, entry in report["artifacts"].items()},
        "macs": (report["macs_before"], report["macs_after"]) if "macs_before" in report else None,
        "made_by": f"spdexport {__version__}",
    }


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
