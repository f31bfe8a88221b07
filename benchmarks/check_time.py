"""How long the default check takes beside the conversion that it checks, for every architecture of the zoo.

    python benchmarks/check_time.py --output benchmarks/results/check_time.md
    python benchmarks/check_time.py --rows rows.jsonl DPT GLPN    # these alone; rows in the file are not run again

Times are those of the processor, in one process with one thread for each model, so that what else runs on the machine
has no part in the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from zoo_rows import add_arguments, measured_rows

from spdexport import pipeline
from spdexport.errors import SpdExportError
from spdexport.ort.installed import versions

if TYPE_CHECKING:
    from zoo_entry import Entry

PARTS = {"comparing weights": "weights", "comparing outputs": "outputs", "following decisions": "decisions"}


def main() -> None:
    """Measure what was asked for, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--output", type=Path, help="a page for the results; without it they are printed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = page(measured_rows(options, measured_or_told))
    if options.output is None:
        print(text)
    else:
        options.output.write_text(text, encoding="utf-8")


def measured_or_told(entry: Entry) -> dict[str, Any] | None:
    """Return what was measured; of an architecture that does not convert, tell why."""
    try:
        return measured(entry)
    except SpdExportError as error:
        print(f"{entry.name}: {error.what}")
        return None


def measured(entry: Entry) -> dict[str, Any]:
    """Return the seconds of the conversion and of each part of its check."""
    torch.manual_seed(0)
    module, inputs = entry.make()
    told: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        done = pipeline.convert(
            module.eval(),
            Path(folder) / "m.onnx",
            inputs=inputs,
            progress=lambda what: told.append((time.process_time(), what)),
        )
        end = time.process_time()
    first = next(at for at, what in told if what in PARTS)
    parts: dict[str, float] = defaultdict(float)
    for (at, what), until in zip(told, [*(at for at, _ in told[1:]), end], strict=True):
        part = PARTS.get(what.partition(":")[0])
        if part is not None:
            parts[part] += until - at
    verdict = "" if done.verdict is None else done.verdict.value
    return {"name": entry.name, "convert": first - start, "check": end - first, "verdict": verdict, **parts}


def page(rows: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    found = versions()
    stack = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "onnx", "onnxruntime") if name in found)
    ratios = {row["name"]: row["check"] / row["convert"] for row in rows}
    worst = max(ratios, key=lambda name: ratios[name])
    lines = [
        "# The time of the default check",
        "",
        f"`python benchmarks/check_time.py` on {date.today().isoformat()}, with {stack}.",
        "",
        f"{len(rows)} architectures: the check takes {statistics.median(ratios.values()):.2f} times as long as the",
        f"conversion in the median, and {ratios[worst]:.2f} times at most ({worst}). Seconds of one processor.",
        "",
        "| architecture | convert | check | of it weights | outputs | decisions | check over convert | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = " | ".join(f"{row.get(part, 0.0):.1f}" for part in PARTS.values())
        lines.append(
            f"| {row['name']} | {row['convert']:.1f} | {row['check']:.1f} | {parts} | {ratios[row['name']]:.2f} "
            f"| {row['verdict']} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
