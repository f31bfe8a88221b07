"""The JUnit XML report, for continuous integration: a test case for each edge and for each layer.

A failure is a ``failure``; an inconclusive edge is an ``error``, because what could not be decided must not look like a
pass; what did not run is ``skipped``. Names of suites, classes and cases stay the same from run to run. There are no
``time`` attributes: the time of one edge is not measured by itself, and an invented number is worse than none.

The form is the one that Jenkins' xunit plugin describes (junit-10.xsd), which GitLab, Azure and others read too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from spdexport.recorded import as_options
from spdexport.report.common import verification_of
from spdexport.report.explain import advice, edge_names, edge_reason, layer_reason
from spdexport.text import printable
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spdexport.report.common import Result
    from spdexport.verification.result import Verification

_ELEMENTS = {Status.FAIL: "failure", Status.INCONCLUSIVE: "error", Status.NOT_RUN: "skipped"}
"""What a status becomes; a pass is a test case without any of these."""

NOT_VERIFIED = "verification was not asked for"


def to_junit(result: Result) -> str:
    """Return a result as JUnit XML.

    A suite of edges, one of the user's limits, and one of layers, where there are any.
    """
    verification = verification_of(result)
    root = ET.Element("testsuites", name="spdexport")
    if verification is None:
        _suite(root, "edges", [("verification", Status.NOT_RUN, NOT_VERIFIED, "")])
    else:
        _suite(root, "edges", _edges(verification), _properties(verification))
        if limits := _limits(verification):
            _suite(root, "limits", limits)
        if verification.layers:
            _suite(root, "layers", [(x.name, x.status, layer_reason(x), "") for x in verification.layers])
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _edges(verification: Verification) -> Iterable[tuple[str, Status, str, str]]:
    hint = advice(verification)
    for edge, name in zip(verification.edges, edge_names(verification.edges), strict=True):
        more = f"what it means: {hint.means}\nwhat to do: {hint.to_do}" if hint and hint.edge == name else ""
        yield name, edge.status, edge_reason(edge), more


def _limits(verification: Verification) -> list[tuple[str, Status, str, str]]:
    """A case for the limits that the user set to the approximation, which is no part of the verdict."""
    change = verification.approximation
    if change is None or (change.max_relative_l2 is None and change.max_top1_drop is None):
        return []
    status = Status.FAIL if change.exceeded else Status.PASS
    return [("approximation", status, "; ".join(change.exceeded) or "within the limits", "")]


def _properties(verification: Verification) -> dict[str, str]:
    """What was compared with what, so that a report that was kept can be told from others."""
    return {
        "verdict": verification.verdict.value,
        "seed": str(verification.seed),
        **{f"recorded {name}": as_options({name: value}) for name, value in verification.recorded.items()},
        **{f"sha256 {name}": value for name, value in verification.artifacts.items()},
        **{f"version {name}": value for name, value in verification.versions.items()},
    }


def _suite(
    root: ET.Element,
    kind: str,
    cases: Iterable[tuple[str, Status, str, str]],
    properties: dict[str, str] | None = None,
) -> None:
    """Add a suite of (name, status, reason, more text) to the root."""
    suite = ET.SubElement(root, "testsuite", name=f"spdexport.{kind}")
    if properties:
        listed = ET.SubElement(suite, "properties")
        for key, value in properties.items():
            ET.SubElement(listed, "property", name=printable(key), value=printable(value))
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    plural = {"failure": "failures", "error": "errors", "skipped": "skipped"}
    for name, status, reason, more in cases:
        case = ET.SubElement(suite, "testcase", classname=f"spdexport.{kind}", name=printable(name))
        counts["tests"] += 1
        if status in _ELEMENTS:
            found = ET.SubElement(case, _ELEMENTS[status], message=printable(reason))
            if status is not Status.NOT_RUN:
                found.set("type", status.value)
                found.text = printable("\n".join(filter(None, (reason, more))))
            counts[plural[_ELEMENTS[status]]] += 1
        elif reason:
            ET.SubElement(case, "system-out").text = printable(reason)
    for key, number in counts.items():
        suite.set(key, str(number))
