"""Time, memory and size of atlases: of the digits run, and of a network of the size of ResNet-18 on 256 images.

python benchmarks/atlas.py > benchmarks/results/atlas.md
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification

import spdexport
from spdexport.ort.installed import versions
from spdexport.report.numbers import size

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

EXAMPLE = Path(__file__).parents[1] / "examples/01_digits"
SAMPLES, RANK = 256, 64
ROWS = {
    "digits run, 16 x 16": {"image": 16},
    "digits run, 16 x 16, without effects": {"image": 16, "effect_samples": 0},
    "ResNet-18, 64 x 64, without effects": {"image": 64, "effect_samples": 0},
    "ResNet-18, 64 x 64, effects on 16 images": {"image": 64, "effect_samples": 16},
    "ResNet-18, 224 x 224, without effects": {"image": 224, "effect_samples": 0},
}
"""What is measured: the side of the images, and options of ``atlas``."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="Rows with this in their name.")
    only = parser.parse_args().only
    installed = versions()
    print("# Atlases: time, memory, size\n")
    print(
        f"`python benchmarks/atlas.py` on {date.today().isoformat()}, {os.cpu_count()} cores, with "
        + ", ".join(f"{name} {installed[name]}" for name in ("python", "numpy", "torch", "onnxruntime"))
        + f".\n\n{SAMPLES} images; of the ResNet, whose weights are random, the first {RANK} singular components "
        "of each layer, and images of smooth noise. Memory: the most of the process, all libraries in it.\n"
    )
    print("| what | layers | components | seconds | of the processor | memory | page |\n|---|---|---|---|---|---|---|")
    for name, options in ROWS.items():
        if only in name:
            ours, theirs = get_context("spawn").Pipe()
            process = get_context("spawn").Process(target=measure, args=(theirs, options))
            process.start()
            print(f"| {name} | {ours.recv()} |", flush=True)
            process.join()


def measure(answer: Connection, options: dict[str, Any]) -> None:
    """Make one atlas in a process of its own, and send what it took."""
    side = options.pop("image")
    source, more = (EXAMPLE / "run", {"factory": f"{EXAMPLE / 'digits_cnn.py'}:DigitsCNN"}) if side == 16 else resnet()
    with tempfile.TemporaryDirectory() as folder:
        page, data = Path(folder) / "atlas.html", Path(folder) / "x.npz"
        np.savez(data, **{"x" if side == 16 else "pixel_values": images(side)})
        start = time.perf_counter()
        found = spdexport.atlas(source, page, data=data, **options, **more)  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    peak, busy = used.ru_maxrss * 1024, used.ru_utime + used.ru_stime
    number = sum(layer.number for layer in found.layers)
    answer.send(f"{len(found.layers)} | {number} | {seconds:.0f} | {busy:.0f} | {size(peak)} | {size(found.size)}")


def resnet() -> tuple[torch.nn.Module, dict[str, Any]]:
    """A network of the size of ResNet-18 with random weights, and what makes components of it."""
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=64, depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", num_labels=100
    )
    return ResNetForImageClassification(config).eval(), {"form": "factorized", "rank": str(RANK)}


def images(side: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The digits for a side of 16; else noise that is smooth as photographs are."""
    if side == 16:
        plain = torch.tensor(load_digits().images[:SAMPLES], dtype=torch.float32)[:, None] / 16
        return functional.interpolate(plain, size=(16, 16), mode="bilinear", align_corners=False).numpy()
    random = torch.Generator().manual_seed(0)
    layers = [torch.randn(SAMPLES, 3, n, n, generator=random) for n in (4, 8, 16, 32)]
    made = [functional.interpolate(x, size=(side, side), mode="bilinear", align_corners=False) for x in layers]
    return sum(x / (i + 1) for i, x in enumerate(made)).numpy()  # type: ignore[union-attr]


if __name__ == "__main__":
    main()
