"""``spdexport ablate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from spdexport.cli_help import command
from spdexport.cli_kinds import Renamed
from spdexport.cli_options import PROVIDERS, data_option, engine_option, report_options, talk_options
from spdexport.commands.running import Reporting, reporting
from spdexport.report.formats import ABLATIONS


@command(
    "Measure what removing components of FILE does to its outputs.",
    "spdexport ablate out.onnx --data images.npz --html ablations.html",
)
@click.argument("file", type=click.Path(path_type=Path))
@data_option("The samples: .npz, .npy, safetensors, or a folder of such.", once_inputs=True)
@click.option("--sets", type=click.Path(path_type=Path), help='Sets of components, JSON: {"name": ["layer:0", ...]}.')
@click.option("--keep", is_flag=True, help="Keep these alone, and remove all else in their layers.")
@click.option(
    "--baseline",
    metavar="ones|gates|FILE",
    help="What to start from: all components, the file's own gates, or a file of fixed masks, which multiply the gates "
    "of a file that has them. Default: gates where the file has them, else ones.",
)
@click.option("--layers", multiple=True, metavar="PATTERN", help="Ablate components of these alone. Repeatable.")
@click.option(
    "--output-name",
    "--output",
    "output",
    cls=Renamed,
    metavar="NAME",
    help="The output to compare. Default: the first float one.",
)
@click.option("--provider", type=click.Choice(PROVIDERS), default="cpu", show_default=True, help="Where to run.")
@click.option("--threads", type=int, metavar="N", help="Of one operator. Default: ONNX Runtime's own choice.")
@click.option("--rows", type=int, default=1024, show_default=True, help="Samples times ablations in one run.")
@engine_option
@report_options(ABLATIONS)
@talk_options
@reporting
def ablate(reports: Reporting, given: Mapping[str, Any], *, file: Path, data: Path, **options: Any) -> int:
    """Measure what removing each component of FILE, an ONNX file with run-time masks, does to its outputs."""
    import spdexport

    with reports.run() as (progress, finish):
        finish(spdexport.ablate(file, data=data, progress=progress, **given, **options))
    return 0
