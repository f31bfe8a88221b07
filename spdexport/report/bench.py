"""A measurement in words, as a table, and as JSON values."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.text import Text

from spdexport.names import count
from spdexport.report.numbers import size
from spdexport.report.tables import results_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from spdexport.measuring.bench import Bench
    from spdexport.report.console import FittingTable


def title(result: Bench) -> str:
    """Return what was measured where."""
    threads = "" if result.threads is None else f", {count(result.threads, 'thread')}"
    return f"ONNX Runtime on {result.provider}{threads}, {' and '.join(result.inputs)}"


def table(result: Bench) -> FittingTable:
    """Return a row for each file."""
    made = results_table("file", "median ms", "quartiles", "runs", "peak memory", "file size")
    for file in result.files:
        time = file.time
        made.add_row(
            Text(file.name),
            _ms(time.median),
            f"{_ms(time.low)} to {_ms(time.high)}",
            str(time.runs),
            size(file.peak_memory),
            size(file.size),
        )
    return made


def remarks(result: Bench) -> list[str]:
    """Return what the numbers say, and how they were taken."""
    said = []
    if result.ratio is not None:
        ratio, (first, second) = result.ratio, result.files
        told = f"{first.name} takes {ratio.median:.3f} times as long as {second.name}"
        interval = f"({ratio.confidence:.0%} interval {ratio.low:.3f} to {ratio.high:.3f})"
        undecided = ratio.low <= 1 <= ratio.high
        said.append(f"{told} {interval}" + (": no difference is shown" if undecided else ""))
    said += [f"{file.name} ran on {_placed(file.placement)}" for file in result.files]
    base = max(file.base_memory for file in result.files)
    turns = "the files run in turn, with spinning threads off; " if len(result.files) > 1 else "spinning threads off; "
    said.append(f"{turns}peak memory is that of a process of its own, {size(base)} of it without the file")
    return said


def bench_json(result: Bench) -> dict[str, Any]:
    """Return the names of the JSON report; seconds and bytes."""
    return asdict(result)


def _placed(placement: Mapping[str, int]) -> str:
    """Where the nodes of a file ran, by the session's own record."""
    return " and ".join(f"{name} ({count(number, 'node')})" for name, number in sorted(placement.items()))


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.4g}"
