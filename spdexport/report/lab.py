"""A lab that was written: in words, as a table, and as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from spdexport.names import count
from spdexport.report.made import artifacts_json
from spdexport.report.numbers import size
from spdexport.report.tables import results_table
from spdexport.text import one_line

if TYPE_CHECKING:
    from spdexport.laboratory.result import Lab
    from spdexport.report.console import FittingTable

SERVE = "python -m http.server -b 127.0.0.1 -d"
"""The command that shows it, without the folder."""


def title(result: Lab) -> str:
    """Return what can be switched, on what."""
    switched = f"{count(result.components, 'component')} of {count(len(result.layers), 'layer')}"
    return f"{switched} to switch, {count(result.samples, 'sample')}, {size(result.size)}"


def table(result: Lab) -> FittingTable:
    """Return a row for each layer."""
    made = results_table("layer", "C", "switches", "threshold", "shown")
    for layer in result.layers:
        switches = {"mask": layer.mask, "delta": layer.delta, "original": layer.routing}
        threshold = layer.threshold
        shown = {"importance": layer.importance, "activation": layer.activation}
        made.add_row(
            Text(one_line(layer.name)),
            str(layer.components),
            _listed(switches),
            "-" if threshold is None else "none" if threshold.value is None else f"{threshold.value:g}",
            _listed(shown),
        )
    return made


def _listed(parts: dict[str, Any]) -> str:
    return ", ".join(name for name, part in parts.items() if part is not None) or "-"


def remarks(result: Lab) -> list[str]:
    """Return what the page shows beside the outputs, and what runs the file there."""
    return [f"beside: {result.beside}", f"runs on onnxruntime-web {result.runtime}, in the browser, on one thread"]


def lab_json(result: Lab) -> dict[str, Any]:
    """Return the names of the JSON report; sizes in bytes."""
    return {
        "folder": result.folder.name,
        "file": result.file,
        "samples": result.samples,
        "components": result.components,
        "layers": [asdict(layer) for layer in result.layers],
        "beside": result.beside,
        "runtime": result.runtime,
        "sizes": dict(result.sizes),
        "notes": list(result.notes),
        "versions": dict(result.versions),
        "artifacts": artifacts_json(result.hashes),
    }
