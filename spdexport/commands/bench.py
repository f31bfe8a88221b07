"""``spdexport bench``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from spdexport.cli_help import command
from spdexport.cli_options import PROVIDERS, input_options, report_options, seed_option, talk_options
from spdexport.commands.running import Reporting, reporting
from spdexport.report.formats import LISTS


@command(
    "Measure the latency of an ONNX file, or of two against each other.",
    "spdexport bench out.onnx --against dense.onnx --threads 1",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="OTHER", help="A file to compare with.")
@click.option("--provider", type=click.Choice(PROVIDERS), default="cpu", show_default=True, help="Where to run.")
@click.option("--batch", type=int, metavar="N", help="The batch of generated inputs. Default: 1.")
@input_options
@click.option("--threads", type=int, metavar="N", help="Of one operator. Default: ONNX Runtime's own choice.")
@click.option("--rounds", type=int, default=50, show_default=True, help="How many times each file runs.")
@click.option("--seconds", type=float, default=20.0, show_default=True, help="After this long no round begins.")
@seed_option
@report_options(LISTS)
@talk_options
@reporting
def bench(reports: Reporting, given: Mapping[str, Any], *, file: Path, against: Path | None, **options: Any) -> int:
    """Measure the latency of FILE on ONNX Runtime, alone or in turn with another file.

    Nothing is checked here: spdexport verify tells whether two files compute the same.
    """
    import spdexport

    with reports.run() as (progress, finish):
        finish(spdexport.bench(file, against=against, progress=progress, **given, **options))
    return 0
