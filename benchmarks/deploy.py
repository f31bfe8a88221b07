"""Latency of pruned models in each form, relative to the dense model, in interleaved runs.

    python benchmarks/deploy.py > benchmarks/results/deploy.md
    python benchmarks/deploy.py --models resnet50 --live 10 25 --batch 8 --rounds 5

ResNet-50 and ConvNeXt-T of transformers' configurations, random weights, the exact SVD of every layer with the first
components live: a share of the full rank, or a share that differs by layer (``mixed``). Each model is exported once, by
torch, and its file is converted in each form; weights of the forms are those of the same masks. Depthwise convolutions
have no components. Files run in turn, with spinning threads off: spinning threads of one session would take the cores
from the others.

The roofline of a share is the time of the model with one component in every layer (its activations still move through
memory), plus the share of MACs that the factorized form has of the dense one's times what the dense model takes above.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import ConvNextConfig, ConvNextForImageClassification, ResNetConfig, ResNetForImageClassification

import spdexport
from spdexport.latency import cpu_name
from spdexport.ort.installed import versions
from spdexport.ort.providers import PROVIDERS, Purpose
from spdexport.ort.sessions import SessionSettings, open_session, usable_provider
from spdexport.ort.timing import Spread, interleaved, ratio_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MODELS = {
    "resnet50": lambda: ResNetForImageClassification(ResNetConfig()),
    "convnext-t": lambda: ConvNextForImageClassification(ConvNextConfig()),
}
SHARES = ("2", "5", "10", "25", "50", "100", "mixed")
MIXED = (2, 5, 10, 25, 50, 100)
FORMS = ("factorized", "dense", "auto")


class Logits(torch.nn.Module):
    """A model of transformers with its logits as the only output."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of ``x``, shape (batch, 3, 224, 224)."""
        return self.model(x).logits


@dataclass(frozen=True)
class Row:
    """What was measured of one share at one batch."""

    share: str
    batch: int
    ratios: Mapping[str, float]
    roofline: float
    macs: float
    chosen: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--live", nargs="+", choices=SHARES, default=list(SHARES), metavar="SHARE")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each share and batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--provider", choices=PROVIDERS, default="cpu")
    parser.add_argument("--optimize-for", choices=("macs", "latency"), default="macs")
    options = parser.parse_args()
    settings = SessionSettings(
        provider=usable_provider(options.provider),
        optimized=True,
        purpose=Purpose.DEPLOYMENT,
        threads=options.threads,
        spinning=False,
    )
    found = versions()
    print("# Deploying pruned models: latency relative to dense\n")
    print(
        f"`python benchmarks/{' '.join([Path(__file__).name, *sys.argv[1:]])}` on {date.today().isoformat()}, "
        f"{cpu_name()}, {os.cpu_count()} cores, {options.threads} threads, with "
        + ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "onnx", "onnxruntime"))
        + ".\n\nFiles run in turn, spinning threads off; medians of paired ratios.\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            _model(name, Path(folder), options, settings)


def _model(name: str, folder: Path, options: argparse.Namespace, settings: SessionSettings) -> None:
    torch.manual_seed(0)
    source = folder / f"{name}.onnx"
    module = Logits(MODELS[name]()).eval()
    spdexport.convert(module, source, inputs=torch.randn(2, 3, 224, 224), form="dense", verify=False)
    layers = [x for x in spdexport.inspect(source).plan.layers if x.components is not None]
    one = _converted(source, folder / "one.onnx", {x.name: 1 for x in layers}, layers, form="factorized")[0]
    rows = []
    for share in options.live:
        kept = {}
        for number, layer in enumerate(layers):
            percent = MIXED[number % len(MIXED)] if share == "mixed" else int(share)
            kept[layer.name] = max(round(layer.components * percent / 100), 1)
        files, plans = {}, {}
        for form in FORMS:
            start = time.perf_counter()
            more = {"optimize_for": options.optimize_for} if form == "auto" else {}
            files[form], plans[form] = _converted(source, folder / f"{form}.onnx", kept, layers, form=form, **more)
            print(f"{name} {share}% {form}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
        for batch in options.batch:
            rows.append(_row(share, batch, {"source": source, "one": one, **files}, plans, options, settings))
            print(f"{name} {rows[-1]}", file=sys.stderr)
    print(f"## {name}\n\n{len(layers)} layers with components\n")
    columns = ("live", "batch", *FORMS, "auto / better of both", "roofline", "auto / roofline", "MACs", "auto's forms")
    print(f"| {' | '.join(columns)} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        best = min(row.ratios["factorized"], row.ratios["dense"])
        auto = row.ratios["auto"]
        print(
            f"| {row.share}{'' if row.share == 'mixed' else ' %'} | {row.batch} | {row.ratios['factorized']:.3f} | "
            f"{row.ratios['dense']:.3f} | {auto:.3f} | {auto / best:.3f} | {row.roofline:.3f} | "
            f"{auto / row.roofline:.3f} | {row.macs:.3f} | {row.chosen} |"
        )
    print()


def _converted(
    source: Path, path: Path, kept: Mapping[str, int], layers: Sequence[spdexport.LayerPlan], **options: str
) -> tuple[Path, spdexport.Plan]:
    """The file with the first so many components of each layer live, and its plan."""
    masks = path.with_suffix(".safetensors")
    save_file({x.name: (np.arange(x.components) < kept[x.name]).astype(np.float32) for x in layers}, masks)
    result = spdexport.convert(source, path, masks=masks, verify=False, **options)
    return path, result.plan


def _row(
    share: str,
    batch: int,
    files: Mapping[str, Path],
    plans: Mapping[str, spdexport.Plan],
    options: argparse.Namespace,
    settings: SessionSettings,
) -> Row:
    x = np.random.default_rng(0).standard_normal((batch, 3, 224, 224)).astype(np.float32)
    sessions = [open_session(path, settings) for path in files.values()]
    (port,) = sessions[0].inputs
    times = interleaved([s.runner({port.name: x}) for s in sessions], rounds=options.rounds, seconds=options.seconds)
    by_name = dict(zip(files, times, strict=True))
    ratios = {form: ratio_of(by_name[form], by_name["source"], seed=0).median for form in FORMS}
    plan = plans["factorized"]
    macs = plan.macs_after / plan.macs_before
    dense, least = (Spread.of(by_name[key]).median for key in ("source", "one"))
    forms = [layer.form for layer in plans["auto"].layers if layer.components is not None]
    chosen = ", ".join(f"{forms.count(form)} {form}" for form in sorted(set(forms)))
    return Row(
        share=share,
        batch=batch,
        ratios=ratios,
        roofline=(least + min(macs, 1.0) * (dense - least)) / dense,
        macs=macs,
        chosen=chosen,
    )


if __name__ == "__main__":
    main()
