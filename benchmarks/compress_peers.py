"""Compress a trained network to a share of its multiply-accumulates by what others do, beside `spdexport compress`.

    python benchmarks/compress_nets.py FOLDER --net resnet
    python benchmarks/compress_peers.py make FOLDER OUT --how ours balf [--macs 0.5 0.4]
    python benchmarks/compress_peers.py make FOLDER OUT --how spatial weight   # in an environment with aimet-torch
    python benchmarks/compress_peers.py page FOLDER OUT [--results F.md]

All begin with the same network and the same held-out images. `make` writes ONNX files, all by the same exporter; `page`
judges them on the 10,000 test images and takes times in pairs with the dense file, at batch 1 and 64.

- `balf`: BALF (arXiv 2509.25136), from its paper: each layer's weight is projected on the principal components of its
  outputs, as the second moments of its inputs on 512 images tell them; ranks by one Lagrangian multiplier over the
  relative errors. Nothing is fitted after.
- `spatial`, `weight`: AIMET's ModelCompressor with its greedy selection, ten ratios of each layer judged by the
  accuracy on 1,000 images.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import re
import sys
import time
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

import compress_nets as nets

import spdexport

FACTORIES = {"resnet": nets.FashionResNet, "depthwise": nets.FashionDepthwise}
LANE = 16
CALIBRATION, EVALUATION = 512, 1_000
HOW = {
    "ours": "`compress --macs {share}`",
    "balf": "BALF",
    "spatial": "AIMET, spatial SVD",
    "weight": "AIMET, weight SVD",
}
GIVEN = "2x1x28x28"


def folded(net: nn.Module) -> nn.Module:
    """Return a copy with every batch norm folded into the convolution that is registered right before it."""
    net = copy.deepcopy(net).eval()
    for parent in list(net.modules()):
        names = [name for name, child in parent.named_children() if isinstance(child, nn.Conv2d | nn.BatchNorm2d)]
        for first, second in pairwise(names):
            conv, norm = getattr(parent, first), getattr(parent, second)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, first, fuse_conv_bn_eval(conv, norm))
                setattr(parent, second, nn.Identity())
    return net


def accuracy(net: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of samples that a module gets right."""
    return float((nets.answers(net, images).argmax(1) == labels).mean())


def second_moments(net: nn.Module, images: np.ndarray) -> dict[str, tuple[torch.Tensor, int]]:
    """Return of each plain convolution E x x' of its patches, (patch, patch) in float64, and its output locations."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str, layer: nn.Conv2d):
        def see(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            patches = functional.unfold(given[0], layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            rows = patches.transpose(1, 2).reshape(-1, patches.shape[1]).double()
            sums[name] = sums.get(name, 0) + rows.T @ rows
            counts[name] = counts.get(name, 0) + len(rows)

        return layer.register_forward_pre_hook(see)

    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.groups == 1}
    handles = [watch(name, layer) for name, layer in layers.items()]
    nets.answers(net, images, batch=64)
    for handle in handles:
        handle.remove()
    return {name: (total / counts[name], counts[name] // len(images)) for name, total in sums.items()}


def balf(net: nn.Module, images: np.ndarray, share: float) -> nn.Module:
    """Return the network with its convolutions in two, at a share of the multiply-accumulates of all layers.

    With G = E x x' and W a layer's weight (out, patch), W G^(1/2) = P diag(s) R'. Of all W of rank r, P_r P_r' W comes
    nearest to the layer's output, with the squared error sum(s_k^2, k > r); that is what U = P_r, V = P_r' W give.
    """
    moments = second_moments(net, images)
    choices, parts, whole = {}, {}, 0.0
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Linear):
            whole += layer.weight.numel()
        if name not in moments:
            continue
        (G, places), W = moments[name], layer.weight.detach().flatten(1).double()
        out, patch = W.shape
        values, vectors = torch.linalg.eigh(G)
        P, s, _ = torch.linalg.svd(W @ vectors * values.clamp(min=0).sqrt(), full_matrices=False)
        tail = 1 - (s**2).cumsum(0) / (s**2).sum()
        dense = out * patch * places
        whole += dense
        ranks = [r for r in range(LANE, out + 1, LANE) if (patch + out) * r < out * patch]
        choices[name] = [(0.0, dense, 0), *((tail[r - 1].item(), (patch + out) * r * places, r) for r in ranks)]
        parts[name] = (P, W)
    fixed = whole - sum(options[0][1] for options in choices.values())

    def taken(price: float) -> dict[str, tuple[float, float, int]]:
        return {n: min(options, key=lambda o: o[0] + price * o[1] / whole) for n, options in choices.items()}

    low, high = 0.0, 1e6  # the least price at which the budget is kept
    for _ in range(60):
        middle = (low + high) / 2
        cost = fixed + sum(option[1] for option in taken(middle).values())
        low, high = (low, middle) if cost <= share * whole else (middle, high)
    net = copy.deepcopy(net)
    for name, (_, _, rank) in taken(high).items():
        if rank:
            P, W = parts[name]
            layer = net.get_submodule(name)
            first = nn.Conv2d(
                layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False
            )
            last = nn.Conv2d(rank, layer.out_channels, 1)
            with torch.no_grad():
                first.weight.copy_((P[:, :rank].T @ W).reshape(first.weight.shape))
                last.weight.copy_(P[:, :rank].reshape(last.weight.shape))
                last.bias.copy_(layer.bias)
            parent, _, own = name.rpartition(".")
            setattr(net.get_submodule(parent), own, nn.Sequential(first, last))
    return net.eval()


def aimet(net: nn.Module, images: np.ndarray, labels: np.ndarray, share: float, kind: str, scores: Path) -> nn.Module:
    """Return what AIMET makes of the network; the accuracies that it measured are kept for the next share."""
    _let_torchvision_load()
    from aimet_torch.common.defs import CompressionScheme, CostMetric, GreedySelectionParameters, RankSelectScheme
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import SpatialSvdParameters, WeightSvdParameters

    greedy = GreedySelectionParameters(
        target_comp_ratio=share, saved_eval_scores_dict=str(scores) if scores.exists() else None
    )
    if kind == "spatial":
        scheme = CompressionScheme.spatial_svd
        chosen = SpatialSvdParameters.AutoModeParams(greedy)
        parameters = SpatialSvdParameters(SpatialSvdParameters.Mode.auto, chosen, multiplicity=LANE)
    else:
        scheme = CompressionScheme.weight_svd
        chosen = WeightSvdParameters.AutoModeParams(RankSelectScheme.greedy, greedy)
        parameters = WeightSvdParameters(WeightSvdParameters.Mode.auto, chosen, multiplicity=LANE)

    def judged(model: nn.Module, iterations: int | None = None, use_cuda: bool = False) -> float:  # noqa: ARG001
        return accuracy(model, images, labels)

    small, stats = ModelCompressor.compress_model(net, judged, None, (1, 1, 28, 28), scheme, CostMetric.mac, parameters)
    print(stats, flush=True)
    kept = Path("data/greedy_selection_eval_scores_dict.pkl")
    if kept.exists():
        kept.replace(scores)
    return small.eval()


@cache
def _let_torchvision_load() -> torch.library.Library:
    """Declare the operators of torchvision, whose wheels bring them for CUDA alone; AIMET imports it and calls none."""
    found = find_spec("torchvision")
    text = (Path(found.origin).parent / "_meta_registrations.py").read_text(encoding="utf-8")
    library = torch.library.Library("torchvision", "DEF")
    for name in sorted(set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', text))):
        library.define(f"{name}(Tensor x) -> Tensor")
    return library


def make(given: argparse.Namespace) -> None:
    """Write the files, and beside each what is told of it."""
    net = FACTORIES[given.net]()
    net.load_state_dict(torch.load(given.folder / f"{given.net}-{given.seed}.pt", weights_only=True))
    net = net.eval()
    with np.load(given.folder / "held_out.npz") as held_out:
        images, labels = held_out["images"], held_out["labels"]
    given.out.mkdir(parents=True, exist_ok=True)
    dense = given.out / "dense.onnx"
    plain = spdexport.convert(net, dense, form="dense", input_shape=GIVEN, verify=False).plan.macs_before
    for how in given.how:
        for share in given.macs:
            begun = time.monotonic()
            out = given.out / f"{how}-{share}.onnx"
            if how == "ours":
                made = spdexport.compress(
                    net, out, data=given.folder / "held_out.npz", test=given.folder / "test.npz", macs=share,
                    optimize_for=given.optimize_for, seed=given.seed,
                )  # fmt: skip
                macs = made.plan.macs_after
            else:
                start = folded(net)
                assert np.allclose(nets.answers(start, images[:50]), nets.answers(net, images[:50]), atol=1e-3)
                if how == "balf":
                    small = balf(start, images[:CALIBRATION], share)
                else:
                    few = (images[:EVALUATION], labels[:EVALUATION])
                    small = aimet(start, *few, share, how, given.out / f"{how}.pkl")
                macs = spdexport.convert(small, out, form="dense", input_shape=GIVEN, verify=False).plan.macs_before
            told = {"how": how, "share": share, "macs": macs / plain, "seconds": time.monotonic() - begun}
            if how in ("spatial", "weight"):
                told["version"] = version("aimet-torch")
            out.with_suffix(".json").write_text(json.dumps(told), encoding="utf-8")
            print(told, flush=True)


def page(given: argparse.Namespace) -> None:
    """Judge the files, and write the page."""
    from compress import accuracy as right_of
    from compress import times

    with np.load(given.folder / "test.npz") as test:
        images, labels = test["images"], test["labels"]
    dense = given.out / "dense.onnx"
    right, size = right_of(dense, images, labels), dense.stat().st_size
    rows, peer = [], "aimet-torch was not run"
    for file in sorted(given.out.glob("*.json")):
        told, path = json.loads(file.read_text(encoding="utf-8")), file.with_suffix(".onnx")
        drop, (one, many) = 100 * (right - right_of(path, images, labels)), times(path, dense)
        if "version" in told:
            peer = f"aimet-torch {told['version']}"
        rows.append(
            f"| {HOW[told['how']].format(share=told['share'])} | {told['share']} | {told['macs']:.2f} | "
            f"{path.stat().st_size / size:.2f} | {drop:.2f} | {one:.2f} | {many:.2f} | {told['seconds']:.0f} |"
        )
        print(rows[-1], flush=True)
    told = ", ".join(f"{name} {value}" for name, value in spdexport_versions().items())
    today, machine = datetime.now(UTC), platform.processor() or platform.machine()
    lines = [
        "# Compressing beside what others do",
        "",
        f"`python benchmarks/compress_peers.py`, {today:%Y-%m-%d}, {machine}, 2 threads; {told}; {peer}.",
        "",
        f"The {given.net} of `benchmarks/compress_nets.py` (seed {given.seed}, {right:.2%} of the test images right),",
        "brought to a share of its multiply-accumulates. All have batch norm folded. Ranks of BALF are whole lanes of",
        "16, and AIMET is asked for such (its rounding gives 15 or 31 at times); those of `compress` are its own. All",
        "see the same held-out images, and train nothing after. The drop is on the 10,000 test images. MACs, size and",
        "times are relative to the dense file; times are medians of pairs in one process. AIMET measures accuracies",
        f"once, for the first share that it is asked for. {given.remark}".rstrip(),
        "",
        "| file | MACs asked | MACs | size | drop, points | time, batch 1 | batch 64 | search, s |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    text = "\n".join(lines) + "\n"
    if given.results:
        given.results.write_text(text, encoding="utf-8")
    print(text)


def spdexport_versions() -> dict[str, str]:
    """Return the versions of what took part."""
    from spdexport.ort.installed import versions

    return versions()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for function in (make, page):
        command = commands.add_parser(function.__name__, help=function.__doc__)
        command.set_defaults(run=function)
        command.add_argument("folder", type=Path)
        command.add_argument("out", type=Path)
        command.add_argument("--net", default="resnet", choices=FACTORIES)
        command.add_argument("--seed", type=int, default=0)
        if function is make:
            command.add_argument("--how", nargs="+", default=["ours", "balf"], choices=HOW)
            command.add_argument("--macs", nargs="+", type=float, default=[0.5, 0.4])
            command.add_argument("--optimize-for", default="macs", choices=["macs", "latency"])
        else:
            command.add_argument("--results", type=Path)
            command.add_argument("--remark", default="", help="a sentence about the machine, for the page")
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
