"""``spdexport lab``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from spdexport.cli_help import command
from spdexport.cli_kinds import Renamed
from spdexport.cli_options import data_option, report_options, talk_options
from spdexport.commands.running import Reporting, reporting
from spdexport.report.formats import LISTS

_PATH = click.Path(path_type=Path)


@command(
    "Write a page that runs FILE in the browser, with its components as switches.",
    "spdexport lab out.onnx --data images.npz -o lab",
    "spdexport lab gated.onnx --data images.npz --dense dense.onnx --classes names.txt -o lab",
)
@click.argument("file", type=_PATH)
@click.option(
    "-o", "--output", required=True, type=_PATH, metavar="FOLDER", help="The folder. A lab that is there is replaced."
)
@data_option("The samples: .npz, .npy, safetensors, or a folder of such.")
@click.option("--samples", type=int, default=32, show_default=True, metavar="N", help="Take the first N of them.")
@click.option(
    "--dense",
    type=_PATH,
    metavar="DENSE.onnx",
    help="Show the outputs beside this model's. Default: beside FILE with all components on.",
)
@click.option(
    "--classes",
    "--labels",
    "classes",
    cls=Renamed,
    type=_PATH,
    metavar="F",
    help="Names of the classes: one a line, or a JSON list.",
)
@click.option(
    "--runtime",
    type=_PATH,
    metavar="PACKAGE",
    help="The npm package onnxruntime-web, unpacked or as .tgz. Default: node_modules, or the .tgz that npm pack "
    "left in the working directory.",
)
@report_options(LISTS)
@talk_options
@reporting
def lab(reports: Reporting, given: Mapping[str, Any], *, file: Path, output: Path, **options: Any) -> int:
    """Write a folder with a page that runs FILE, an ONNX file with run-time masks or gates, in the browser.

    It needs no Python where it is shown: any static server will do, and no network. Components are switched on and
    off, thresholds of gates are set, and outputs stand beside those of the dense model.
    """
    import spdexport

    with reports.run() as (progress, finish):
        finish(spdexport.lab(file, output, progress=progress, **given, **options))
    return 0
