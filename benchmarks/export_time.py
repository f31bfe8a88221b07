"""Time and memory of converting and verifying, against the plain export of the same model.

    python benchmarks/export_time.py > benchmarks/results/export_time.md
    python benchmarks/export_time.py --models resnet50 --pairs 1

The plain export is ``torch.export``, ``torch.onnx.export`` and its ``save``. All are run in turn in one process, so
that what else the machine does meets them alike; a ratio is the median over the rounds of the quotient within a round.
Time is that of the process on all its cores, and the clock's. Random weights from transformers' configurations,
224x224, exact SVD of all layers, which stands beside them: it is part of each conversion. Peaks of memory are those of
anonymous memory above that before the command. Under load, set OMP_NUM_THREADS=1: threads that wait for a core spin.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers as hf
from memory import resident
from torch import nn
from watching import Highest

from spdexport import pipeline
from spdexport.ort.installed import versions
from spdexport.rewrite.torch_graph import list_sites
from spdexport.sources.svd import svd_source

if TYPE_CHECKING:
    from collections.abc import Callable

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: hf.ResNetForImageClassification(hf.ResNetConfig()),
    "convnext_tiny": lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig()),
    "vit_base": lambda: hf.ViTForImageClassification(hf.ViTConfig()),
    "efficientnet_b0": lambda: hf.EfficientNetForImageClassification(
        hf.EfficientNetConfig(image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280)
    ),
}


VERIFYING = ("convert", "verify --against")
"""The commands that verify."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What one command took: seconds of the process, seconds of the clock, and bytes at its peak."""

    process: float
    clock: float
    peak: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--pairs", type=int, default=3, help="rounds of all commands")
    parser.add_argument("--no-verify", action="store_true", help="leave out what verifies")
    options = parser.parse_args()
    # Whatever the first export and conversion load and cache belongs to none of them.
    with tempfile.TemporaryDirectory() as folder:
        for command in _commands(nn.Conv2d(4, 4, 3), torch.randn(2, 4, 5, 5), Path(folder)).values():
            command()
    found = versions()
    print("# Time and memory against the plain export\n")
    print(f"`python benchmarks/export_time.py` on {date.today().isoformat()}, with", end=" ")
    print(", ".join(f"{name} {found[name]}" for name in ("torch", "onnx", "onnxruntime")), end=".\n\n")
    print("| model | command | process s | ratio | clock s | ratio | peak MiB | ratio |\n|" + "---|" * 8)
    for name in options.models:
        torch.manual_seed(0)
        module = MODELS[name]().eval()
        rounds = [_round(module, verify=not options.no_verify) for _ in range(options.pairs)]
        for command in rounds[0]:
            cells = [name, command]
            for what in ("process", "clock", "peak"):
                values = [getattr(r[command], what) for r in rounds]
                ratio = statistics.median(getattr(r[command], what) / getattr(r["plain export"], what) for r in rounds)
                shown = statistics.median(values)
                cells += [f"{shown / 2**20:.0f}" if what == "peak" else f"{shown:.1f}", f"{ratio:.2f}"]
            print(f"| {' | '.join(cells)} |", flush=True)


def _round(module: nn.Module, *, verify: bool) -> dict[str, Spent]:
    """Run every command once."""
    with tempfile.TemporaryDirectory() as folder:
        commands = _commands(module, torch.randn(2, 3, 224, 224), Path(folder))
        wanted = [name for name in commands if verify or name not in VERIFYING]
        return {name: _spent(commands[name]) for name in wanted}


def _commands(module: nn.Module, x: torch.Tensor, folder: Path) -> dict[str, Callable[[], object]]:
    def plain() -> None:
        with torch.no_grad():
            program = torch.export.export(module, (x,), dynamic_shapes=None)
            exported = torch.onnx.export(program, dynamo=True, verbose=False)
        assert exported is not None, "the dynamo exporter returns its program"
        exported.save(folder / "plain.onnx")

    def decompose() -> None:
        for site in list_sites(torch.export.export(module, (x,)))[0]:
            svd_source(site)

    def convert(*, verify: bool) -> None:
        pipeline.convert(module, folder / "m.onnx", inputs=x, verify=verify)

    return {
        "plain export": plain,
        "torch.export and the SVD": decompose,
        "convert --no-verify": lambda: convert(verify=False),
        "convert": lambda: convert(verify=True),
        "verify --against": lambda: pipeline.verify(folder / "m.onnx", against=module, inputs=x),
    }


def _spent(command: Callable[[], object]) -> Spent:
    gc.collect()
    before = resident()
    with Highest(resident) as highest:
        process, clock = time.process_time(), time.perf_counter()
        command()
        process, clock = time.process_time() - process, time.perf_counter() - clock
    return Spent(process=process, clock=clock, peak=max(highest.value - before, 1))


if __name__ == "__main__":
    main()
