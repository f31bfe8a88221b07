"""``spdexport convert``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from spdexport.cli_options import (
    check_options,
    factor_options,
    in_place_option,
    model_options,
    opset_option,
    plan_options,
    provider_option,
    report_options,
    repro_option,
    save_plan_option,
    source_argument,
    talk_options,
    verify_option,
)
from spdexport.commands.running import Reporting, exit_status, reporting
from spdexport.errors import UsageError
from spdexport.report.formats import CHECKS


@click.command(short_help="Convert SOURCE to ONNX in factorized form, and verify it.")
@source_argument
@click.option(
    "-o",
    "--output",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="What to write: OUT.onnx, and OUT.pt2 for the factorized program. Repeatable.",
)
@model_options
@factor_options
@plan_options
@save_plan_option
@in_place_option
@opset_option
@verify_option
@provider_option
@check_options
@report_options(CHECKS)
@repro_option
@talk_options
@reporting
def convert(
    reports: Reporting,
    given: Mapping[str, Any],
    *,
    source: Path | None,
    output: Sequence[Path],
    verify: bool,
    providers: Sequence[str],
    save_plan: Path | None,
    in_place: bool,
) -> int:
    """Convert SOURCE to ONNX with its layers in factorized form, and verify the file."""
    import spdexport

    if reports.files["repro"] is not None and not verify:
        raise UsageError("--repro saves what a check found.", where="--repro and --no-verify", hint="Give one of them.")
    with reports.run() as (progress, finish):
        result = spdexport.convert(
            source,
            output,
            verify=verify,
            providers=providers or None,
            save_plan=save_plan,
            in_place=in_place,
            progress=progress,
            **given,
        )
        finish(result)
    return exit_status(result)
