"""The reports that are files, a row for each: the command line, the writing and the errors all follow from it.

Nothing heavy is imported: a row names its functions as texts, which are imported when there is something to write.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spdexport.report.common import Result
    from spdexport.report.unfinished import Failure

CHECKS = "checks"
"""Results of the commands that check a file: convert, verify, fold."""
ABLATIONS = "ablations"
"""Results of ablate."""
LISTS = "lists"
"""Results of the others: inspect, bench, masks, atlas."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFormat:
    """A format of report.

    Attributes:
        option: The name of its option, without dashes.
        metavar: What help calls the file.
        help: What help says of it.
        result: ``module:function`` from a ``Result`` to the text of the file.
        failure: ``module:function`` from a ``Failure`` to the text that stands there while there is no result, and
            where there never is one. It imports nothing heavy.
        mark: What is near the beginning of each such file, whoever wrote it; None for JSON with a ``schema_version``.
        tells: Of which results: ``CHECKS``, ``ABLATIONS``, ``LISTS``.
    """

    option: str
    metavar: str
    help: str
    result: str
    failure: str
    mark: bytes | None
    tells: tuple[str, ...]

    def of_result(self, result: Result) -> str:
        """Return the report of a result."""
        return _text(self.result, result)

    def of_failure(self, failure: Failure) -> str:
        """Return the report of a run without a result."""
        return _text(self.failure, failure)


FORMATS = (
    ReportFormat(
        option="report",
        metavar="F.json",
        help="Write the result as JSON.",
        result="spdexport.report.json_report:as_text",
        failure="spdexport.report.unfinished:as_json",
        mark=None,
        tells=(CHECKS, ABLATIONS, LISTS),
    ),
    ReportFormat(
        option="junit",
        metavar="F.xml",
        help="Write it as JUnit XML: a test case for each edge and layer.",
        result="spdexport.report.junit:to_junit",
        failure="spdexport.report.unfinished:as_junit",
        mark=b"<testsuite",
        tells=(CHECKS,),
    ),
    ReportFormat(
        option="html",
        metavar="F.html",
        help="Write it as a page that needs nothing but itself.",
        result="spdexport.report.html_report:to_html",
        failure="spdexport.report.unfinished:as_html",
        mark=b"<html",
        tells=(CHECKS, ABLATIONS),
    ),
    ReportFormat(
        option="card",
        metavar="README.md",
        help="Write it as a model card for hubs: verdict, sizes, how to use the file and how to check it.",
        result="spdexport.report.model_card:to_card",
        failure="spdexport.report.unfinished:as_card",
        mark=b"<!-- written by spdexport -->",
        tells=(CHECKS,),
    ),
)


def formats() -> dict[str, ReportFormat]:
    """Return the formats by the names of their options."""
    return {one.option: one for one in FORMATS}


def _text(function: str, value: object) -> str:
    module, _, name = function.partition(":")
    text: str = getattr(importlib.import_module(module), name)(value)
    return text
