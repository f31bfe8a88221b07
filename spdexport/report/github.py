"""What GitHub Actions shows of a result: annotations on the run, and a summary in Markdown.

Names and reasons come from models and files that nobody vouches for: here they can neither command nor format.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from spdexport.report.common import names_of, verification_of
from spdexport.report.explain import advice, edge_names, edge_reason, failing_layers, layer_reason, tolerance
from spdexport.report.headline import headline
from spdexport.report.markdown import cell
from spdexport.report.numbers import ratio
from spdexport.report.tables import words
from spdexport.report.workflow_commands import annotation
from spdexport.speech import command, say
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spdexport.report.common import Result
    from spdexport.verification.result import Verification

LAYERS_SHOWN = 50
"""Layers in the summary, whose size GitHub limits; the other reports have them all."""

_LEVELS = {Status.FAIL: "error", Status.INCONCLUSIVE: "warning"}
_MARKS = {Status.PASS: "✅", Status.FAIL: "❌", Status.INCONCLUSIVE: "⚠️", Status.NOT_RUN: "⚪"}


def tell(result: Result) -> None:
    """Annotate the run with a result, and add the result to the summary of the job where it has one.

    A summary that cannot be written is warned of: the verdict does not depend on it.
    """
    for line in commands(result):
        command(line)
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(summary(result))
    except OSError as error:
        what = f"The summary of the job cannot be written: {error.strerror or error}."
        say(f"warning: {what} $GITHUB_STEP_SUMMARY is {path}.", err=True)
        command(annotation("warning", "spdexport", f"{what}\n{path}"))


def commands(result: Result) -> list[str]:
    """Return a command to the runner for each edge that failed or is inconclusive, and for a limit that is exceeded."""
    verification = verification_of(result)
    if verification is None:
        return []
    hint = advice(verification)
    lines = []
    for edge, name in zip(verification.edges, edge_names(verification.edges), strict=True):
        if edge.status in _LEVELS:
            said = edge_reason(edge)
            if hint is not None and hint.edge == name:
                said += f"\nwhat this means: {hint.means}\nto do: {hint.to_do}"
            title = f"spdexport, {names_of(result)}: {name} {words(edge.status)}"
            lines.append(annotation(_LEVELS[edge.status], title, said))
    if verification.approximation is not None and verification.exceeds:
        title = f"spdexport, {names_of(result)}: the approximation exceeds the limit"
        lines.append(annotation("error", title, "\n".join(verification.approximation.exceeded)))
    return lines


def summary(result: Result) -> str:
    """Return a result as GitHub's Markdown; empty where nothing was verified."""
    verification = verification_of(result)
    if verification is None:
        return ""
    first = headline(result)
    mark = _MARKS[Status.FAIL if first.has_failed else first.status]
    lines = [f"### {mark} spdexport: {cell(first.verdict)}", "", f"<code>{cell(names_of(result))}</code>", ""]
    lines += [*(f"❌ **limit exceeded**: {cell(said)}\n" for said in first.exceeded)]
    lines += [*(f"- {cell(said)}" for said in first.changes), "", *_edges(verification)]
    hint = advice(verification)
    if hint is not None:
        lines += ["", f"**{cell(hint.edge)}**: {cell(hint.means)}. To do: {cell(hint.to_do)}."]
    lines += ["", *_layers(verification)]
    if verification.approximation is not None:
        change = verification.approximation.relative_l2
        said = f"Approximation, intended: masks, ranks and dropped deltas change the outputs by {change:.1%} in norm."
        lines += ["", said]
    lines += ["", f"<sub>{cell(tolerance(verification))}</sub>", "", ""]
    return "\n".join(lines)


def _edges(verification: Verification) -> Iterator[str]:
    yield "| edge | status | noise | |"
    yield "|---|---|---:|---|"
    for edge, name in zip(verification.edges, edge_names(verification.edges), strict=True):
        status = f"{_MARKS[edge.status]} {words(edge.status)}"
        yield f"| {cell(name)} | {status} | {ratio(edge.noise_ratio)} | {cell(edge_reason(edge))} |"


def _layers(verification: Verification) -> Iterator[str]:
    wrong = failing_layers(verification)
    if not wrong:
        return
    yield f"<details><summary>{len(wrong)} of {len(verification.layers)} layers failed</summary>"
    yield ""
    yield "| layer | why |"
    yield "|---|---|"
    for layer in wrong[:LAYERS_SHOWN]:
        yield f"| <code>{cell(layer.name)}</code> | {cell(layer_reason(layer))} |"
    if len(wrong) > LAYERS_SHOWN:
        yield f"| and {len(wrong) - LAYERS_SHOWN} more | the other reports have them |"
    yield ""
    yield "</details>"
