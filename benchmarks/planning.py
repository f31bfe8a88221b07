"""Time of deciding the forms of ResNet-50's layers: by multiply-accumulates, and by measured latency, cold and cached.

    python benchmarks/planning.py > benchmarks/results/planning.md

The exact SVD of every layer with a quarter of its components live; the model is read from an ONNX file, so that nothing
is traced or exported.
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
from safetensors.numpy import save_file
from transformers import ResNetConfig, ResNetForImageClassification

import spdexport
from spdexport.latency import CACHE_VARIABLE, cpu_name
from spdexport.ort.installed import versions


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    module = ResNetForImageClassification(ResNetConfig()).eval()
    module.config.return_dict = False
    rows: list[tuple[str, float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        source, masks = Path(folder) / "m.onnx", Path(folder) / "masks.safetensors"
        spdexport.convert(module, source, inputs=torch.randn(2, 3, 224, 224), form="dense", verify=False)
        layers = [x for x in spdexport.inspect(source).plan.layers if x.components is not None]
        save_file({x.name: (np.arange(x.components) < x.components / 4).astype(np.float32) for x in layers}, masks)
        os.environ[CACHE_VARIABLE] = str(Path(folder) / "cache")
        for name, options in (
            ("the source's own V and U", {"form": "factorized"}),
            ("auto, by MACs", {"form": "auto"}),
            ("auto, by latency, cold", {"form": "auto", "optimize_for": "latency"}),
            ("auto, by latency, from the cache", {"form": "auto", "optimize_for": "latency"}),
        ):
            seconds, plan = _planned(source, masks, **options)
            forms = [x.form for x in plan.layers if x.components is not None]
            rows.append((name, seconds, ", ".join(f"{forms.count(f)} {f}" for f in sorted(set(forms)))))
    found = versions()
    print("# Planning ResNet-50\n")
    print(
        f"`python benchmarks/planning.py` on {date.today().isoformat()}, {cpu_name()}, {os.cpu_count()} cores, with "
        + ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "onnx", "onnxruntime"))
        + f". {len(layers)} layers, a quarter of the components live.\n"
    )
    print("| plan | seconds, with matching components | forms |\n|---|---|---|")
    for name, seconds, told in rows:
        print(f"| {name} | {seconds:.1f} | {told} |")
    print("\nWanted: 5 s by MACs, three minutes by latency cold, 5 s from the cache.")


def _planned(source: Path, masks: Path, **options: str) -> tuple[float, spdexport.Plan]:
    """The seconds between the first word of matching components and the first of what follows the plan."""
    marks: list[tuple[str, float]] = []
    result = spdexport.convert(
        source,
        source.with_name("out.onnx"),
        masks=masks,
        verify=False,
        progress=lambda step: marks.append((step, time.perf_counter())),
        **options,
    )
    start = next(at for step, at in marks if step == "matching components")
    end = next(at for step, at in marks if step == "placing factors")
    return end - start, result.plan


if __name__ == "__main__":
    main()
