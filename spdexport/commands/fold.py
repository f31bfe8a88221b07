"""``spdexport fold``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from spdexport.cli_help import command
from spdexport.cli_options import (
    in_place_option,
    provider_option,
    report_options,
    seed_option,
    talk_options,
    trust_option,
    verify_option,
)
from spdexport.commands.running import Reporting, exit_status, reporting
from spdexport.report.formats import CHECKS


@command(
    "Fold V and U of FILE into one dense layer again.",
    "spdexport fold out.onnx -o folded.onnx",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The file to write.")
@in_place_option
@click.option("--if-cheaper", is_flag=True, help="Leave a chain that has fewer multiply-accumulates than its fold.")
@click.option("--explain", is_flag=True, help="List each candidate, and why it was folded or not.")
@trust_option
@seed_option
@verify_option
@provider_option
@report_options(CHECKS)
@talk_options
@reporting
def fold(
    reports: Reporting,
    given: Mapping[str, Any],
    *,
    file: Path,
    output: Path,
    explain: bool,
    providers: Sequence[str],
    **options: Any,
) -> int:
    """Fold V, mask, U (and the delta beside them) of FILE, .onnx or .pt2, into one dense layer again.

    Whatever chain of convolutions or linear layers is one of them is folded, and sums of such chains on one input.
    """
    from dataclasses import replace

    import spdexport

    with reports.run() as (progress, finish):
        result = spdexport.fold(file, output, providers=providers or None, progress=progress, **given, **options)
        finish(replace(result, notes=(*result.notes, *result.explained())) if explain else result)
    return exit_status(result)
