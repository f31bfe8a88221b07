"""What masks that are inputs cost: the file with them against the same file without, on ResNet-50.

    python benchmarks/runtime_masks.py > benchmarks/results/runtime_masks.md

Random weights from transformers' configuration, with the exact SVD as components, at 224x224. One process and one
interleaved run on ONNX Runtime's CPU provider, spinning off: the ratios within the run are what to quote.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from spdexport import pipeline
from spdexport.ort.installed import versions
from spdexport.ort.sessions import SessionSettings, open_session
from spdexport.ort.timing import Spread, interleaved, ratio_of

if TYPE_CHECKING:
    from collections.abc import Callable

WANTED = 1.15
"""The most that masks may cost, as a ratio of times."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=25.0, help="for each batch size")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 4])
    options = parser.parse_args()
    torch.manual_seed(0)
    module = ResNetForImageClassification(ResNetConfig()).eval()
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("without", "with")}
        common = {"inputs": torch.randn(1, 3, 224, 224), "verify": False, "delta": "keep"}
        plain = pipeline.convert(module, paths["without"], **common)
        pipeline.convert(module, paths["with"], runtime_masks="all", **common)
        components = {layer.name: layer.components for layer in plain.plan.layers if layer.components is not None}
        found = versions()
        print("# Masks as inputs: what they cost on ResNet-50\n")
        print(
            f"`python benchmarks/runtime_masks.py` on {date.today().isoformat()}, {os.cpu_count()} cores, with "
            + ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "onnx"))
            + f", {found['onnxruntime']}. {len(components)} layers with masks, {sum(components.values())} components.\n"
        )
        print("| batch | masks | without, ms | with, ms | ratio | 95% interval |\n|---|---|---|---|---|---|")
        for batch in options.batch:
            print(*_rows(paths, components, batch, options), sep="\n", flush=True)
    print(f"\nWanted: a ratio of {WANTED} at most.")


def _rows(paths: dict[str, Path], components: dict[str, int], batch: int, options: argparse.Namespace) -> list[str]:
    """One row for masks that are given, and one for masks that are left out."""
    settings = SessionSettings(spinning=False)
    sessions = {name: open_session(path, settings) for name, path in paths.items()}
    random = np.random.default_rng(0)
    x = {"pixel_values": random.standard_normal((batch, 3, 224, 224)).astype(np.float32)}
    masks = {f"mask/{name}": np.ones((batch, count), np.float32) for name, count in components.items()}
    things: list[Callable[[], object]] = [
        lambda: sessions["without"].run(x),
        lambda: sessions["with"].run({**x, **masks}),
        lambda: sessions["with"].run(x),
    ]
    without, given, left_out = interleaved(things, rounds=options.rounds, seconds=options.seconds)
    rows = []
    for name, times in (("given", given), ("left out", left_out)):
        ratio = ratio_of(times, without, seed=0)
        before, after = (1000 * Spread.of(t).median for t in (without, times))
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}"
        rows.append(f"| {batch} | {name} | {before:.1f} | {after:.1f} | {ratio.median:.3f} | {interval} |")
    return rows


if __name__ == "__main__":
    main()
