"""``spdexport verify``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from spdexport.cli_help import command
from spdexport.cli_options import (
    check_options,
    factor_options,
    form_option,
    model_options,
    opset_option,
    provider_option,
    report_options,
    repro_option,
    talk_options,
)
from spdexport.commands.running import Reporting, exit_status, reporting
from spdexport.report.formats import CHECKS


@command(
    "Check the ONNX file FILE against what it was made from, or by itself.",
    "spdexport verify out.onnx",
    "spdexport verify out.onnx --against weights.pt --factory model.py:Net --html report.html",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="SOURCE", help="What the file was made from.")
@model_options
@factor_options
@form_option
@opset_option
@provider_option
@check_options
@report_options(CHECKS)
@repro_option
@talk_options
@reporting
def verify(
    reports: Reporting, given: Mapping[str, Any], *, file: Path, against: Path | None, providers: Sequence[str]
) -> int:
    """Check the ONNX file FILE against the SOURCE it was made from.

    Options that shaped the file are read from it where they are not given. SOURCE may be another ONNX file too. Without
    SOURCE and --factory, what ONNX Runtime computes is compared with what FILE itself says.
    """
    import spdexport

    with reports.run() as (progress, finish):
        result = spdexport.verify(file, against=against, providers=providers or None, progress=progress, **given)
        finish(result)
    return exit_status(result)
