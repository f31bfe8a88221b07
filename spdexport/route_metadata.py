"""What is kept of a route beside the model: the metadata in its file, and a plan file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spdexport import __version__
from spdexport.content import content_hash
from spdexport.model_files import write_metadata
from spdexport.planning import as_file
from spdexport.ranges import ranges_json

if TYPE_CHECKING:
    import onnx_ir as ir

    from spdexport.options import Options
    from spdexport.rewrite.onnx_trim import Trimming
    from spdexport.route import PreparedSource, Route


def write_route_metadata(
    model: ir.Model, prepared: PreparedSource, options: Options, trimming: Trimming | None, source: str
) -> None:
    """Note in a model how it was made.

    Args:
        model: The model.
        prepared: The source, and what was decided about it.
        options: How it was converted.
        trimming: What was removed from it.
        source: ``torch`` or ``onnx``.
    """
    entries: dict[str, Any] = {
        "content": content_hash(model),
        "version": __version__,
        "options": options.recorded(),
        "plan": prepared.plan.as_json(),
        "sha256": dict(prepared.hashes),
        "components": prepared.components,
        "source": source,
    }
    if prepared.ranges:
        entries["ranges"] = ranges_json(prepared.ranges)
    if trimming is not None:
        entries["trimming"] = trimming.as_json()
    write_metadata(model, entries)


def plan_text(route: Route) -> str:
    """Return the text of a plan file: the decisions, and how numbers are stored where the source has them otherwise."""
    plan = route.prepared.plan.as_json()
    return as_file(plan if route.precision is None else {**plan, "precision": route.precision.as_json()})
