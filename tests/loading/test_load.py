import io
import logging
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import helper
from torch import nn

from spdexport.errors import PickleRefusedError, SourceError, UsageError
from spdexport.files.hashing import sha256_file
from spdexport.files.sniff import FileKind
from spdexport.loading import load
from spdexport.loading.load import _LOADERS


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))


FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

def make():
    return Net(), torch.ones(2, 1, 5, 5)
"""
X = torch.linspace(0, 1, 50).reshape(2, 1, 5, 5)


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def factory(tmp_path):
    (tmp_path / "zoo.py").write_text(FACTORY)
    return f"{tmp_path / 'zoo.py'}:make"


@pytest.fixture
def net():
    return Net()


def _spd_state(net):
    """A run of the current layout over the convolution alone."""
    state = {f"target_model.{name}": value for name, value in net.state_dict().items()}
    state |= {"_components.conv.V": torch.randn(9, 4), "_components.conv.U": torch.randn(4, 2)}
    state |= {"_components.conv.bias": net.conv.bias.detach().clone()}
    return state | {"_ci_fns.conv.layers.0.W": torch.randn(4, 1, 3)}


def test_every_kind_of_file_has_a_loader():
    assert set(_LOADERS) == set(FileKind)


def test_factory_alone(factory):
    loaded = load(None, factory=factory)
    assert loaded.kind == "factory"
    assert loaded.module.training
    assert loaded.inputs.args[0].shape == (2, 1, 5, 5)
    assert torch.equal(load(None, factory=factory).module(X), loaded.module(X))
    assert not torch.equal(load(None, factory=factory, seed=1).module(X), loaded.module(X))


def test_program(tmp_path, net):
    path = tmp_path / "m.bin"
    with path.open("wb") as file:
        torch.export.save(torch.export.export(net, (X,)), file)
    loaded = load(path)
    assert loaded.kind == "pt2"
    assert loaded.module is None
    assert torch.equal(loaded.inputs.args[0], X)
    assert torch.equal(loaded.program.module()(X), net(X))
    assert loaded.sha256 == sha256_file(path)


def test_program_with_a_payload(tmp_path, net):
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(net, (X,)), buffer)
    planted = io.BytesIO()
    torch.save(((X, Payload(tmp_path / "executed")), {}), planted)
    path = tmp_path / "m.pt2"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            bad = name.endswith("sample_inputs/model.pt")
            target.writestr(name, planted.getvalue() if bad else source.read(name))
    with pytest.raises(PickleRefusedError, match="mkdir") as caught:
        load(path)
    assert "data/sample_inputs/model.pt" in caught.value.where
    assert not (tmp_path / "executed").exists()
    load(path, trust=True)
    assert (tmp_path / "executed").exists()


def test_program_of_another_version(tmp_path, net, caplog):
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(net, (X,)), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "m.pt2", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content.replace(b"aten.linear", b"aten.linnear"))
    with pytest.raises(SourceError, match=r"cannot load the program: .*linnear") as caught:
        load(tmp_path / "m.pt2")
    assert str(caught.value).count("\n") == 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_torchscript(tmp_path, net):
    torch.jit.trace(net, X).save(str(tmp_path / "m"))
    loaded = load(tmp_path / "m")
    assert loaded.kind == "torchscript"
    assert isinstance(loaded.module, torch.jit.ScriptModule)
    assert torch.allclose(loaded.module(X), net(X))


def test_pickled_module(tmp_path, net):
    for legacy in (False, True):
        torch.save(net, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(PickleRefusedError, match=r"Net|Conv2d") as caught:
            load(tmp_path / "m.pt")
        assert "--trust" in caught.value.hint
        loaded = load(tmp_path / "m.pt", trust=True)
        assert loaded.kind == "pickle"
        assert torch.equal(loaded.module(X), net(X))
        assert "unpickled" in loaded.notes[0]


def test_pickle_of_something_else(tmp_path):
    torch.save([Payload(tmp_path / "executed")], tmp_path / "m.pt")
    with pytest.raises(SourceError, match="holds a list, not a module"):
        load(tmp_path / "m.pt", trust=True)


def test_pickle_whose_class_is_gone(tmp_path, monkeypatch):
    gone = type("Gone", (nn.Linear,), {"__module__": __name__})
    monkeypatch.setattr(sys.modules[__name__], "Gone", gone, raising=False)
    torch.save(gone(1, 1), tmp_path / "m.pt")
    monkeypatch.delattr(sys.modules[__name__], "Gone")
    with pytest.raises(SourceError, match="has no Gone, which the model was saved with"):
        load(tmp_path / "m.pt", trust=True)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "wrapped"])
def test_state_dict(tmp_path, net, factory, form):
    state, path = dict(net.state_dict()), tmp_path / "weights"
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 1, "state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    loaded = load(path, factory=factory)
    assert loaded.kind == "state_dict"
    assert torch.equal(loaded.module(X), net(X))
    assert loaded.sha256 == sha256_file(path)
    assert loaded.inputs.origin == "factory"
    with pytest.raises(UsageError, match="source is a state dict") as caught:
        load(path)
    assert "--factory" in caught.value.hint


def test_state_dict_that_does_not_fit(tmp_path, net, factory):
    state = dict(net.state_dict())
    state["head.weight"] = torch.ones(5, 2)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(SourceError, match=r"1 of another shape: head.weight \(file 5x2, module 3x2\)"):
        load(tmp_path / "w.pt", factory=factory)


def test_a_checkpoint_of_a_gpu_loads_on_the_cpu(tmp_path, net, factory):
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    path = tmp_path / "gpu.pt"
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):  # a length and the text, as pickle writes them
                assert b"X\3\0\0\0cpu" in content
                content = content.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0")
            target.writestr(name, content)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path)
    loaded = load(path, factory=factory)
    assert all(p.device.type == "cpu" for p in loaded.module.parameters())
    assert torch.equal(loaded.module(X), net(X))


@pytest.mark.parametrize("form", ["directory", "file", "safetensors"])
def test_spd_run(tmp_path, net, factory, form):
    run = tmp_path / "run"
    run.mkdir()
    state = _spd_state(net)
    torch.save({**state, "_components.conv.V": torch.zeros(9, 4)}, run / "model_900.pth")
    checkpoint = run / "model_4000.pth"
    torch.save(state, checkpoint)
    source = run if form == "directory" else checkpoint
    if form == "safetensors":
        source = tmp_path / "spd.safetensors"
        safetensors.torch.save_file(state, source)
    loaded = load(source, factory=factory)
    assert loaded.kind == "spd_run"
    assert list(loaded.components.components) == ["conv"]
    assert torch.equal(loaded.components.components["conv"].V, state["_components.conv.V"])
    assert torch.equal(loaded.module(X), net(X))
    assert loaded.sha256 == sha256_file(checkpoint if form == "directory" else source)
    with pytest.raises(UsageError, match="source is an SPD"):
        load(source)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(SourceError, match="folder is no SPD run"):
        load(tmp_path)


def test_onnx_and_other_kinds(tmp_path):
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "m.onnx")
    with pytest.raises(SourceError, match="An ONNX file holds no torch model"):
        load(tmp_path / "m.onnx")
    np.savez(tmp_path / "n.npz", a=np.ones(1))
    with pytest.raises(SourceError, match=r"A NumPy archive \(.npz\) is not a model"):
        load(tmp_path / "n.npz")
    with pytest.raises(SourceError, match="no such file"):
        load(tmp_path / "none.pt2")


def test_factory_beside_a_source_with_its_own_code(tmp_path, net, factory):
    torch.jit.trace(net, X).save(str(tmp_path / "m"))
    with pytest.raises(UsageError, match="needs no factory"):
        load(tmp_path / "m", factory=factory)
    with pytest.raises(UsageError, match="There is no model"):
        load(None)
