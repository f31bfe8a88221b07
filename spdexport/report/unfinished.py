"""The reports of a run without a result: what went wrong, in every format, so that no older report is taken for it.

Nothing heavy is imported: this is written before the work, and where the command line itself cannot be read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from spdexport import __version__
from spdexport.text import json_text, printable

if TYPE_CHECKING:
    from spdexport.errors import SpdExportError

SCHEMA_VERSION = 1
"""Of the JSON report. Its names are a promise to other programs: a change of them raises it."""


CARD_MARK = "<!-- written by spdexport -->"
"""What is near the beginning of every model card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a run has no result.

    Attributes:
        code: The kind of error, as other programs tell it.
        what: The fault, in one sentence.
        where: The file, layer, option or input it was found in.
        hint: What the user can do.
        exit_status: Of the command; None while it runs, and for ever if it is killed.
    """

    code: str
    what: str
    where: str
    hint: str
    exit_status: int | None

    @classmethod
    def of(cls, error: SpdExportError) -> Failure:
        """Return what an error says."""
        return cls(code=error.code, what=error.what, where=error.where, hint=error.hint, exit_status=error.exit_status)

    @classmethod
    def of_end(cls, code: str, exit_status: int) -> Failure:
        """Return what there is to say of a run that was ended from outside, and is told so."""
        return cls(
            code=code,
            what="The run was ended before it had a result.",
            where="the command",
            hint="Run it again.",
            exit_status=exit_status,
        )


NOT_OVER = Failure(
    code="unfinished",
    what="The run has no result yet; if it is over, it was killed.",
    where="the command",
    hint="Wait for its end, or run it again.",
    exit_status=None,
)
"""What stands in the reports while the work goes on."""


def as_html(failure: Failure) -> str:
    """Return the page of a run without a result."""
    from spdexport.report.pages import page_environment

    template = page_environment().get_template("unfinished.html.jinja")
    return template.render(failure=failure, made_by=f"spdexport {__version__}")


def as_card(failure: Failure) -> str:
    """Return the model card of a run without a result, in which nothing formats."""
    from spdexport.report.markdown import cell

    said = ("# spdexport: no result", "", cell(failure.what), "", f"Where: {cell(failure.where)}. {cell(failure.hint)}")
    return "\n".join((CARD_MARK, *said)) + "\n"


def as_json(failure: Failure) -> str:
    """Return the JSON report of a run without a result."""
    content = {"schema_version": SCHEMA_VERSION, "verdict": None, "error": asdict(failure)}
    return json_text(json.dumps(content, indent=2, ensure_ascii=False)) + "\n"


def as_junit(failure: Failure) -> str:
    """Return one test case in error, in a suite of its own."""
    root = ET.Element("testsuites", name="spdexport", tests="1", failures="0", errors="1")
    suite = ET.SubElement(root, "testsuite", name="spdexport.run", tests="1", failures="0", errors="1", skipped="0")
    case = ET.SubElement(suite, "testcase", classname="spdexport.run", name="result")
    error = ET.SubElement(case, "error", message=printable(failure.what), type=failure.code)
    error.text = printable(f"{failure.what}\nwhere: {failure.where}\nto do: {failure.hint}")
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"
