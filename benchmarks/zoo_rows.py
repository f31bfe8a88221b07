"""Results of the zoo, one row for each architecture, kept in a file so that a run that was cut off goes on."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo_models import ZOO

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from zoo_entry import Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``measured_rows`` takes."""
    parser.add_argument("names", nargs="*", help="architectures; all where none is named")
    parser.add_argument("--rows", type=Path, help="a file of results, which grows by those that it lacks")


def measured_rows(asked: argparse.Namespace, measure: Callable[[Entry], dict[str, Any] | None]) -> list[dict[str, Any]]:
    """Return the rows of all architectures that were asked for or kept; what measures to None has no row."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, Any]] = {}
    if asked.rows and asked.rows.exists():
        rows = {row["name"]: row for row in map(json.loads, asked.rows.read_text().splitlines())}
    for entry in ZOO:
        if entry.name in rows or (asked.names and entry.name not in asked.names):
            continue
        row = measure(entry)
        if row is None:
            continue
        rows[entry.name] = row
        if asked.rows:
            with asked.rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return [rows[entry.name] for entry in ZOO if entry.name in rows]
