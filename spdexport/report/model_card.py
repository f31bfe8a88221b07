"""The model card: a README.md beside the file, with what hubs read of it, the verdict, sizes, and how to check again.

Names and reasons come from models and files that nobody vouches for: here they can neither format nor be metadata.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport import __version__
from spdexport.invocation import command_line
from spdexport.pipeline import Conversion
from spdexport.report.common import names_of, verification_of
from spdexport.report.explain import edge_names
from spdexport.report.headline import headline
from spdexport.report.markdown import cell, literal
from spdexport.report.numbers import ratio, short
from spdexport.report.pages import date
from spdexport.report.tables import words
from spdexport.report.terminal import version_texts
from spdexport.report.unfinished import CARD_MARK
from spdexport.verification.result import Verification

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spdexport.report.common import Result

LAYERS_SHOWN = 200
"""Layers in the table of a card; the other reports have them all."""


def to_card(result: Result) -> str:
    """Return the card of a result as Markdown, with metadata in front as hubs read it."""
    first = headline(result)
    state = "failed" if first.has_failed else first.status.value
    lines = [
        "---",
        "library_name: onnx",
        "tags:",
        *(f"- {tag}" for tag in ("onnx", "spdexport", "low-rank", f"verification-{state.replace('_', '-')}")),
        "---",
        CARD_MARK,
        f"# {cell(names_of(result))}",
        "",
        f"**{cell(first.verdict)}.**",
        "",
        *(f"**A limit that was set is exceeded:** {cell(said)}.\n" for said in first.exceeded),
        *(f"- {cell(said)}" for said in first.changes),
        "",
        *_use(result),
        *_layers(result),
        *_edges(result),
        *_provenance(result),
    ]
    return "\n".join(lines) + "\n"


def _use(result: Result) -> Iterator[str]:
    if isinstance(result, Conversion):
        file = next((path.name for path in result.outputs if path.suffix == ".onnx"), None)
        if file is not None:
            yield "## Use"
            yield ""
            yield from (
                "```python",
                "import onnxruntime",
                "",
                f"session = onnxruntime.InferenceSession({literal(file)})",
            )
            yield from ("outputs = session.run(None, {port.name: ... for port in session.get_inputs()})", "```", "")
            yield f"<code>spdexport verify {cell(file)}</code> checks the file again, on your machine."
            yield ""


def _layers(result: Result) -> Iterator[str]:
    plan = result.plan if isinstance(result, Conversion | Verification) else None
    if plan is None or not plan.layers:
        return
    yield "## Layers"
    yield ""
    yield "| layer | geometry | form | components | MACs | now |"
    yield "|---|---|---|---:|---:|---:|"
    for layer in plan.layers[:LAYERS_SHOWN]:
        components = "" if layer.kept is None else str(layer.kept)
        costs = f"{short(layer.macs_before)} | {short(layer.macs_after)}"
        yield f"| <code>{cell(layer.name)}</code> | {cell(layer.geometry)} | {layer.form} | {components} | {costs} |"
    if len(plan.layers) > LAYERS_SHOWN:
        yield f"| and {len(plan.layers) - LAYERS_SHOWN} more | | | | | |"
    yield ""


def _edges(result: Result) -> Iterator[str]:
    found = verification_of(result)
    if found is None:
        return
    yield "## What was checked"
    yield ""
    yield "| edge | status | noise |"
    yield "|---|---|---:|"
    for edge, name in zip(found.edges, edge_names(found.edges), strict=True):
        yield f"| {cell(name)} | {words(edge.status)} | {ratio(edge.noise_ratio)} |"
    yield ""


def _provenance(result: Result) -> Iterator[str]:
    hashes = result.artifacts if isinstance(result, Verification) else getattr(result, "hashes", {})
    yield "## How this was made"
    yield ""
    if command := command_line():
        yield f"- <code>{cell(command)}</code>"
    yield f"- {date()}, spdexport {__version__}"
    yield f"- {cell(', '.join(version_texts(result.versions)))}"
    for name, value in hashes.items():
        yield f"- <code>{cell(name)}</code>: SHA-256 <code>{cell(value)}</code>"
