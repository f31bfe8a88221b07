"""Time and memory of converting and verifying ResNet-50, with the exact SVD of all its layers.

    python benchmarks/resnet50.py > benchmarks/results/resnet50.md

Random weights from transformers' configuration, 224x224, one process. Whole-process figures of a shared machine: the
ratios within the run are what to quote.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import ResNetConfig, ResNetForImageClassification

from spdexport import pipeline
from spdexport.ort.installed import versions
from spdexport.rewrite.torch_graph import list_sites
from spdexport.sources.svd import svd_source

if TYPE_CHECKING:
    from collections.abc import Iterator


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    module = ResNetForImageClassification(ResNetConfig()).eval()
    weights = sum(p.numel() * p.element_size() for p in module.parameters()) / 2**30
    x = torch.randn(1, 3, 224, 224)
    times: dict[str, float] = {}
    sites, _ = list_sites(torch.export.export(module, (x,)))
    with timed(times, "svd"):
        for site in sites:
            svd_source(site)
    before = peak_gib()
    with tempfile.TemporaryDirectory() as folder, timed(times, "convert and verify"):
        steps = _Steps()
        result = pipeline.convert(module, Path(folder) / "m.onnx", inputs=x, progress=steps)
        steps("end")
    peak = peak_gib()
    converting = sum(steps.seconds[s] for s in ("tracing", "matching components", "planning", "placing factors"))
    converting += steps.seconds["loading"] + steps.seconds["exporting to ONNX"]
    verifying = times["convert and verify"] - converting
    found = versions()
    print("# ResNet-50: time and memory\n")
    print(
        f"`python benchmarks/resnet50.py` on {date.today().isoformat()}, {os.cpu_count()} cores, with "
        + ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "onnx", "onnxruntime"))
        + ".\n"
    )
    print("| what | seconds |\n|---|---|")
    print(f"| exact SVD of all {len(sites)} layers | {times['svd']:.1f} |")
    for name, seconds in steps.seconds.items():
        print(f"| {name} | {seconds:.1f} |")
    print(f"| converting, all steps | {converting:.1f} |")
    print(f"| verifying, {len(result.verification.inputs)} inputs | {verifying:.1f} |\n")
    print(f"Verifying takes {verifying / converting:.2f} of converting's time. Verdict: {result.verdict}.\n")
    print(f"Weights {weights:.2f} GiB. Peak memory {peak:.2f} GiB, of which {before:.2f} GiB before converting.")


class _Steps:
    """Seconds of each step that the progress names, those of one kind summed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last: tuple[str, float] | None = None

    def __call__(self, message: str) -> None:
        now = time.perf_counter()
        if self._last is not None:
            name, start = self._last
            self.seconds[name] = self.seconds.get(name, 0.0) + now - start
        self._last = (message.partition(":")[0], now)


@contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    times[name] = time.perf_counter() - start


if __name__ == "__main__":
    main()
