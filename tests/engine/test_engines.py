"""What engines share: shards, parcels, and what they refuse. None of it needs Ray."""

import importlib.util

import numpy as np
import onnx_models
import pytest
import torch
from cli_command import FACTORY, RUN
from cli_command import spdexport as command
from hypothesis import given
from hypothesis import strategies as st

import spdexport
from spdexport import errors
from spdexport.cli_options import ENGINES
from spdexport.engine.engines import engine_named
from spdexport.engine.parcels import packed, unpacked
from spdexport.engine.work import SHARDS, EngineKind, cut
from spdexport.errors import RuntimeMissingError, SpdExportError, UsageError
from spdexport.files.onnx_reading import load_onnx


@given(st.integers(1, 100_000), st.integers(1, 500))
def test_shards_are_all_samples_in_their_order(samples, unit):
    shards = cut(samples, unit)
    assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards[:-1])]
    assert shards[-1].stop == samples
    assert len(shards) <= SHARDS
    assert all(shard.start % unit == 0 and shard.start < shard.stop for shard in shards)
    assert len({shard.stop - shard.start for shard in shards[:-1]}) <= 1


def test_the_words_of_the_option_are_the_engines():
    assert tuple(EngineKind) == ENGINES
    assert engine_named("local").kind is EngineKind.LOCAL


@pytest.mark.parametrize("name", sorted(n for n, v in vars(errors).items() if isinstance(v, type)))
def test_every_error_travels(name):
    kind = getattr(errors, name)
    if not issubclass(kind, SpdExportError):
        return
    more = {"IncompleteError": {"missing": ["--factory"]}, "PickleRefusedError": {"names": ["os.system"]}}
    error = kind("What.", where="there", hint="Do it.", **more.get(name, {}))
    other = unpacked(packed(error))
    assert type(other) is kind
    assert str(other) == str(error)
    assert vars(other) == vars(error)


def test_a_graph_travels_as_its_file(tmp_path):
    onnx_models.saved(onnx_models.network(), tmp_path / "m.onnx")
    model = load_onnx(tmp_path / "m.onnx")
    other = unpacked(packed({"model": model}))["model"]
    assert [node.op_type for node in other.graph] == [node.op_type for node in model.graph]
    for name, value in model.graph.initializers.items():
        np.testing.assert_array_equal(other.graph.initializers[name].const_value.numpy(), value.const_value.numpy())


def test_a_traced_program_travels_with_the_names_of_its_nodes():
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    x = torch.randn(2, 1, 4, 4)
    program = torch.export.export(net.eval(), (x,))
    other = unpacked(packed(program))
    assert [node.name for node in other.graph.nodes] == [node.name for node in program.graph.nodes]
    torch.testing.assert_close(other.module()(x), program.module()(x))


def test_what_cannot_travel_is_told():
    with pytest.raises(UsageError, match="cannot be sent to other processes") as error:
        packed(lambda: None)
    assert (error.value.where, error.value.exit_status) == ("--engine ray", 2)


@pytest.fixture
def no_ray(monkeypatch):
    found, ours = importlib.util.find_spec, {"ray": None, "pyarrow": "there", "pandas": "there"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: ours[name] if name in ours else found(name, *a))


def test_without_ray_the_command_says_how_to_get_it(no_ray, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 1, 16, 16), np.float32))
    onnx_models.saved(onnx_models.network(), tmp_path / "m.onnx")
    given = {
        "masks": (RUN, "--factory", FACTORY, "--data", tmp_path / "x.npz", "-o", tmp_path / "m.safetensors"),
        "ablate": (tmp_path / "m.onnx", "--data", tmp_path / "x.npz"),
        "compress": (tmp_path / "m.onnx", "--data", tmp_path / "x.npz", "--macs", 0.5, "-o", tmp_path / "o.onnx"),
    }
    for name, arguments in given.items():
        done = command(name, *arguments, "--engine", "ray")
        assert done.exit_code == 2, done.output
        assert done.stderr == (
            "error: The engine needs packages that are not installed: ray.\n  where: --engine ray\n"
            "  to do: Run `pip install 'spdexport[ray]'`, or leave the option out.\n"
        )
        assert not (tmp_path / "o.onnx").exists()


def test_without_ray_python_says_the_same(no_ray):
    with pytest.raises(RuntimeMissingError, match="not installed: ray"):
        engine_named("ray")


def test_an_engine_that_there_is_not():
    with pytest.raises(UsageError, match="'dask' is no engine") as error:
        spdexport.ablate("m.onnx", data="x.npz", engine="dask")
    assert error.value.hint == "Choose one of local, ray."


def test_batches_that_come_one_after_another_stay_here(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: name)  # whether or not it is installed
    with pytest.raises(UsageError, match="Batches that come one after another stay in this process") as error:
        spdexport.derive_masks(RUN, data=[np.zeros((2, 1, 16, 16), np.float32)], factory=FACTORY, engine="ray")
    assert error.value.where == "the data and --engine ray"
