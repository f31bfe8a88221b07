"""Tables at the widths of a phone, of a log, and of screens: nothing is cut, and what went is told."""

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results import NO_DEVICE, check, conversion, edge, inspection, layer, verification
from rich.console import Console

from spdexport.ablation.ablate import Ablated, Ablations
from spdexport.ablation.effects import Effect
from spdexport.ablation.sets import ComponentsOf
from spdexport.importance.result import DerivedMasks, LayerMask
from spdexport.importance.statistics import Importances
from spdexport.measuring.bench import Bench, FileTiming
from spdexport.ort.timing import Spread
from spdexport.report.console import Column, FittingTable
from spdexport.report.terminal import show

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


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", RESULTS)
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
