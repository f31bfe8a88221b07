"""Memory of converting a large model: the peak of each step, in copies of the weights.

    python benchmarks/memory.py > benchmarks/results/memory.md
    python benchmarks/memory.py --layers 20 --no-verify
    python benchmarks/memory.py --layers 32 --onnx

A stack of 3x3 convolutions with 512 channels, exact SVD of all of them, weights beside the model file. What counts is
the anonymous memory above that of the process with the libraries loaded, looked at every few milliseconds; pages of
mapped files do not count, which the system takes back when it needs them. A module that is converted is one copy; of
an ONNX file only what is in use is read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import torch
from torch import nn

from spdexport import model_files, pipeline
from spdexport.ort.installed import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=246, help="246 weigh more than 2 GiB")
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--onnx", action="store_true", help="the source is an ONNX file, whose data is in no copy yet")
    parser.add_argument("--one-file", action="store_true", help="weights inside of the model file")
    options = parser.parse_args()
    if not options.one_file:
        model_files.EXTERNAL_DATA_FROM = 0
    # Whatever the first conversion loads and caches is no copy of these weights.
    with tempfile.TemporaryDirectory() as folder:
        pipeline.convert(nn.Conv2d(4, 4, 3), Path(folder) / "m.onnx", inputs=torch.randn(1, 4, 5, 5))
    empty = resident()
    module = nn.Module() if options.onnx else _stack(options.layers)
    weights = options.layers * (512 * 512 * 9 + 512) * 4
    steps = Steps(empty, weights)
    x = torch.randn(1, 512, 4, 4)
    with tempfile.TemporaryDirectory() as folder:
        source: nn.Module | Path = module
        if options.onnx:
            source = Path(folder) / "source.onnx"
            # In a process of its own, whose memory goes with it.
            process = multiprocessing.get_context("spawn").Process(target=_save, args=(options.layers, source))
            process.start()
            process.join()
        steps("the model, before")
        result = pipeline.convert(
            source,
            Path(folder) / "m.onnx",
            inputs=None if options.onnx else x,
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
    print(f"Verdict: {result.verdict.value}. Anonymous memory above that of the libraries, in copies of the weights.\n")
    print("| step | peak | at its end | seconds |\n|---|---|---|---|")
    for name, (peak, end, seconds) in steps.rows.items():
        print(f"| {name} | {peak:.2f} | {end:.2f} | {seconds:.0f} |")
    print(f"\nLargest: {max(peak for peak, _, _ in steps.rows.values()):.2f} copies.")


def _stack(layers: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Conv2d(512, 512, 3, padding=1) for _ in range(layers))).eval()


def _save(layers: int, path: Path) -> None:
    torch.onnx.export(
        _stack(layers), (torch.randn(1, 512, 4, 4),), path, dynamo=True, external_data=True, verbose=False
    )


class Steps:
    """Peak and final memory of each step that the progress names."""

    def __init__(self, empty: int, weights: int) -> None:
        self.rows: dict[str, tuple[float, float, float]] = {}
        self._empty, self._weights = empty, weights
        self._last: tuple[str, float] | None = None
        self._highest = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def __call__(self, message: str) -> None:
        """End the step before this one, and begin this one."""
        if self._last is not None:
            name, start = self._last
            peak, end = ((b - self._empty) / self._weights for b in (max(self._highest, resident()), resident()))
            before = self.rows.get(name, (0.0, 0.0, 0.0))
            self.rows[name] = (max(peak, before[0]), end, before[2] + time.perf_counter() - start)
        self._highest = 0
        self._last = (message.partition(":")[0], time.perf_counter())

    def _watch(self) -> None:
        while True:
            self._highest = max(self._highest, resident())
            time.sleep(0.003)


def resident() -> int:
    """Bytes of anonymous memory of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
