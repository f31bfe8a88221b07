"""Tables at the widths of a phone, of a log, and of screens: nothing is cut, and what went is told."""

import io
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results import NO_DEVICE, SPEC, check, conversion, edge, inspection, layer, verification
from rich.console import Console

from spdexport.ablation.ablate import Ablated, Ablations
from spdexport.ablation.effects import Effect
from spdexport.ablation.sets import ComponentsOf
from spdexport.atlases.result import Atlas, AtlasLayer, Component, Picture
from spdexport.compression.bounds import Interval
from spdexport.compression.budgets import Budget, LossKind
from spdexport.compression.result import Combination, Compression, LayerShare, Point, Searched
from spdexport.folding import Folding
from spdexport.importance.result import DerivedMasks, LayerMask
from spdexport.importance.statistics import Importances
from spdexport.laboratory.layers import LabLayer, Switch, Threshold
from spdexport.laboratory.result import Lab
from spdexport.measuring.bench import Bench, FileTiming
from spdexport.ort.timing import Spread
from spdexport.pipeline import Conversion
from spdexport.report.console import Column, FittingTable
from spdexport.report.terminal import show
from spdexport.rewrite.fold_result import FoldedChain

WIDTHS = (40, 80, 120, 200)

LAYERS = [
    layer("conv1", macs_before=527_000, macs_after=888_000, params_before=657_000, params_after=5_630),
    layer("encoder.stages.0.blocks.11.attention.output", geometry="1024>1024 3x3 s2 p1 g32", macs_before=115_605_504),
    layer("b", form="factorized+delta", delta="kept", live=1024, components=4096, delta_ratio=1.25e-7),
]
SPREAD = Spread(median=0.0123456, low=0.0121, high=0.0131, runs=1000)
FILE = FileTiming(
    name="a_rather_long_name_of_a_model.onnx", sha256="5e", size=527_000, time=SPREAD, peak_memory=888_000_000,
    base_memory=10, placement={"cpu": 3},
)  # fmt: skip


def effect(number):
    return Effect(kl=number, top_changed=0.123, change=number * 3, relative=number, largest=number * 1e5)


COMPONENT = Component(
    index=1023, mean_importance=1.25e-4, peak_importance=1.0, mean_activation=0.3, firing=0.0123, most=0.5,
    effect=effect(1.23e-7), outputs=((12, 0.75),), reads=Picture(png=b"", width=1, height=1), fires=None, tops=(),
)  # fmt: skip
SWITCH = Switch(input="mask/conv1", shape=(1, 1500))
INTERVAL = Interval(estimate=0.0051, low=-0.0012, high=0.0123, confidence=0.95)


def searched(**changes):
    """A search with every table that there is: choices, fewer bits beside forms, and layers."""
    found = Searched(
        budget=Budget(loss=LossKind.TOP1, limit=0.01), loss="top-1 drop", cost="MACs", sets="drawn", confidence=0.95,
        points=tuple(
            Point(cost=0.4567, macs=0.4789, size=0.5123, loss=0.0051, bound=0.0123, accepted=i == 0, chosen=i == 0)
            for i in range(2)
        ),
        layers=(LayerShare(name="conv1", form="tucker2", ranks=(128, 1024), error=0.1, loss_share=0.1234,
                           cost_share=0.5678, cost=0.4321),),
        test=None, timing=None, kept_dense=None, storage="int8",
        combinations=tuple(
            Combination(name=name, storage="int8", keeps_ends=True, interval=INTERVAL,
                        bound=0.0123, accepted=True, macs=0.4567, size=0.2512, timing=None, chosen=name == "int8")
            for name in ("int8", "forms and int8")
        ),
    )  # fmt: skip
    own = {field.name: getattr(RESULTS["convert"], field.name) for field in fields(Conversion)}
    return Compression(**own, search=replace(found, **changes))


RESULTS = {
    "convert": conversion(*LAYERS),
    "inspect": inspection(*LAYERS),
    "verify": verification(edge("weights", noise_ratio=8.38e6), edge("optimize", provider="cpu"), NO_DEVICE),
    "bench": Bench(files=(FILE, FILE), ratio=None, provider="cpu", threads=1, inputs=("x",), notes=(), seed=0,
                   versions={}),
    "masks": DerivedMasks(
        layers=(LayerMask(name="conv1", mask=np.ones(1500), importances=Importances(
            peak=np.full(1500, 1.25e-4), mean=np.full(1500, 3.07e-5), frequency=np.full(1500, 0.123))),),
        samples=3, rule=None, told="x", notes=(), outputs=(), seed=0, versions={}, hashes={},
    ),
    "ablate": Ablations(
        file="m.onnx", found=(Ablated(components=ComponentsOf(name="conv1:1023", members={}), effect=effect(1.23e-7)),),
        kept=False, samples=9, output="y", baseline="ones", components={}, provider="cpu", active=(), notes=(),
        versions={}, hashes={},
    ),
}  # fmt: skip


RESULTS |= {
    "compress": searched(storage=None, combinations=()),
    "compress --quantize": searched(),
    "atlas": Atlas(
        name="run", samples=256, threshold=0.1, output="y", baseline="gates", effect_samples=64, outputs=(), size=0,
        thumbnails={}, image=None, notes=(), hashes={}, seed=0, versions={},
        layers=(AtlasLayer(name="conv1", components=(COMPONENT,), number=1500, alive=1234, reads="patches", places=(),
                           field=None, has_importances=True),),
    ),
    "lab": Lab(
        folder=Path("lab"), file="m.onnx", samples=32, beside="all components on", runtime="1.30.0", sizes={"m": 1500},
        notes=(), hashes={}, versions={},
        layers=(LabLayer(name="conv1", components=1500, mask=SWITCH, delta=SWITCH, routing=SWITCH,
                         threshold=Threshold(input="t", value=1.25e-4), importance="i", activation="a",
                         delta_use="kept"),),
    ),
    "fold": Folding(
        outputs=(), declined=(), verification=None, hashes={}, notes=(), versions={}, seed=0,
        folded=(FoldedChain(name="conv1", nodes=("a", "b"), spec=SPEC, macs_before=1200, macs_after=615),),
    ),
}  # fmt: skip


def printed(what, width):
    file = io.StringIO()
    if isinstance(what, FittingTable):
        Console(file=file, width=width).print(what, highlight=False)
    else:
        show(what, console=Console(file=file, width=width))
    return file.getvalue()


def cells(line):
    return re.split(r" {2,}", line.strip())


def is_part(some, whole):
    """Whether cells are those of another row in its order; texts may go on in the next line, and numbers may not."""
    rest = iter(whole)
    is_text = re.compile(r".*[a-z>] ?\w* ").match
    return all(any(one == other or (is_text(other) and other.startswith(one)) for other in rest) for one in some)


def numbers(text):
    return set(re.findall(r"(?<![\w.])-?\d[\d.]*(?:e[-+]?\d+)?(?: [kMG](?!\w)|%)?", text))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["compress", "compress --quantize", "atlas", "lab", "fold"])
def test_no_number_of_several_tables_is_cut(name, width):
    whole, text = (printed(RESULTS[name], w) for w in (400, width))
    lines = text.splitlines()
    # A command stays in one line, so that it can be copied.
    assert max(len(line) for line in lines if not line.startswith("  python -m")) <= width
    text = re.sub(r"left out for want of width:[^;]*;\s*\d+\s+columns\s+show\s+all", "(left out)", text)
    assert numbers(text) <= numbers(whole)
    assert any(line.strip().startswith("conv1") for line in lines)
    if width >= 80 and not name.startswith("compress"):  # a conversion's table is beside those of its search
        assert numbers(text) == numbers(whole)
    if name != "fold":
        assert ("(left out)" in text) == (width == 40 or (width == 80 and name.startswith("compress")))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["convert", "inspect", "verify", "bench", "masks", "ablate"])
def test_no_number_is_cut_and_no_line_is_too_long(name, width):
    whole, text = (printed(RESULTS[name], w) for w in (400, width))
    assert max(map(len, text.splitlines())) <= width
    first = {"verify": "weights", "bench": "a_rather", "ablate": "conv1:1023"}.get(name, "conv1")
    row, wide = (next(cells(x) for x in t.splitlines() if x.startswith(first)) for t in (text, whole))
    if name == "bench":  # whose names may be folded
        row, wide = row[1:], wide[1:]
    assert row
    assert is_part(row, wide)
    assert (len(row) < len(wide)) == ("left out for want of width" in text)


def test_a_table_as_wide_as_a_log_has_all_columns_of_a_plain_conversion():
    text = printed(conversion(*LAYERS[:1]), 80)
    assert cells(next(x for x in text.splitlines() if x.startswith("conv1"))) == [
        "conv1", "16>32 3x3 s2 p1", "8", "4", "6", "527 k", "888 k", "657 k", "5.63 k", "0.125",
    ]  # fmt: skip
    assert "left out" not in text


def test_the_name_of_a_layer_remains_where_most_else_goes():
    text = printed(RESULTS["convert"], 40)
    assert any(line.startswith("conv1 ") for line in text.splitlines())
    folded = "".join(line[:20].strip() for line in text.splitlines() if line[:3] in ("enc", "cks", "t"))
    assert folded.startswith("encoder.stages.0.blo")
    assert "left out for want of width: geometry" in text
    assert "params now" in text


def test_failing_edges_keep_their_reasons_at_any_width():
    failed = verification(edge("weights", noise_ratio=8.38e6, reason="off by 1.25 at conv2[3, 1]"), layers=(check(),))
    for width in WIDTHS:
        assert "off by 1.25 at conv2[3, 1]" in " ".join(" ".join(printed(failed, width).split()).split())


@given(
    st.lists(st.lists(st.sampled_from(["1", "5.63 k", "1.25e-07", "-", "888 M"]), min_size=4, max_size=4), max_size=5),
    st.lists(st.integers(0, 4), min_size=4, max_size=4),
    st.integers(24, 60),
)
def test_whatever_is_shown_is_shown_whole(rows, ranks, width):
    headers = ("alpha", "b", "gamma delta", "e")
    table = FittingTable(
        Column(header="name", least=8),
        *(Column(header=header, rank=rank or 1) for header, rank in zip(headers, ranks, strict=True)),
    )
    for row in rows:
        table.add_row("a_name_that_is_long", *row)
    text = printed(table, width)
    assert max(map(len, text.splitlines())) <= width
    shown = [header for header in headers if re.search(rf"(^|  ){header}( |$)", text.splitlines()[0])]
    for row in rows:
        kept = [value for header, value in zip(headers, row, strict=True) if header in shown]
        assert any(cells(line)[1:] == kept for line in text.splitlines())
