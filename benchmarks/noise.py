"""How far correct files are from their float64 reference, in units of what rounding explains.

    python benchmarks/noise.py > benchmarks/results/noise.md

The factor above which verification fails is chosen from this: far above what correct files reach, far below what
faults cause. Models are random, of many kinds; each is made and checked with several seeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "verification"))

from rounding_nets import NETS, rounding_net
from small_nets import SMALL, TRANSFORMERS

from spdexport import pipeline
from spdexport.ort.installed import versions
from spdexport.verification.compare import FACTOR
from spdexport.verification.edge import Edge
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from small_nets import Net

    from spdexport.verification.compare import Comparison


def reseeded(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The module with other weights of the same size."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, dtype=torch.float64) * p.double().std())
    return module


def models(seeds: int) -> Iterator[tuple[str, Callable[[], Net]]]:
    """All models with all their seeds, each with where it is to be named."""
    for make in (*SMALL, *TRANSFORMERS):
        for seed in range(seeds if make in SMALL else 1):
            yield f"{make.__name__}, seed {seed}", partial(_remade, make, seed)
    for name in NETS:
        for seed in range(seeds):
            yield f"{name}, seed {seed}", partial(rounding_net, name, seed)


def _remade(make: Callable[[], Net], seed: int) -> Net:
    module, inputs = make()
    return reseeded(module, seed), inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--date", default=date.today().isoformat())
    arguments = parser.parse_args()

    ratios: dict[str, list[float]] = defaultdict(list)
    worst: dict[str, tuple[float, str]] = {}
    wrong: list[str] = []
    place = ""
    add = Edge.add

    def recording(edge: Edge, case: str, found: Comparison) -> None:
        key = f"{mode}, {edge.edge}"
        ratios[key].append(found.noise_ratio)
        worst[key] = max(worst.get(key, (0.0, "")), (found.noise_ratio, f"{place}: {case}"))
        add(edge, case, found)

    Edge.add = recording  # type: ignore[method-assign]  # one ratio for each case, which the result does not keep
    with tempfile.TemporaryDirectory() as folder:
        for place, make in models(arguments.seeds):
            print(place, file=sys.stderr)
            module, inputs = make()
            file = Path(folder) / "m.onnx"
            seed = int(place.rsplit(" ", 1)[1])
            mode = "with the source"
            done = pipeline.convert(module, file, inputs=inputs, seed=seed)
            mode = "the file alone"
            verdicts = [done.verdict, pipeline.verify(done.outputs[0], seed=seed).verdict]
            wrong += [place for verdict in verdicts if verdict is not Status.PASS]

    print("# The noise ratio of correct files\n")
    print(f"`python benchmarks/noise.py` on {arguments.date}, with", end=" ")
    known = versions()
    print(", ".join(f"{name} {known[name]}" for name in ("torch", "onnx", "numpy", "python")), end=", ")
    print(f"{known['onnxruntime']}.\n")
    print(f"Models (tests/verification/small_nets.py), the first {len(SMALL)} with {arguments.seeds} seeds:")
    print(f"{', '.join(m.__name__ for m in (*SMALL, *TRANSFORMERS))}.\n")
    print(f"Models whose kernels round much (tests/verification/rounding_nets.py), with {arguments.seeds} seeds:")
    print(f"{', '.join(NETS)}.\n")
    print(
        "One ratio for each model, seed and input: the largest error over the floor, which is what rounding explains.\n"
    )
    print("| verification | edge | ratios | median | 99% | largest | where |\n|---|---|---|---|---|---|---|")
    for key, values in sorted(ratios.items()):
        mode, edge = key.split(", ")
        median, high = np.median(values), np.quantile(values, 0.99)
        top, where = worst[key]
        print(f"| {mode} | {edge} | {len(values)} | {median:.2f} | {high:.2f} | {top:.2f} | {where} |")
    largest = max(max(values) for values in ratios.values())
    print(f"\nThe factor is {FACTOR:g}: {FACTOR / largest:.1f} times the largest ratio of a correct file.")
    print(f"False alarms: {len(wrong)}{': ' if wrong else ''}{'; '.join(wrong)}.")


if __name__ == "__main__":
    main()
