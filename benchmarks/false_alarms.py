"""What a check says of small models of many kinds that are all right: how often it refuses one, and how near it comes.

    python benchmarks/false_alarms.py --output benchmarks/results/false_alarms.md
    python benchmarks/false_alarms.py --only LSTM --seeds 5

Kinds are in ``tests/verification/alarm_kinds.py``: each of three sizes, with weights of many seeds, checked by itself
on generated inputs; with the first seed it is converted into factors too, and that file is checked against the model.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "verification"))

from alarm_kinds import KINDS, alarm_net

from spdexport import pipeline
from spdexport.ort.installed import versions
from spdexport.verification.compare import FACTOR
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from spdexport.verification.result import Verification


@dataclass(slots=True)
class Kind:
    """What was found of a kind.

    Attributes:
        name: The kind.
        tried: The number of verdicts.
        refused: Those that failed, with where and why.
        open: Those that are inconclusive, with where and why.
        ratio: The largest error over what rounding explains.
    """

    name: str
    tried: int = 0
    refused: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    ratio: float = 0.0

    def add(self, place: str, found: Verification) -> None:
        """Take in a verdict."""
        self.tried += 1
        self.ratio = max([self.ratio, *(edge.noise_ratio or 0.0 for edge in found.edges)])
        if found.verdict is Status.PASS:
            return
        odd = next((edge for edge in found.edges if edge.status is found.verdict), None)
        told = self.refused if found.verdict is Status.FAIL else self.open
        told.append(f"{place}: {odd.edge}: {odd.reason}" if odd else place)


def main() -> int:
    """Try what was asked for, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    parser.add_argument("--output", type=Path, help="a page for the results; without it they are printed")
    options = parser.parse_args()
    kinds = []
    for name in (name for name in KINDS if options.only in name):
        kind = Kind(name)
        kinds.append(kind)
        for place, found in verdicts(name, options.seeds):
            kind.add(place, found)
        print(kind, file=sys.stderr, flush=True)
        if options.output is not None:
            options.output.write_text(page(kinds, options.seeds), encoding="utf-8")
    if options.output is None:
        print(page(kinds, options.seeds))
    return int(any(kind.refused for kind in kinds))


def verdicts(name: str, seeds: int) -> Iterator[tuple[str, Verification]]:
    """Yield what is found of all sizes and seeds of a kind, and where."""
    for size in KINDS[name][1]:
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "m.onnx"
                onnx.save(alarm_net(name, size, seed), file)
                yield f"size {size}, seed {seed}", pipeline.verify(file, seed=seed)
                if seed == 0:
                    done = pipeline.convert(file, Path(folder) / "out.onnx", form="factorized", seed=seed)
                    if done.verification is not None:
                        yield f"size {size}, seed {seed}, converted", done.verification


def page(kinds: list[Kind], seeds: int) -> str:
    """Return the results as Markdown."""
    stack = ", ".join(f"{name} {version}" for name, version in versions().items() if version)
    tried, refused = sum(kind.tried for kind in kinds), sum(len(kind.refused) for kind in kinds)
    still_open, worst = sum(len(kind.open) for kind in kinds), max(kinds, key=lambda kind: kind.ratio)
    lines = [
        "# False alarms",
        "",
        f"`python benchmarks/false_alarms.py` on {date.today().isoformat()}, with {stack}.",
        "",
        f"{len(kinds)} kinds of small model, all right, by 3 sizes by {seeds} seeds, each on 6 inputs; each kind and",
        f"size is converted once more. Refused: {refused} of {tried}; inconclusive: {still_open}. The largest error is",
        f"{worst.ratio:.2f} times what rounding explains ({worst.name}); above {FACTOR:g} fails.",
        "",
        "| kind | sizes | verdicts | refused | inconclusive | largest ratio |",
        "|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        sizes = ", ".join(map(str, KINDS[kind.name][1]))
        counts = f"{kind.tried} | {len(kind.refused)} | {len(kind.open)}"
        lines.append(f"| {kind.name} | {sizes} | {counts} | {kind.ratio:.2f} |")
    told = [(kind.name, words) for kind in kinds for words in (*kind.refused, *kind.open)]
    lines += ["", *(f"- {name}, {words}" for name, words in told)] if told else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
