"""Dead channels are removed from deployed files: equivalent, reported, proved, and faults in them are still found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_models import exported, outputs
from planting import one_off, planted, weight
from safetensors.numpy import save_file
from torch import nn

import spdexport
from spdexport.report.json_report import to_json
from spdexport.report.terminal import as_text
from spdexport.verification.result import Status


class Net(nn.Module):
    """A residual network in which the masks of ``masked`` leave channels to nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.inner = nn.Conv2d(32, 48, 3, padding=1)
        self.inner_norm = nn.BatchNorm2d(48)
        self.outer = nn.Conv2d(48, 32, 3, padding=1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.outer(self.inner_norm(self.inner(x)).relu())
        return self.fc(nn.functional.max_pool2d(x, 2).mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Components of which the live ones write 20 channels of ``inner`` alone, and read 12 of them in ``outer``."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("trimmed")
    V, U = rng.standard_normal((32 * 9, 30)), rng.standard_normal((30, 48)) / 100
    U[:8, 20:] = 0
    outer_V, outer_U = rng.standard_normal((48, 9, 30)), rng.standard_normal((30, 32)) / 100
    outer_V[12:, :, :5] = 0
    tensors = {"inner.V": V, "inner.U": U, "outer.V": outer_V.reshape(48 * 9, 30), "outer.U": outer_U}
    masks = {"inner": np.arange(30) < 8, "outer": np.arange(30) < 5}
    for name, held in (("components", tensors), ("masks", masks)):
        arrays = {key: np.ascontiguousarray(value.astype(np.float32)) for key, value in held.items()}
        save_file(arrays, folder / f"{name}.safetensors")
    return {"components": folder / "components.safetensors", "masks": folder / "masks.safetensors"}


def source_of(kind: str, folder: Path) -> Any:
    if kind == "torch":
        return net()
    return exported(net(), torch.zeros(2, 3, 12, 12), folder / "dense.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.sampled(1)
def test_dead_channels_go_and_nothing_else(tmp_path: Path, masked: dict[str, Any], kind: str) -> None:
    source, options = source_of(kind, tmp_path), {"inputs": torch.randn(2, 3, 12, 12), **masked}
    literal = spdexport.convert(source, tmp_path / "literal.onnx", **options, verify=False)
    result = spdexport.convert(
        source, tmp_path / "auto.onnx", **options, form="auto", thorough=True, save_plan=tmp_path / "p.json"
    )
    assert literal.trimming is None
    assert result.verdict is Status.PASS
    removed = {layer.name: (layer.inputs, layer.outputs) for layer in result.trimming.layers}
    gone = tuple(range(12, 48))
    assert removed["inner.U"] == ((), gone)
    assert removed["outer.V"] == (gone, ())
    assert result.trimming.bytes_saved != 0
    weights = next(edge for edge in result.verification.edges if edge.edge == "weights")
    assert "36 channels removed, each dead by its weights" in weights.reason

    x = np.random.default_rng(1).standard_normal((3, 3, 12, 12)).astype(np.float32)
    for values in (x, -np.abs(x), 0 * x, 1e6 * x):
        right, found = (outputs(tmp_path / f"{name}.onnx", values) for name in ("literal", "auto"))
        np.testing.assert_allclose(found, right, rtol=0, atol=2e-5 * np.abs(right).max())

    # Told in all reports, and in the file.
    text = " ".join(as_text(result, width=80).split())
    assert "dead channels: 36 channels that nothing live writes or reads removed; MACs " in text
    assert "inner.U (Conv): 36 of 48 output channels" in text
    assert "outer.V (Conv): 36 of 48 input channels" in text
    assert "components of 2 layers padded with zeros to whole lanes of 16" in text
    report = to_json(result)["trimming"]
    assert [layer["name"] for layer in report["layers"]] == list(removed)
    held = {p.key: p.value for p in onnx.load(tmp_path / "auto.onnx").metadata_props}
    assert json.loads(held["spdexport.trimming"]) == report

    # Verified again, alone, with its layers folded, and repeated from the plan.
    assert spdexport.verify(tmp_path / "auto.onnx", against=source, **options, thorough=True).verdict is Status.PASS
    assert spdexport.verify(tmp_path / "auto.onnx").verdict is Status.PASS
    spdexport.fold(tmp_path / "auto.onnx", tmp_path / "folded.onnx")
    assert spdexport.verify(tmp_path / "folded.onnx", against=source, **options).verdict is Status.PASS
    spdexport.convert(source, tmp_path / "again.onnx", **options, plan=tmp_path / "p.json", verify=False)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "auto.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("torch", marks=pytest.mark.long), "onnx"])
@pytest.mark.parametrize("layer", ["inner", "outer", "stem"])
@pytest.mark.sampled(1)
def test_faults_in_what_is_left_are_found(tmp_path: Path, masked: dict[str, Any], kind: str, layer: str) -> None:
    source, options = source_of(kind, tmp_path), {"inputs": torch.randn(2, 3, 12, 12), **masked}
    spdexport.convert(source, tmp_path / "auto.onnx", **options, form="auto", verify=False)
    names = {tensor.name for tensor in onnx.load(tmp_path / "auto.onnx").graph.initializer}
    name = next(n for n in (f"{layer}.U", f"{layer}.weight") if n in names)
    file = planted(tmp_path / "auto.onnx", weight(name, one_off), tmp_path / "planted.onnx")
    found = spdexport.verify(file, against=source, **options)
    assert found.verdict is Status.FAIL
    edges = {edge.edge: edge for edge in found.edges}
    assert (edges["weights"].status, edges["weights"].first_divergence) == (Status.FAIL, layer)
    assert (edges["export"].status, edges["export"].first_divergence) == (Status.FAIL, layer)


@pytest.mark.slow
def test_a_channel_too_many_is_missed(tmp_path: Path, masked: dict[str, Any]) -> None:
    source, options = net(), {"inputs": torch.randn(2, 3, 12, 12), **masked}
    spdexport.convert(source, tmp_path / "auto.onnx", **options, form="auto", verify=False)

    def without_one(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            if (axis := {"inner.U": 0, "inner.bias": 0, "outer.V": 1}.get(tensor.name)) is not None:
                cut = np.delete(numpy_helper.to_array(tensor), 3, axis)
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(cut), tensor.name))
        del proto.graph.value_info[:]

    found = spdexport.verify(
        planted(tmp_path / "auto.onnx", without_one, tmp_path / "p.onnx"), against=source, **options
    )
    weights = next(edge for edge in found.edges if edge.edge == "weights")
    assert (found.verdict, weights.status, weights.first_divergence) == (Status.FAIL, Status.FAIL, "inner")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "padded"), [({"lane_width": 1}, False), ({"optimize_for": "params"}, False), ({}, True)]
)
def test_padding_follows_what_is_optimized(
    tmp_path: Path, masked: dict[str, Any], options: dict[str, Any], padded: bool
) -> None:
    everything = {"inputs": torch.randn(2, 3, 12, 12), **masked, **options}
    result = spdexport.convert(net(), tmp_path / "m.onnx", **everything, form="auto")
    assert result.verdict is Status.PASS
    assert bool(result.trimming.padded) is padded


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"keep_masks": True}, {"runtime_masks": "all"}])
def test_what_is_to_stay_is_not_removed(tmp_path: Path, masked: dict[str, Any], options: dict[str, Any]) -> None:
    inputs = {"inputs": torch.randn(2, 3, 12, 12), **masked}
    result = spdexport.convert(net(), tmp_path / "m.onnx", **inputs, **options, form="auto")
    assert result.verdict is Status.PASS
    assert result.trimming is None
