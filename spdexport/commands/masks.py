"""``spdexport masks``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from spdexport.cli_help import command, together
from spdexport.cli_kinds import keyword
from spdexport.cli_options import (
    data_model_options,
    data_option,
    engine_option,
    report_options,
    sigmoid_option,
    source_argument,
    talk_options,
)
from spdexport.commands.running import Reporting, reporting
from spdexport.report.formats import LISTS

MEASURES = ("peak", "mean", "frequency")


_listed_options = together(
    "In the place of data",
    click.option("--harvest", type=click.Path(path_type=Path), help="SPD's harvest.db, in the place of --data."),
    click.option(
        "--names",
        type=click.Path(path_type=Path),
        help='A JSON file of components to keep, ["layer:3", ...], likewise.',
    ),
    click.option(
        "--labels",
        type=click.Path(path_type=Path),
        help="A table of components and labels, likewise: CSV, TSV, JSON or SQLite.",
    ),
    click.option(
        "--label", multiple=True, metavar="PATTERN", help="Keep what has such a label in --labels. Repeatable."
    ),
    click.option(
        "--remove", is_flag=True, help="Remove what --names or --label tell, and keep all else of those layers."
    ),
)
"""Files that tell which components are kept."""

_rule_options = together(
    "What is kept",
    click.option(
        "--by", type=click.Choice(MEASURES), help="What is judged. Default: peak; of a harvest, the firing density."
    ),
    click.option(
        "--threshold",
        type=float,
        metavar="T",
        help="Keep components whose peak or mean importance is above T; for frequency, what is above T fires. "
        "Default: 0.1.",
    ),
    click.option(
        "--min-frequency",
        type=float,
        default=0.0,
        show_default=True,
        metavar="F",
        help="With --by frequency: keep components that fire on this share of samples and locations.",
    ),
    click.option("--top", type=int, metavar="K", help="Keep the K greatest of each layer instead."),
)
"""How importances become masks."""


@command(
    "Derive fixed masks for SOURCE, an SPD run, from data.",
    "spdexport masks run --factory model.py:Net --data images.npz -o masks.safetensors",
)
@source_argument
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The masks: OUT.safetensors.")
@data_option("The samples: .npz, .npy, safetensors, or a folder of such.", required=False, once_inputs=True)
@data_model_options
@keyword("--components", type=click.Path(path_type=Path), help="The SPD run or checkpoint, for a dense SOURCE.")
@keyword("--exclude", multiple=True, metavar="PATTERN", help="Leave these layers alone, such as 'head*'. Repeatable.")
@sigmoid_option
@_listed_options
@_rule_options
@click.option("--batch", type=int, default=64, show_default=True, help="Samples that are run together.")
@engine_option
@report_options(LISTS)
@talk_options
@reporting
def masks(
    reports: Reporting,
    given: Mapping[str, Any],
    *,
    source: Path | None,
    output: Path,
    data: Path | None,
    harvest: Path | None,
    names: Path | None,
    labels: Path | None,
    label: tuple[str, ...],
    remove: bool,
    by: str | None,
    threshold: float | None,
    min_frequency: float,
    top: int | None,
    batch: int,
    engine: str,
) -> int:
    """Derive fixed masks for SOURCE from the samples of --data: .npz, .npy, safetensors, or a folder of such.

    The data run through the dense model, and the run's causal-importance functions tell how important each component
    is. The importances are written beside the masks. In the place of data, --harvest, --names or --labels tell which
    components are kept: SOURCE is the run alone then, and no model is needed.
    """
    import spdexport

    with reports.run() as (progress, finish):
        result = spdexport.derive_masks(
            source,
            output,
            data=data,
            harvest=harvest,
            names=names,
            labels=labels,
            label=label,
            remove=remove,
            by=by,
            threshold=threshold,
            min_frequency=min_frequency,
            top=top,
            batch=batch,
            engine=engine,
            progress=progress,
            **given,
        )
        finish(result)
    return 0
