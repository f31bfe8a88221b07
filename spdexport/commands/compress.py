"""``spdexport compress``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from spdexport.cli_help import command, together
from spdexport.cli_kinds import Share, keyword
from spdexport.cli_options import (
    data_option,
    engine_option,
    lane_width_option,
    model_options,
    objective_option,
    opset_option,
    report_options,
    save_plan_option,
    source_argument,
    talk_options,
    verify_option,
)
from spdexport.commands.running import Reporting, exit_status, reporting
from spdexport.report.formats import CHECKS

_PATH = click.Path(path_type=Path)


_sample_options = together(
    "The samples",
    data_option("Samples: .npz, .npy, safetensors or a folder of such; labels, if there are some, under that name."),
    click.option(
        "--selection", type=_PATH, help="Samples that decide what keeps the budget. Default: a part of --data."
    ),
    click.option("--test", type=_PATH, help="Samples that the result is judged on. Default: a part of --data."),
    click.option("--calibration-samples", type=int, metavar="N", help="How many of --data weights are fitted on."),
)
"""What the search reads."""

_budget_options = together(
    "The budget, one of these",
    click.option("--max-top1-drop", type=Share(), metavar="X", help="The accuracy that may be lost, such as 1%."),
    click.option("--max-relative-l2", type=Share(), metavar="X", help="The change of the outputs, in relative norm."),
    click.option("--max-kl", type=float, metavar="X", help="The KL divergence of the softmax, in nats."),
    click.option("--metric", metavar="SPEC", help="A measure of your own, FILE.py:NAME: a number for each sample."),
    click.option("--max-metric-drop", type=Share(), metavar="X", help="How much of it may be lost, in the mean."),
    click.option(
        "--latency", type=Share(), metavar="R", help="The time it may take, relative to dense, at the least loss."
    ),
    click.option("--macs", type=Share(), metavar="R", help="The same for multiply-accumulates."),
    click.option("--size", type=Share(), metavar="R", help="The same for the numbers that are stored."),
)
"""What may be lost, or what the file may cost."""

_bits_options = together(
    "Fewer bits",
    click.option(
        "--quantize",
        type=click.Choice(("none", "int8", "auto")),
        default="none",
        show_default=True,
        help="int8: the result has eight bits, within the same budget; auto: where that is best.",
    ),
    click.option(
        "--dtype",
        type=click.Choice(("float32", "float16")),
        default="float32",
        show_default=True,
        help="float16: the result is in half precision, within the same budget; no faster on a CPU.",
    ),
)
"""What numbers are stored as."""

_weighed_options = together(
    "What is weighed",
    keyword("--components", type=_PATH, help="An SPD run whose V and U layers might take too, for a dense SOURCE."),
    keyword("--masks", type=_PATH, help="Fixed masks: what they leave of a run's V and U is weighed."),
    keyword("--mask-threshold", type=float, metavar="T", help="Keep components whose mask is above T."),
    keyword("--layers", multiple=True, metavar="PATTERN", help="Compress these layers only. Repeatable."),
    keyword("--exclude", multiple=True, metavar="PATTERN", help="Leave these layers alone. Repeatable."),
    objective_option("What is to be least within a budget of loss; latency is measured."),
    lane_width_option,
)
"""Forms and layers."""

_work_options = together(
    "The work",
    click.option("--cache", type=_PATH, metavar="DIR", help="Keep work there, to resume what was interrupted."),
    engine_option,
)
"""Where samples run, and what is kept."""


@command(
    "Find the smallest, fastest forms of SOURCE within a budget, and convert it to them.",
    "spdexport compress model.onnx --data data.npz --max-top1-drop 1% -o small.onnx",
)
@source_argument
@click.option(
    "-o", "--output", multiple=True, required=True, type=_PATH, help="What to write: OUT.onnx, OUT.pt2. Repeatable."
)
@click.option("--save-components", type=_PATH, metavar="F.safetensors", help="Write the forms, for --components.")
@save_plan_option
@_sample_options
@_budget_options
@_bits_options
@model_options
@_weighed_options
@_work_options
@opset_option
@verify_option
@report_options(CHECKS)
@talk_options
@reporting
def compress(
    reports: Reporting,
    given: Mapping[str, Any],
    *,
    source: Path | None,
    output: Sequence[Path],
    data: Path,
    **options: Any,
) -> int:
    """Find the cheapest forms of SOURCE's layers within one budget, write the file, and verify it.

    A budget is what may be lost (--max-...), of which a bound is kept that holds for data to come, or what the file may
    cost relative to the dense one (--latency, --macs, --size), at which the least is lost.
    """
    import spdexport

    with reports.run() as (progress, finish):
        result = spdexport.compress(source, output, data=data, progress=progress, **given, **options)
        finish(result)
    return exit_status(result)
