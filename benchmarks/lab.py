"""The size of a lab of the digits run, and the time of a run in the browser beside ONNX Runtime in Python.

python benchmarks/lab.py PACKAGE > benchmarks/results/lab.md, with PACKAGE the npm package onnxruntime-web.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import spdexport
from spdexport.files.onnx_reading import load_onnx
from spdexport.laboratory.copy import copied
from spdexport.ort.installed import versions
from spdexport.ort.sessions import SessionSettings, open_session
from spdexport.report.numbers import size

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples/01_digits"
ROUNDS, RUNS = 9, 30
FILES = {
    "run-time masks, deltas": {"runtime_masks": ["all"], "delta": "keep", "activation_outputs": True},
    "run-time masks, exact gates": {
        "runtime_masks": ["all"], "gates": "exact", "gate_outputs": True, "activation_outputs": True,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", type=Path, help="onnxruntime-web, unpacked or as .tgz")
    package = parser.parse_args().package
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/laboratory")]
    rows, result = [], None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "x.npz", x=load_file(ROOT / "tests/data/spd_digits_golden.safetensors")["input"][:32])
        for title, options in FILES.items():
            file = folder / "m.onnx"
            spdexport.convert(
                EXAMPLE / "run",
                file,
                factory=f"{EXAMPLE / 'digits_cnn.py'}:DigitsCNN",
                inputs=folder / "x.npz",
                verify=False,
                **options,
            )
            result = spdexport.lab(file, folder / "lab", data=folder / "x.npz", runtime=package)
            rows.append((title, *timed(file, folder)))
    assert result is not None, "there are files"
    told(result, rows)


def timed(file: Path, folder: Path) -> tuple[float, float, float]:
    """Seconds from opening the page to the first answer; milliseconds of a run in the page and in Python, in turn."""
    from browser import Browser
    from lab_pages import LabPage, Served

    copy = copied(load_onnx(file), file)
    session = open_session(folder / "lab/model.onnx", SessionSettings(optimized=True, threads=1))
    with np.load(folder / "x.npz") as archive:
        run = session.runner({"x": archive["x"][:1], **copy.neutral})
    pages, own = [], []
    with Served(folder / "lab") as server, Browser() as browser:
        start = time.perf_counter()
        page = LabPage(browser, server.address).open()
        loading = time.perf_counter() - start
        for _ in range(ROUNDS):
            page.run("document.getElementById('timed').textContent = ''")
            page.run("[...document.querySelectorAll('button')].find(x => x.textContent.startsWith('time')).click()")
            while not (said := page.run("document.getElementById('timed').textContent")):
                time.sleep(0.01)
            pages.append(float(said.removeprefix("median ").removesuffix(" ms")))
            own.append(median_of(run))
    return loading, statistics.median(pages), statistics.median(own)


def median_of(run) -> float:
    """Milliseconds of a run."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def told(result, rows) -> None:
    installed = versions()
    print("# A lab of the digits run\n")
    print(
        f"`python benchmarks/lab.py` on {date.today().isoformat()}, {os.cpu_count()} cores, with onnxruntime-web "
        f"{result.runtime}, "
        + ", ".join(f"{name} {installed[name]}" for name in ("python", "numpy", "onnx", "onnxruntime"))
        + ", and Chromium without a window.\n"
    )
    print(f"The folder has {size(result.size)}, with {result.samples} samples and exact gates:\n")
    print("| what | bytes |\n|---|---|")
    parts = {"onnxruntime-web": "runtime/", "the model": "model.onnx", "the samples": "samples.bin"}
    left = dict(result.sizes)
    for what, start in parts.items():
        names = [name for name in left if name.startswith(start)]
        print(f"| {what} | {size(sum(left.pop(name) for name in names))} |")
    print(f"| the page, its scripts and its description | {size(sum(left.values()))} |\n")
    how = f"medians of {ROUNDS} rounds of {RUNS} runs, the two in turn on one thread"
    print(f"One run of one sample with all outputs, {how}:\n")
    print("| file | to the first answer, s | in the page, ms | in Python, ms | ratio |\n|---|---|---|---|---|")
    for title, loading, page, own in rows:
        print(f"| {title} | {loading:.1f} | {page:.1f} | {own:.2f} | {page / own:.1f} |")
    print(
        "\nThe page's clock has steps of 0.1 ms. Times are of a machine that was not idle; the ratio is of one session."
    )


if __name__ == "__main__":
    main()
