"""Whether the cost model ranks the forms of a layer as ONNX Runtime's times do.

    python benchmarks/forms.py > benchmarks/results/forms.md
    python benchmarks/forms.py --rounds 5 --shapes 2

Each form of a layer is a model of its own with random weights, padded to lanes as files are. All forms of one layer run
in turn in one process, on one thread with spinning off; times and costs are ratios to the dense form of that layer.
Times include what it takes to bring the layer's input and output into the layout of the kernels, which is in every form
alike and in no cost: small ratios are larger than their costs for it.
"""

from __future__ import annotations

import argparse
from datetime import date
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.conv import ConvSite, ConvSpec
from spdexport.cost import FormShape, MacsCost, dense_shape, family_shape
from spdexport.forms import FAMILIES
from spdexport.latency import cpu_name, form_model
from spdexport.ort.installed import versions
from spdexport.ort.providers import CPU, Purpose
from spdexport.ort.sessions import SessionSettings, open_session
from spdexport.ort.timing import Spread, interleaved
from spdexport.rewrite.onnx_lanes import pad_lanes

if TYPE_CHECKING:
    from collections.abc import Sequence

LANE = 16
CLEAR = 1.15
"""Times that differ by less than this factor are not told apart, as they differ by as much from run to run."""

LAYERS = (
    (3, 64, 7, 2, 112),
    (1, 32, 3, 1, 28),
    (3, 32, 3, 2, 112),
    (64, 64, 3, 1, 56),
    (128, 128, 3, 1, 28),
    (256, 256, 3, 1, 14),
    (512, 512, 3, 1, 7),
    (64, 128, 3, 2, 56),
    (32, 32, 3, 1, 32),
    (64, 64, 5, 1, 28),
    (48, 96, 3, 1, 28),
    (16, 16, 3, 1, 28),
)
"""Input and output channels, kernel, stride, and the size of the input."""


def a_site(into: int, out: int, kernel: int, stride: int, size: int) -> ConvSite:
    """A layer of this geometry."""
    spec = ConvSpec(
        in_channels=into,
        out_channels=out,
        kernel=(kernel,) * 2,
        stride=(stride,) * 2,
        padding=((kernel // 2,) * 2,) * 2,
        dilation=(1, 1),
    )
    given = (size - 1) // stride + 1
    return ConvSite(
        name="layer",
        spec=spec,
        weight=np.zeros(spec.weight_shape, np.float32),
        bias=np.zeros(out, np.float32),
        node="layer",
        positions=given * given,
        input_size=(size, size),
    )


def forms(site: ConvSite) -> dict[str, FormShape]:
    """Dense, and each kind of form at ranks of whole lanes."""
    found = {"dense": dense_shape(site)}
    for family in FAMILIES.values():
        if family.without(site.spec) is not None:
            continue
        largest = family.largest(site.spec)
        for share in (0.0, 0.25, 0.5):
            ranks = tuple(
                min(max(round(size * share / LANE), 1) * LANE, size) for size in largest[: family.numbers[-1]]
            )
            found[f"{family.kind} {'x'.join(map(str, ranks))}"] = family_shape(site, family.kind, ranks)
    return found


def times(site: ConvSite, shapes: Sequence[FormShape], rounds: int) -> list[float]:
    """The median seconds of each form."""
    settings = SessionSettings(provider=CPU, optimized=True, purpose=Purpose.DEPLOYMENT, threads=1, spinning=False)
    runs = []
    for shape in shapes:
        model, x = form_model(site, shape)
        model, _ = pad_lanes(model, LANE, bool)
        runs.append(open_session(ir.to_proto(model).SerializeToString(), settings).runner({"x": x}))
    return [Spread.of(found).median for found in interleaved(runs, rounds=rounds, seconds=2.0)]


def main() -> None:
    """Measure and print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--shapes", type=int, default=len(LAYERS), help="how many of the layers")
    asked = parser.parse_args()
    cost, rows, pairs, right = MacsCost(lane=LANE), [], 0, 0
    for layer in LAYERS[: asked.shapes]:
        site = a_site(*layer)
        shapes = forms(site)
        seconds = times(site, list(shapes.values()), asked.rounds)
        costs = [cost(site, shape) for shape in shapes.values()]
        for (t1, c1), (t2, c2) in combinations(zip(seconds, costs, strict=True), 2):
            if max(t1, t2) >= CLEAR * min(t1, t2):
                pairs, right = pairs + 1, right + ((t1 < t2) == (c1 < c2))
        for name, t, c in zip(shapes, seconds, costs, strict=True):
            where = f"{site.spec.describe()} at {layer[-1]}" if name == "dense" else ""
            rows.append(f"| {where} | {name} | {t / seconds[0]:.2f} | {c / costs[0]:.2f} |")
    print("# The cost of forms, and their time\n")
    print(
        f"`python benchmarks/forms.py`, {date.today().isoformat()}, {cpu_name()}, one thread, ONNX Runtime "
        f"{versions()['onnxruntime']}. Ratios to the dense form of the same layer; {cost.name}.\n"
    )
    print(
        f"Of {pairs} pairs of forms of one layer whose times differ by a factor of {CLEAR} or more, the model puts "
        f"{right} ({right / max(pairs, 1):.0%}) in the right order.\n"
    )
    print("| layer | form | time | cost |\n|---|---|---:|---:|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
