"""What damaged files do: thousands of them, of every kind of input, through the command line.

    make fuzz                                       # all kinds, and benchmarks/results/fuzz.md
    make fuzz ARGS="--only npz-masks-convert:17"    # one case again, with what it said

A case is a kind (format, place, command) and a seed, and is the same every time. It runs in a forked process: its
exit status must be a documented one, it says at most three lines of error, ends within 20 s of processor time and
2 GiB of memory, leaves nothing behind, changes no input, and accepts only what is still valid.
"""

from __future__ import annotations

import os

# Before numpy and torch: forked processes must inherit no threads.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "fuzz")]

from fuzz_page import SEEDED, write_section

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fuzz_case import Outcome
    from fuzz_kinds import Kind


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="of all kinds together (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first case of each kind (default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--kinds", nargs="*", metavar="KIND", help="these alone")
    parser.add_argument("--fast", action="store_true", help="the kinds that take little time alone")
    parser.add_argument("--only", metavar="KIND:SEED", help="one case, with what it said")
    parser.add_argument("--results", type=Path, help="where the table goes (default: printed)")
    parser.add_argument("--failures", type=Path, default=ROOT / "fuzz-failures", help="where failing files are kept")
    options = parser.parse_args()
    from fuzz_kinds import KINDS

    if unknown := [name for name in options.kinds or () if name not in KINDS]:
        parser.error(f"there is no kind {unknown[0]!r}; there are {', '.join(KINDS)}")
    if options.only:
        name, _, seed = options.only.rpartition(":")
        if name not in KINDS or not seed.isdigit():
            parser.error(f"{options.only!r} is not KIND:SEED; kinds are {', '.join(KINDS)}")
        return show(KINDS[name], int(seed), options.failures)
    kinds = [kind for kind in KINDS.values() if not options.kinds or kind.name in options.kinds]
    kinds = [kind for kind in kinds if not options.fast or kind.share == 1]
    return run(kinds, options)


def run(kinds: list[Kind], options: argparse.Namespace) -> int:
    """Run all cases, print what failed, and write the table."""
    from fuzz_workers import FuzzJob, prepared_material, run_jobs, smallest

    start = time.perf_counter()
    unit = options.cases / sum(kind.share for kind in kinds)
    jobs = [FuzzJob(kind, options.seed + i) for kind in kinds for i in range(max(round(unit * kind.share), 1))]
    # Slow and fast kinds mixed, so that the workers end together.
    random.Random(0).shuffle(jobs)
    outcomes = []
    with prepared_material() as material:
        made = time.perf_counter() - start
        by_name = {kind.name: kind for kind in kinds}
        for outcome in run_jobs(jobs, material, workers=options.workers):
            outcomes.append(outcome)
            if outcome.faults:
                keep(
                    smallest(outcome, by_name[outcome.kind], material),
                    by_name[outcome.kind],
                    material,
                    options.failures,
                )
            if len(outcomes) % 500 == 0:
                print(
                    f"{len(outcomes)} of {len(jobs)}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True
                )
    lines = table(kinds, outcomes, seconds=time.perf_counter() - start, made=made, options=options)
    if options.results:
        write_section(SEEDED, lines, options.results)
    print("\n".join(lines))
    return 1 if any(outcome.faults for outcome in outcomes) else 0


def show(kind: Kind, seed: int, failures: Path) -> int:
    """Run one case, and print its changes, its outcome and what it said."""
    from fuzz_workers import FuzzJob, prepared_material, run_jobs

    with prepared_material() as material:
        (outcome,) = run_jobs([FuzzJob(kind, seed)], material, workers=1)
        kept = keep(outcome, kind, material, failures) if outcome.faults else None
    print("spdexport", *kind.command)
    print("damaged:", kind.damaged, "by", ", ".join(f"{step.damage} {step.seed}" for step in outcome.steps))
    print(f"exit status {outcome.status}, {outcome.seconds:.2f} s, {outcome.mib:.0f} MiB {outcome.accepted}")
    print("faults:", "; ".join(outcome.faults) or "none", f"({kept})" if kept else "")
    print(outcome.said)
    return 1 if outcome.faults else 0


def keep(outcome: Outcome, kind: Kind, material: Path, failures: Path) -> Path:
    """Save what a failing case read, and what it said; return the folder."""
    from fuzz_case import splice_sources
    from fuzz_kinds import damaged

    folder = failures / f"{kind.name}-{outcome.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = damaged((material / kind.damaged).read_bytes(), outcome.steps, splice_sources(material))
    (folder / Path(kind.damaged).name).write_bytes(content)
    about = {
        "again": f'make fuzz ARGS="--only {kind.name}:{outcome.seed}"', "command": kind.command,
        "damaged": kind.damaged,
        "steps": [(step.damage, step.seed) for step in outcome.steps], "status": outcome.status,
        "faults": outcome.faults, "said": outcome.said.splitlines(),
    }  # fmt: skip
    (folder / "case.json").write_text(json.dumps(about, indent=1))
    print(f"{kind.name}:{outcome.seed}: {'; '.join(outcome.faults)}", file=sys.stderr, flush=True)
    return folder


COLUMNS = (0, 1, 2, 3, 4, 5, 74)


def table(
    kinds: list[Kind], outcomes: Iterable[Outcome], *, seconds: float, made: float, options: argparse.Namespace
) -> list[str]:
    """Return the lines of the results."""
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind].append(outcome)
    total = sum(map(len, by_kind.values()))
    failed = [o for found in by_kind.values() for o in found if o.faults]
    verdict = f"{len(failed)} faults." if failed else "No fault."
    lines = [
        f"`make fuzz` on {date.today().isoformat()}, seed {options.seed}, with {stack()}.",
        "",
        f"{total} damaged files of {len(kinds)} kinds of input in {seconds / 60:.1f} minutes with {options.workers}",
        f"processes, {made:.0f} s of it to make the valid files. {verdict}",
        "",
        "A kind is a format, a place that reads it, and a command. The columns are exit statuses. Accepted are those",
        "of status 0 that another reader of the format takes too. All others of status 0 are faults, as are a",
        "traceback, exit status 70, more than three lines of error, 20 s or 2 GiB, a file left behind or changed, and",
        "a payload that was executed. Seconds and MiB are the largest of one case.",
        "",
        f"| kind | cases | {' | '.join(map(str, COLUMNS))} | accepted | faults | seconds | MiB |",
        "|---|" + "---|" * (len(COLUMNS) + 5),
    ]
    lines += ["| " + " | ".join(row(kind.name, by_kind[kind.name])) + " |" for kind in kinds]
    lines.append("| " + " | ".join(row("all", [o for found in by_kind.values() for o in found])) + " |")
    if failed:
        lines += ["", "| fault | cases | first |", "|---|---|---|"]
        found: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in failed:
            found[outcome.signature].append(outcome)
        for name, cases in sorted(found.items(), key=lambda item: -len(item[1])):
            lines.append(f"| {name.replace('|', '/')} | {len(cases)} | {cases[0].kind}:{cases[0].seed} |")
    return lines


def row(name: str, outcomes: list[Outcome]) -> list[str]:
    counts = Counter(outcome.status for outcome in outcomes)
    valid = sum(outcome.accepted in ("valid", "as it was") for outcome in outcomes)
    return [
        name,
        str(len(outcomes)),
        *(str(counts[status]) if counts[status] else "" for status in COLUMNS),
        str(valid),
        str(sum(bool(outcome.faults) for outcome in outcomes)),
        f"{max((outcome.seconds for outcome in outcomes), default=0):.1f}",
        f"{max((outcome.mib for outcome in outcomes), default=0):.0f}",
    ]


def stack() -> str:
    from spdexport.ort.installed import versions

    found: dict[str, Any] = versions()
    names = ("python", "torch", "onnx", "onnxruntime", "numpy")
    return ", ".join(f"{name} {found[name]}" for name in names if name in found)


if __name__ == "__main__":
    sys.exit(main())
