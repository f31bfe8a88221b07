"""Latency as a cost: the models that are measured, what is kept, and what is refused. No time is judged."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spdexport.conv import ConvSite, ConvSpec
from spdexport.cost import dense_shape, pair_shape
from spdexport.errors import UsageError
from spdexport.forms import FormKind
from spdexport.latency import CACHE_VARIABLE, MARGIN, LatencyCost, cache_folder, form_model
from spdexport.ort.providers import CUDA
from spdexport.ort.sessions import SessionSettings, open_session, provider_status


def site(spec, *, bias=True, size=(6,), name="layer"):
    axes = spec.axes
    sizes = size * axes if axes else size
    weight = np.zeros(spec.weight_shape, np.float32)
    return ConvSite(
        name=name, spec=spec, weight=weight, bias=np.zeros(spec.out_channels, np.float32) if bias else None,
        node=name, input_size=sizes,
    )  # fmt: skip


def conv(axes=2, *, groups=1, transposed=False):
    return ConvSpec(
        in_channels=4, out_channels=8, kernel=(3,) * axes, stride=(2,) * axes, padding=((1, 1),) * axes,
        dilation=(1,) * axes, groups=groups, transposed=transposed,
    )  # fmt: skip


SITES = [
    site(conv(1)), site(conv(2), bias=False), site(conv(2, groups=2)), site(conv(3)), site(conv(2, transposed=True)),
    site(conv(1, transposed=True, groups=2)), site(ConvSpec.pointwise(4, 8, axes=0), size=()),
    site(ConvSpec.pointwise(4, 8, axes=0), size=(5,)), site(ConvSpec.pointwise(4, 8, axes=0), size=(5, 2), bias=False),
]  # fmt: skip


@pytest.fixture
def clock():
    """A measurement that takes as many seconds as it was asked for before, and remembers what for."""

    class Clock:
        def __init__(self):
            self.models = []

        def __call__(self, model, x, settings):
            self.models.append((model, x, settings))
            return float(len(self.models))

    return Clock()


@pytest.mark.parametrize("layer", SITES, ids=lambda layer: f"{layer.spec.kind} {layer.input_size}")
@pytest.mark.parametrize("kind", [FormKind.FACTORIZED, FormKind.FACTORIZED_WITH_DELTA])
def test_the_models_run_and_have_the_forms_stages(layer, kind):
    sizes = set()
    for shape in (
        dense_shape(layer),
        pair_shape(layer, 3, kind),
    ):
        model, x = form_model(layer, shape)
        proto = ir.to_proto(model)
        onnx.checker.check_model(proto)
        stages = [n for n in proto.graph.node if n.op_type != "Add"]
        assert len(stages) == len(shape.stages)
        # A bias is counted once; a visible mask is in none of these.
        stored = sum(int(np.prod(t.dims)) for t in proto.graph.initializer)
        assert stored == sum(int(np.prod(s.weight_shape)) for s in shape.stages) + shape.extra
        session = open_session(proto.SerializeToString(), SessionSettings(optimized=True))
        sizes.add(session.run({"x": x})["y"].shape)
    assert len(sizes) == 1


def test_equal_shapes_are_measured_once_and_kept(tmp_path, clock):
    first, second = site(conv(), name="first"), site(conv(), name="second")
    said = []
    cost = LatencyCost(folder=tmp_path, measure=clock, told=said.append)
    dense = dense_shape(first)
    assert cost(first, dense) == cost(second, dense) == 1.0
    assert said == ["measuring forms: first as dense"]
    # The margin is that of everything but dense.
    assert cost(first, pair_shape(first, 3)) == 2.0 * (1 + MARGIN)
    assert LatencyCost(folder=tmp_path, measure=clock)(second, pair_shape(second, 3)) == 2.0 * (1 + MARGIN)
    assert len(clock.models) == 2


@pytest.mark.parametrize(
    "other",
    [
        lambda s: replace(s, input_size=(7, 6)),
        lambda s: replace(s, bias=None),
        lambda s: replace(s, weight=s.weight.astype(np.float64)),
        lambda s: replace(s, spec=replace(s.spec, stride=(1, 1))),
    ],
    ids=["size", "bias", "dtype", "stride"],
)
def test_what_time_depends_on_is_told_apart(tmp_path, clock, other):
    layer = site(conv())
    cost = LatencyCost(folder=tmp_path, measure=clock)
    assert cost(layer, dense_shape(layer)) == 1.0
    changed = other(layer)
    assert cost(changed, dense_shape(changed)) == 2.0
    assert LatencyCost(folder=tmp_path, measure=clock, threads=1)(layer, dense_shape(layer)) == 3.0


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"seconds": 5}', '{"key": {}, "seconds": 5}'])
def test_a_damaged_entry_is_measured_anew_and_mended(tmp_path, clock, content):
    layer = site(conv())
    LatencyCost(folder=tmp_path, measure=clock)(layer, dense_shape(layer))
    (entry,) = (tmp_path / "latency").iterdir()
    entry.write_text(content)
    assert LatencyCost(folder=tmp_path, measure=clock)(layer, dense_shape(layer)) == 2.0
    assert json.loads(entry.read_text())["seconds"] == 2.0


@pytest.mark.parametrize("seconds", ["null", "-1", "0", "Infinity", '"1"'])
def test_a_time_that_is_none_is_measured_anew(tmp_path, clock, seconds):
    layer = site(conv())
    LatencyCost(folder=tmp_path, measure=clock)(layer, dense_shape(layer))
    (entry,) = (tmp_path / "latency").iterdir()
    entry.write_text(entry.read_text().replace("1.0", seconds))
    assert LatencyCost(folder=tmp_path, measure=clock)(layer, dense_shape(layer)) == 2.0


def test_a_folder_that_cannot_be_written_to_costs_the_cache_alone(tmp_path, clock):
    (tmp_path / "file").write_text("")
    layer = site(conv())
    cost = LatencyCost(folder=tmp_path / "file", measure=clock)
    assert cost(layer, dense_shape(layer)) == cost(layer, dense_shape(layer)) == 1.0


def test_a_home_that_is_missing_is_not_made(monkeypatch, tmp_path, clock):
    for name in (CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    layer, said = site(conv()), []
    assert LatencyCost(measure=clock, told=said.append)(layer, dense_shape(layer)) == 1.0
    assert not home.exists()
    assert said[1:] == [f"times are not kept for the next run: {home}/.cache/spdexport/latency cannot be written to"]
    home.mkdir()
    assert LatencyCost(measure=clock)(layer, dense_shape(layer)) == 2.0
    assert LatencyCost(measure=clock)(layer, dense_shape(layer)) == 2.0
    assert [path.name for path in home.iterdir()] == [".cache"]


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache_folder()) == "/somewhere/spdexport"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder().parts[-2:] == (".cache", "spdexport")


def test_a_real_measurement(tmp_path):
    layer = site(conv())
    cost = LatencyCost(folder=tmp_path, threads=1)
    assert 0 < cost(layer, dense_shape(layer)) < 1
    assert (cost.unit, cost.name.partition(";")[0]) == ("s", "latency on cpu, threads 1, one sample")


def test_sizes_that_are_not_known(tmp_path, clock):
    layer = replace(site(conv()), input_size=None)
    with pytest.raises(UsageError, match="The sizes of the input of layer are not known"):
        LatencyCost(folder=tmp_path, measure=clock)(layer, dense_shape(layer))


@pytest.mark.skipif(provider_status(CUDA) is None, reason="CUDA runs here")
def test_a_provider_that_does_not_run_here():
    with pytest.raises(UsageError, match="Latency cannot be measured on cuda: "):
        LatencyCost(provider=CUDA)
