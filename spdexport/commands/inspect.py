"""``spdexport inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spdexport.cli_help import command
from spdexport.cli_options import factor_options, model_options, report_options, source_argument, talk_options
from spdexport.commands.running import Reporting, reporting
from spdexport.report.formats import LISTS


@command(
    "List the layers of SOURCE with components and costs.",
    "spdexport inspect model.onnx",
)
@source_argument
@model_options
@factor_options
@report_options(LISTS)
@talk_options
@reporting
def inspect(reports: Reporting, given: Mapping[str, Any], *, source: Path | None) -> int:
    """List the layers of SOURCE with geometry, components and costs. Nothing is written."""
    import spdexport

    with reports.run() as (progress, finish):
        finish(spdexport.inspect(source, progress=progress, **given))
    return 0
