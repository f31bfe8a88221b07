"""Memory of converting a large model: the peak of each step, in copies of the weights.

    python benchmarks/memory.py > benchmarks/results/memory.md
    python benchmarks/memory.py --layers 20 --no-verify

A stack of 3x3 convolutions with 512 channels, exact SVD of all of them, weights beside the model file. What counts is
the resident memory above that of the process with the libraries loaded; the model itself is one copy.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from torch import nn

from spdexport import model_files, pipeline
from spdexport.installed import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=110)
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--one-file", action="store_true", help="weights inside of the model file")
    options = parser.parse_args()
    if not options.one_file:
        model_files.EXTERNAL_DATA_FROM = 0
    # Whatever the first conversion loads and caches is no copy of these weights.
    with tempfile.TemporaryDirectory() as folder:
        pipeline.convert(nn.Conv2d(4, 4, 3), Path(folder) / "m.onnx", inputs=torch.randn(1, 4, 5, 5))
    empty = resident()
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Conv2d(512, 512, 3, padding=1) for _ in range(options.layers))).eval()
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    steps = Steps(empty, weights)
    with tempfile.TemporaryDirectory() as folder:
        steps("the model, before")
        result = pipeline.convert(
            module,
            Path(folder) / "m.onnx",
            inputs=torch.randn(1, 512, 4, 4),
            verify=not options.no_verify,
            progress=steps,
        )
        written = sum(p.stat().st_size for p in result.outputs)
        steps("end")
    found = versions()
    print("# Memory of a conversion\n")
    stack = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "onnx", "onnxruntime"))
    print(f"`python benchmarks/memory.py` on {date.today().isoformat()}, with {stack}.\n")
    size, times = f"{weights / 2**30:.2f} GiB", f"{written / weights:.2f}"
    print(f"{options.layers} convolutions, {size} of weights; the file, with V and U, has {times} times as much.")
    print(
        f"Verdict: {result.verdict.value}. Memory above that of the libraries, in copies of the weights; the model that"
    )
    print("is converted is one of them.\n")
    print("| step | peak | at its end | seconds |\n|---|---|---|---|")
    for name, (peak, end, seconds) in steps.rows.items():
        print(f"| {name} | {peak:.2f} | {end:.2f} | {seconds:.0f} |")
    print(f"\nLargest: {max(peak for peak, _, _ in steps.rows.values()):.2f} copies.")


class Steps:
    """Peak and final memory of each step that the progress names."""

    def __init__(self, empty: int, weights: int) -> None:
        self.rows: dict[str, tuple[float, float, float]] = {}
        self._empty, self._weights = empty, weights
        self._last: tuple[str, float] | None = None

    def __call__(self, message: str) -> None:
        """End the step before this one, and begin this one."""
        if self._last is not None:
            name, start = self._last
            peak, end = ((b - self._empty) / self._weights for b in (resident("VmHWM"), resident()))
            before = self.rows.get(name, (0.0, 0.0, 0.0))
            self.rows[name] = (max(peak, before[0]), end, before[2] + time.perf_counter() - start)
        # Resets the peak of this process, VmHWM.
        Path("/proc/self/clear_refs").write_text("5")
        self._last = (message.partition(":")[0], time.perf_counter())


def resident(what: str = "VmRSS") -> int:
    """Bytes of memory of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what + ":"))


if __name__ == "__main__":
    main()
