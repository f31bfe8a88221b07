"""What folding published architectures is worth in time, beside their own re-parameterization.

    python benchmarks/fold.py > benchmarks/results/fold.md
    python benchmarks/fold.py --rounds 5 --narrow
    python benchmarks/fold.py --only ACNet --only DBB

Each network is built from its paper's description (``tests/fold_architectures.py``) with random weights, exported with
its norms in inference, and folded. The file as exported, the folded one and the export of what the paper's own formulas
make of the model run in turn in one process, on one thread with spinning off, on one sample; times are ratios to the
file as exported. ONNX Runtime's own optimizer is on: it folds norms into convolutions, and no branches.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fold_architectures import ARCHITECTURES, reparameterized

from spdexport.folding import fold
from spdexport.latency import cpu_name
from spdexport.ort.installed import versions
from spdexport.ort.providers import CPU, Purpose
from spdexport.ort.sessions import SessionSettings, open_session
from spdexport.ort.timing import Spread, interleaved

if TYPE_CHECKING:
    from torch import nn


def export(module: nn.Module, x: torch.Tensor, path: Path) -> Path:
    """Write a module's ONNX file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x,))
        torch.onnx.export(program, dynamo=True, verbose=False).save(path)
    return path


def row(name: str, folder: Path, *, published: bool, rounds: int) -> str:
    """Fold one architecture, time its files, and give its line of the table."""
    architecture = ARCHITECTURES[name]
    module, x = architecture.make(published=published)
    x = x[:1]
    files = [export(module, x, folder / "in.onnx"), folder / "folded.onnx"]
    result = fold(files[0], files[1])
    theirs = reparameterized(module)
    if theirs is not None:
        files.append(export(theirs, x, folder / "theirs.onnx"))
    settings = SessionSettings(provider=CPU, optimized=True, purpose=Purpose.DEPLOYMENT, threads=1, spinning=False)
    feed = {onnx.load(files[0], load_external_data=False).graph.input[0].name: x.numpy()}
    runs = [open_session(file, settings).runner(feed) for file in files]
    times = [Spread.of(found).median for found in interleaved(runs, rounds=rounds, seconds=20.0)]
    layers = [sum(node.op_type == "Conv" for node in onnx.load(file).graph.node) for file in files[:2]]
    ratios = [f"{time / times[0]:.2f}" for time in times[1:]] + ["" if theirs is None else None]
    told = " | ".join(ratio for ratio in ratios if ratio is not None)
    return (
        f"| {name} | {x.shape[2]} | {layers[0]} -> {layers[1]} | {result.verdict} | {times[0] * 1000:.1f} ms | {told} |"
    )


def main() -> None:
    """Measure and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--narrow", action="store_true", help="small widths, to try the script")
    parser.add_argument("--only", action="append", choices=list(ARCHITECTURES), help="a network; all without it")
    asked = parser.parse_args()
    command = " ".join(["python benchmarks/fold.py", *sys.argv[1:]])
    print("# Folding published architectures\n")
    print(
        f"`{command}`, {date.today().isoformat()}, {cpu_name()}, one thread, ONNX Runtime "
        f"{versions()['onnxruntime']}, torch {torch.__version__}. Times are ratios to the file as exported, whose "
        "own is given; the last column is what the paper's formulas make of it, where they cover all blocks.\n"
    )
    print("| network | input | convolutions | verdict | as exported | folded | re-parameterized |")
    print("|---|---:|---:|---|---:|---:|---:|", flush=True)
    # Each line when it is known: the large networks take minutes.
    for name in asked.only or ARCHITECTURES:
        with tempfile.TemporaryDirectory() as folder:
            print(row(name, Path(folder), published=not asked.narrow, rounds=asked.rounds), flush=True)


if __name__ == "__main__":
    main()
