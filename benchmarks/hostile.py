"""Files that are made to harm, at every place that takes a file: what is refused, what it costs, what comes of it.

    python benchmarks/hostile.py > benchmarks/results/hostile.md

Every file is given to every command and option that reads files, whatever it is. Code that would run makes a marker;
files that come to be, other than the outputs that were asked for, are counted.
"""

from __future__ import annotations

import os

# Before numpy and torch: forked processes must inherit no threads.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import sys
import time
from collections import Counter, defaultdict
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "fuzz"), str(TESTS / "hostile")]

if TYPE_CHECKING:
    from fuzz_case import Outcome

STATUSES = (0, 1, 2, 3, 4, 5, 74)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--only", metavar="TEXT", help="files with this in their name alone")
    parser.add_argument("--place", metavar="TEXT", help="places with this in their name alone")
    parser.add_argument("--fast", action="store_true", help="one place for each file, and none that takes long")
    parser.add_argument("--show", action="store_true", help="print what each command said")
    options = parser.parse_args()
    from fuzz_workers import prepared_material, run_jobs
    from hostile_cases import HOSTILE, PLACES, jobs, make_all

    start = time.perf_counter()
    chosen = tuple(hostile for hostile in HOSTILE if (options.only or "") in hostile.name)
    if options.fast:
        chosen = tuple(hostile for hostile in chosen if not hostile.slow)
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    with prepared_material() as material:
        maker = get_context("fork").Process(target=make_all, args=(chosen, material))
        maker.start()
        maker.join()
        if maker.exitcode != 0:
            raise RuntimeError(f"the hostile files could not be made: exit status {maker.exitcode}")
        wanted = [job for job in jobs(chosen, few=options.fast) if (options.place or "") in job.place]
        for outcome in run_jobs(wanted, material, workers=options.workers):
            outcomes[outcome.kind].append(outcome)
            if outcome.faults or options.show:
                print(f"{outcome.kind}, {outcome.place}: {outcome.status} {'; '.join(outcome.faults)}", file=sys.stderr)
            if options.show:
                print(outcome.said, file=sys.stderr)
    found = [outcome for group in outcomes.values() for outcome in group]
    print("# Hostile files\n")
    print(f"`python benchmarks/hostile.py` on {date.today().isoformat()}, with {stack()}.\n")
    places = dict.fromkeys(outcome.place for outcome in found)
    print(f"{len(outcomes)} files, each at {len(places)} places: {len(found)} commands in", end=" ")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes with {options.workers} processes.")
    print(f"Code ran {sum(map(executed, found))} times, files were written {sum(map(written, found))} times;")
    print(f"{sum(bool(outcome.faults) for outcome in found)} commands did what they must not.\n")
    print("Places are " + "; ".join(name for name in PLACES if name in places) + ".\n")
    print(
        "The columns with numbers are exit statuses; seconds and MiB are the most of any command, the time of a command"
    )
    print("on a valid file of its kind included.\n")
    print(f"| file | {' | '.join(map(str, STATUSES))} | code ran | files written | faults | seconds | MiB |")
    print("|---|" + "---|" * (len(STATUSES) + 5))
    for name, group in outcomes.items():
        print("| " + " | ".join(row(name, group)) + " |")
    print("| " + " | ".join(row("all", found)) + " |")
    if failed := [outcome for outcome in found if outcome.faults]:
        print("\nWhat must not be:\n")
        for outcome in failed:
            print(f"- {outcome.kind}, at {outcome.place}: {'; '.join(outcome.faults)}")
    return 1 if any(outcome.faults for outcome in found) else 0


def executed(outcome: Outcome) -> bool:
    return any("executed" in fault for fault in outcome.faults)


def written(outcome: Outcome) -> bool:
    return any(fault.startswith("left behind") or fault.endswith(("changed", "gone")) for fault in outcome.faults)


def row(name: str, outcomes: list[Outcome]) -> list[str]:
    counts = Counter(outcome.status for outcome in outcomes)
    return [
        name.replace("|", "\\|").replace("<", "&lt;"),
        *(str(counts[status]) if counts[status] else "" for status in STATUSES),
        str(sum(map(executed, outcomes))),
        str(sum(map(written, outcomes))),
        str(sum(bool(outcome.faults) for outcome in outcomes)),
        f"{max(outcome.seconds for outcome in outcomes):.1f}",
        f"{max(outcome.mib for outcome in outcomes):.0f}",
    ]


def stack() -> str:
    from spdexport.ort.installed import versions

    found = versions()
    names = ("python", "torch", "onnx", "onnxruntime", "numpy")
    return ", ".join(f"{name} {found[name]}" for name in names if name in found)


if __name__ == "__main__":
    sys.exit(main())
