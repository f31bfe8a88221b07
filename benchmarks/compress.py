"""Compress trained networks within budgets, beside plain truncation at the same cost, and judge all on test images.

    python benchmarks/compress_nets.py FOLDER
    python benchmarks/compress.py FOLDER [--net resnet depthwise vit] [--seeds 0] [--bits] [--results F.md]

The drop is in points of top-1 accuracy on the 10,000 test images, which nothing was chosen by; times are ratios to the
dense file, taken in pairs, at batch 1 and 64. With ``--bits``, the rows are of eight bits and half precision instead:
alone, and behind forms that the same budget pays for; times are also told relative to eight bits alone.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[1]))

import spdexport
from spdexport.files.onnx_reading import reload_onnx
from spdexport.ort.installed import versions
from spdexport.precision import Precision, Storage, calibrated

FACTORIES = {"resnet": "FashionResNet", "depthwise": "FashionDepthwise", "vit": "FashionTransformer"}
BUDGETS = (0.005, 0.01, 0.02)
ENERGIES = (0.95, 0.85)
BITS_BUDGETS = (0.01, 0.02)
BITS = {"int8": {"quantize": "int8"}, "float16": {"dtype": "float16"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One file, relative to the dense one."""

    net: str
    how: str
    macs: float
    size: float
    drop: float
    interval: str
    times: tuple[float, ...]
    seconds: float
    alone: tuple[float, ...] = ()


def accuracy(path: Path, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of samples that a file gets right."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    batches = (session.run(None, {name: images[i : i + 500]})[0] for i in range(0, len(images), 500))
    return float(np.mean(np.concatenate([b.argmax(axis=1) for b in batches]) == labels))


def times(path: Path, dense: Path) -> tuple[float, ...]:
    """Return the file's time over the dense one's, at batch 1 and 64."""
    timed = (spdexport.bench(path, against=dense, batch=batch, threads=2, seconds=4) for batch in (1, 64))
    return tuple(found.ratio.median for found in timed)


class Net:
    """A trained network with its dense file, and the rows of what is made of it.

    Attributes:
        model: Its weights.
        given: What tells how they are loaded.
        dense: The dense file.
        rows: What was measured.
    """

    def __init__(self, net: str, seed: int, folder: Path, out: Path) -> None:
        self.model = folder / f"{net}-{seed}.pt"
        self.folder, self._out, self._name, self._seed = folder, out, net, seed
        factory = f"{Path(__file__).with_name('compress_nets.py')}:{FACTORIES[net]}"
        self.given = {"factory": factory, "input_shape": ("2x1x28x28",)}
        test = np.load(folder / "test.npz")
        self._images, self._labels = test["images"], test["labels"]
        made = spdexport.convert(self.model, self.path("dense"), form="dense", verify=False, **self.given)
        self.dense = made.outputs[0]
        self._right = accuracy(self.dense, self._images, self._labels)
        self.rows: list[Row] = []

    def path(self, what: str) -> Path:
        """Return where a file is written."""
        return self._out / f"{self._name}-{self._seed}-{what}.onnx"

    def compressed(self, what: str, budget: float, **asked: str) -> tuple[spdexport.Compression, float, str]:
        """Compress within a budget; return that, the seconds it took, and the interval that the test set gives."""
        begun = time.monotonic()
        made = spdexport.compress(
            self.model, self.path(what), data=self.folder / "held_out.npz", test=self.folder / "test.npz",
            max_top1_drop=budget, factory=self.given["factory"], seed=self._seed, **asked,
        )  # fmt: skip
        judged = made.search.test
        interval = f"{100 * judged.interval.low:.2f} to {100 * judged.interval.high:.2f}" if judged else ""
        return made, time.monotonic() - begun, interval

    def row(
        self, how: str, made: spdexport.Conversion, seconds: float, interval: str = "", alone: Path | None = None
    ) -> None:
        """Measure a file, beside the dense one and perhaps another."""
        path = made.outputs[0]
        self.rows.append(
            Row(
                net=f"{self._name}, seed {self._seed} ({self._right:.2%})",
                how=how,
                macs=made.plan.macs_after / made.plan.macs_before,
                size=path.stat().st_size / self.dense.stat().st_size,
                drop=100 * (self._right - accuracy(path, self._images, self._labels)),
                interval=interval,
                times=times(path, self.dense),
                seconds=seconds,
                alone=() if alone is None else times(path, alone),
            )
        )
        print(self.rows[-1], flush=True)


def rows(net: str, seed: int, folder: Path, out: Path) -> list[Row]:
    """Compress one network in every way."""
    one = Net(net, seed, folder, out)
    for budget in BUDGETS:
        made, seconds, interval = one.compressed(str(budget), budget)
        one.row(f"`compress --max-top1-drop {budget:.1%}`: {made.verdict}", made, seconds, interval)
    for energy in ENERGIES:
        begun = time.monotonic()
        found = spdexport.convert(one.model, one.path(f"e{energy}"), form="auto", energy=energy, **one.given)
        one.row(f"`convert --form auto --energy {energy}`: {found.verdict}", found, time.monotonic() - begun)
    return one.rows


def bits(net: str, seed: int, folder: Path, out: Path) -> list[Row]:
    """Store one network in fewer bits: alone, and behind the forms that a search finds within each budget."""
    one = Net(net, seed, folder, out)
    calibration = [{"images": np.load(folder / "held_out.npz")["images"][i : i + 32]} for i in range(0, 512, 32)]
    for name, asked in BITS.items():
        storage = Storage(name)
        ranges = calibrated(reload_onnx(one.dense), calibration) if storage is Storage.INT8 else {}
        begun = time.monotonic()
        precision = Precision(storage=storage, ranges=ranges)
        alone = one.path(name)
        made = spdexport.convert(one.model, alone, form="dense", precision=precision, **one.given)
        one.row(f"{name} alone: {made.verdict}", made, time.monotonic() - begun)
        for budget in BITS_BUDGETS:
            both, seconds, interval = one.compressed(f"{name}-{budget}", budget, **asked)
            taken = next((c.name for c in both.search.combinations if c.chosen), "dense")
            how = f"`compress --max-top1-drop {budget:.1%}`, {name}, took {taken}: {both.verdict}"
            one.row(how, both, seconds, interval, alone)
    return one.rows


def page(found: list[Row]) -> str:
    """Return the results as a page."""
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    machine = platform.processor() or platform.machine()
    lines = [
        "# Compressing within a budget",
        "",
        f"`python benchmarks/compress.py`, {datetime.now(UTC):%Y-%m-%d}, {machine}, 2 threads; {told}.",
        "",
        "Networks that `benchmarks/compress_nets.py` trains on Fashion-MNIST; 10,000 images that they were not trained",
        "on for calibration and selection, and the 10,000 of the test file to judge. Nothing is trained after",
        "compressing. MACs, size and times are relative to the dense file; the search includes verification.",
        "",
        "| network | file | MACs | size | drop, points | 95% interval | time, batch 1 | batch 64 | search, s |"
        + (" of those bits alone: batch 1 | batch 64 |" if any(r.alone for r in found) else ""),
        "|---|---|---|---|---|---|---|---|---|" + ("---|---|" if any(r.alone for r in found) else ""),
    ]
    lines += [
        f"| {r.net} | {r.how} | {r.macs:.2f} | {r.size:.2f} | {r.drop:.2f} | {r.interval} | {r.times[0]:.2f} | "
        f"{r.times[1]:.2f} | {r.seconds:.0f} |" + (f" {r.alone[0]:.2f} | {r.alone[1]:.2f} |" if r.alone else "")
        for r in found
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--net", nargs="+", default=list(FACTORIES), choices=FACTORIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--bits", action="store_true", help="eight bits and half precision instead of forms alone")
    parser.add_argument("--results", type=Path)
    given = parser.parse_args()
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as out:
        for net in given.net:
            for seed in given.seeds:
                found += (bits if given.bits else rows)(net, seed, given.folder, Path(out))
                if given.results:
                    given.results.write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
