"""``spdexport convert``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from spdexport.cli_help import command
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


@command(
    "Convert SOURCE to ONNX in factorized form, and verify it.",
    "spdexport convert weights.pt --factory model.py:Net --input-shape 2x3x32x32",
    "spdexport convert model.onnx --form auto --energy 0.99 --inputs test.npz --max-top1-drop 0.01",
    "spdexport convert run --factory model.py:Net --masks masks.safetensors -o out.onnx",
)
@source_argument
@click.option(
    "-o",
    "--output",
    multiple=True,
    type=click.Path(path_type=Path),
    help="What to write: OUT.onnx, and OUT.pt2 for the factorized program. Repeatable. Default: beside SOURCE.",
)
@click.option("--dry-run", is_flag=True, help="Show the plan, what each layer becomes and costs, and write no model.")
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
    dry_run: bool,
) -> int:
    """Convert SOURCE to ONNX with its layers in factorized form, and verify the file."""
    from dataclasses import replace

    import spdexport
    from spdexport.overwriting import output_beside

    context = click.get_current_context()
    told: tuple[str, ...] = ()
    if not output:
        # Among the parameters, so that it is seen to overwrite nothing that is read.
        output = context.params["output"] = (output_beside(source, given.get("factory")),)
        told = () if dry_run else (f"there was no -o: the file is {output[0]}, beside its source",)
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
            dry_run=dry_run,
            progress=progress,
            **given,
        )
        finish(replace(result, notes=(*told, *result.notes)))
    return exit_status(result)
