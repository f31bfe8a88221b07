"""``spdexport atlas``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from spdexport.cli_help import command, together
from spdexport.cli_kinds import keyword
from spdexport.cli_options import (
    data_option,
    delta_option,
    form_option,
    model_options,
    report_options,
    sigmoid_option,
    source_argument,
    talk_options,
)
from spdexport.commands.running import Reporting, reporting
from spdexport.report.formats import LISTS

_component_options = together(
    "Components",
    keyword(
        "--components", type=click.Path(path_type=Path), help="The SPD run, checkpoint or file, for a dense SOURCE."
    ),
    sigmoid_option,
    delta_option,
    keyword("--layers", multiple=True, metavar="PATTERN", help="Show these layers only, such as 'conv*'. Repeatable."),
    keyword("--exclude", multiple=True, metavar="PATTERN", help="Leave these layers alone. Repeatable."),
    form_option,
    keyword(
        "--rank", multiple=True, metavar="[LAYER=]N", help="Of a dense SOURCE: the first N of the SVD. Repeatable."
    ),
    keyword("--energy", type=float, metavar="E", help="The same, with E of the squared singular values."),
    keyword("--max-error", type=float, metavar="E", help="The same, with a relative error of E at most."),
)
"""What tells the components."""

_page_options = together(
    "The page",
    click.option(
        "--labels",
        type=click.Path(path_type=Path),
        metavar="TABLE",
        help="What components are called: a table of component_key and label, as masks --labels reads it.",
    ),
    click.option("--samples", type=int, default=6, show_default=True, metavar="N", help="Samples of each component."),
    click.option(
        "--top",
        type=int,
        default=64,
        show_default=True,
        metavar="K",
        help="Components of each layer, the most important.",
    ),
    click.option(
        "--effect-samples",
        type=int,
        default=64,
        show_default=True,
        metavar="N",
        help="Samples on which each component is removed; 0 for none, which is much faster.",
    ),
    click.option(
        "--threshold",
        type=float,
        default=0.1,
        show_default=True,
        metavar="T",
        help="An importance above T fires; without importances, an activation above T of the component's greatest.",
    ),
    click.option(
        "--max-size", type=float, default=16.0, show_default=True, metavar="MIB", help="Of all thumbnails together."
    ),
    click.option("--batch", type=int, default=32, show_default=True, help="Samples that are run together."),
)
"""How much is shown."""


@command(
    "Show the components of SOURCE in pictures, as one page.",
    "spdexport atlas run --factory model.py:Net --data images.npz -o atlas.html",
)
@source_argument
@data_option("The samples: .npz, .npy, safetensors, or a folder of such.")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The page: OUT.html.")
@model_options
@_component_options
@_page_options
@report_options(LISTS)
@talk_options
@reporting
def atlas(
    reports: Reporting,
    given: Mapping[str, Any],
    *,
    source: Path | None,
    data: Path,
    output: Path,
    **options: Any,
) -> int:
    """Show each component of SOURCE: what it reads and writes, where and on which samples it fires, what it is for.

    SOURCE is an SPD run, a dense model with --components, --rank or --form factorized, or a factorized ONNX file.
    """
    import spdexport

    with reports.run() as (progress, finish):
        finish(spdexport.atlas(source, output, data=data, progress=progress, **options, **given))
    return 0
