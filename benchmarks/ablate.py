"""Time of ablating every component of the digits run on 256 images, beside running the file as often on them.

python benchmarks/ablate.py > benchmarks/results/ablate.md
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional

import spdexport
from spdexport.ort.installed import versions
from spdexport.ort.sessions import SessionSettings, open_session

EXAMPLE = Path(__file__).parents[1] / "examples/01_digits"
SAMPLES = 256


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    images = torch.tensor(load_digits().images[:SAMPLES], dtype=torch.float32)[:, None] / 16
    images = functional.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False).numpy()
    with tempfile.TemporaryDirectory() as folder:
        file, data = Path(folder) / "m.onnx", Path(folder) / "x.npz"
        np.savez(data, x=images)
        spdexport.convert(
            EXAMPLE / "run",
            file,
            factory=f"{EXAMPLE / 'digits_cnn.py'}:DigitsCNN",
            input_shape="2x1x16x16",
            runtime_masks=["all"],
            verify=False,
        )
        start = time.perf_counter()
        found = spdexport.ablate(file, data=data)
        ablating = time.perf_counter() - start
        session = open_session(file, SessionSettings(optimized=True))
        run = session.runner({session.inputs[0].name: images})
        run()
        start = time.perf_counter()
        for _ in found.found:
            run()
        plain = time.perf_counter() - start
    installed = versions()
    print("# Ablating every component of the digits run\n")
    print(
        f"`python benchmarks/ablate.py` on {date.today().isoformat()}, {os.cpu_count()} cores, with "
        + ", ".join(f"{name} {installed[name]}" for name in ("python", "numpy", "onnx", "onnxruntime"))
        + ".\n"
    )
    print(f"{len(found.found)} components, each removed, on {found.samples} images.\n")
    print("| what | seconds |\n|---|---|")
    print(f"| ablating, with loading and the measures of every effect | {ablating:.1f} |")
    print(f"| running the file as often on these images, without masks | {plain:.1f} |")
    print(f"\nWanted: 30 s at most. Ablating takes {ablating / plain:.1f} times as long as the plain runs.")


if __name__ == "__main__":
    main()
