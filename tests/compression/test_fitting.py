"""Layers fitted from front to back, against least squares on the activations of both networks, taken by torch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from compression import compressible_nets as nets
from compression.test_compress import command, factory
from onnx import numpy_helper
from torch import nn

import spdexport
from spdexport.compression.fitting import Fitting

SAMPLES = 600


class TwoWays(nn.Module):
    """A net whose second layer is added to a 1x1 shortcut, behind which another layer and a head come."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first = nn.Conv2d(2, 24, 3, padding=1)
        self.wide = nn.Conv2d(24, 32, 3, padding=1)
        self.shortcut = nn.Conv2d(24, 32, 1)
        self.head = nn.Linear(32, 5)
        self.eval()

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.wide(x) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """A net whose block adds to what an earlier layer, which is compressed, has changed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Conv2d(2, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 24, 3, padding=1)
        self.third = nn.Conv2d(24, 24, 3, padding=1)
        self.head = nn.Linear(24, 5)
        self.eval()

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x))
        x = torch.relu(self.third(x) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("fit") / "x.npz"
    np.savez(path, x=nets.images(SAMPLES, seed=3))
    return path


def own_factory(net):
    return f"{__file__}:{net.__name__}"


@pytest.fixture
def fits(monkeypatch):
    """Of each trial the forms, and what the calibration set was."""
    seen = []
    forms = Fitting.forms

    def kept(self, taken, told):
        found = forms(self, taken, told)
        seen.append((found, next(iter(self.samples.batches(10_000)))))
        return found

    monkeypatch.setattr(Fitting, "forms", kept)
    return seen


def weights(form):
    (stage,) = form.chains[0]
    return np.asarray(stage.weight), stage.bias


def test_dense_layers_are_fitted_to_what_comes_to_them(data, tmp_path, fits):
    """The head reads the mean over places, so that its rows are few and all are taken: the fit is known exactly."""
    found = spdexport.compress(
        None, tmp_path / "small.onnx", factory=own_factory(TwoWays), data=data, macs=0.4, verify=False,
        save_components=tmp_path / "forms.safetensors",
    )  # fmt: skip
    ((forms, samples),) = fits
    x = torch.from_numpy(samples["x"]).double()
    net = TwoWays().double()
    y = net(x).detach().numpy()
    # What the head reads in the compressed network, from the file's own weights by way of the forms.
    reads = features(tmp_path / "small.onnx", samples["x"])
    mean, centre = reads.mean(0), y.mean(0)
    G, R = (reads - mean).T @ (reads - mean) / len(x), (y - centre).T @ (reads - mean) / len(x)
    t = 1e-3 * np.trace(G) / len(G)
    own = net.head.weight.detach().numpy()
    wanted = (R + t * own) @ np.linalg.inv(G + t * np.eye(len(G)))
    weight, bias = weights(forms["head"])
    np.testing.assert_allclose(weight.reshape(wanted.shape), wanted, atol=2e-4 * np.abs(wanted).max())
    np.testing.assert_allclose(bias, centre - wanted @ mean, atol=2e-4)
    # The file has it, and what is told of it is true.
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "small.onnx").graph.initializer}
    assert any(array.size == weight.size and np.array_equal(array.ravel(), weight.ravel()) for array in held.values())
    layers = {layer.name: layer for layer in found.plan.layers}
    assert layers["head"].given
    assert layers["head"].form == "dense"


def features(path, x):
    """What the last matrix product of a file reads, by ONNX Runtime without its optimizer."""
    import onnxruntime

    model = ir.load(path)
    last = [node for node in model.graph if node.op_type in ("Gemm", "MatMul")][-1]
    model.graph.outputs.append(last.inputs[0])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return session.run([last.inputs[0].name], {session.get_inputs()[0].name: x})[0].astype(np.float64)


def test_a_layer_makes_up_for_what_is_added_to_it(data, tmp_path, monkeypatch):
    """With the dense network's sum as the target less is lost than with what the layer itself gave."""
    from spdexport.compression import fitting

    def lost():
        found = spdexport.compress(
            None, tmp_path / "small.onnx", factory=own_factory(Residual), data=data, macs=0.4, verify=False
        )
        return found.search.points[0].loss

    with_sums = lost()
    monkeypatch.setattr(fitting, "_targets", lambda given, _sums: [kept.get for kept in given])
    assert with_sums < 0.97 * lost()


@pytest.mark.long
def test_what_loses_nothing_leaves_dense_layers_as_they_are(data, tmp_path, fits):
    spdexport.compress(
        None, tmp_path / "exact.onnx", factory=factory("Planted"), data=data, max_relative_l2=1e-4, verify=False
    )
    assert all(forms.keys() <= {"pair", "split"} for forms, _ in fits)


@pytest.mark.long
def test_few_samples_leave_dense_layers_as_they_are(data, tmp_path, fits):
    few = tmp_path / "few.npz"
    np.savez(few, x=nets.images(60, seed=3))
    spdexport.compress(
        None, tmp_path / "few.onnx", factory=own_factory(TwoWays), data=few, macs=0.4, verify=False,
        calibration_samples=20,
    )  # fmt: skip
    ((forms, _),) = fits
    assert forms
    assert "head" not in forms


def test_the_saved_forms_make_the_same_file_and_are_proved(data, tmp_path):
    made, again = tmp_path / "small.onnx", tmp_path / "again.onnx"
    result = command(
        "compress", "--factory", own_factory(TwoWays), "--data", data, "--macs", 0.4, "-o", made,
        "--save-components", tmp_path / "forms.safetensors", "--save-plan", tmp_path / "plan.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "with other weights" in result.stdout
    result = command(
        "convert", "--factory", own_factory(TwoWays), "--components", tmp_path / "forms.safetensors",
        "--plan", tmp_path / "plan.json", "--inputs", data, "-o", again, "--no-verify",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    graphs = [onnx.load(path).graph for path in (made, again)]
    stored = [{t.name: numpy_helper.to_array(t) for t in graph.initializer} for graph in graphs]
    assert stored[0].keys() == stored[1].keys()
    assert all(np.array_equal(array, stored[1][name]) for name, array in stored[0].items())
