"""Faults planted in models with masks that are known only at run time: each edge names its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import spdexport
from spdexport.prepare import Prepared
from spdexport.rewrite.mask_nodes import MaskNodes
from spdexport.verification.result import EdgeResult, Status


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 5, 3, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 4)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)  # type: ignore[arg-type]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


X = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {"inputs": X, "runtime_masks": "all", "delta": "keep"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    assert spdexport.convert(Net(), path, **OPTIONS).verdict is Status.PASS
    return path


def edges(file: Path) -> dict[str, EdgeResult]:
    verification = spdexport.verify(file, against=Net(), **OPTIONS)
    return {e.edge: e for e in verification.edges if e.provider != "cuda"}


def change(file: Path, name: str, values: Any) -> None:
    model = ir.load(file)
    stored = model.graph.initializers[name]
    array = stored.const_value.numpy().copy()  # type: ignore[union-attr]
    stored.const_value = ir.tensor(values(array).astype(array.dtype), name=name)
    ir.save(model, file)


def swapped(array: Any) -> Any:
    return array[[1, 0, *range(2, len(array))]]


@pytest.mark.parametrize("name", ["conv.V", "fc.V", "fc.U"])
@pytest.mark.sampled(2)
def test_factors_that_are_not_those_of_the_plan(file: Path, name: str) -> None:
    change(file, name, swapped)
    weights = edges(file)["weights"]
    assert weights.status is Status.FAIL
    layer, part = name.split(".")
    assert (weights.first_divergence, weights.reason) == (
        layer,
        f"{part} of {layer} in the file is not that of its components",
    )


@pytest.mark.sampled(1)
def test_components_that_changed_places_in_v_and_u_alike(file: Path) -> None:
    # The layer is the same for masks of ones, and each mask removes another component than it says.
    change(file, "fc.V", swapped)
    change(file, "fc.U", lambda u: u[:, [1, 0, *range(2, u.shape[1])]])
    found = edges(file)
    assert found["weights"].status is Status.FAIL
    assert found["export"].status is Status.FAIL


@pytest.mark.sampled(1)
def test_a_batch_norm_in_u_is_one_factor_for_each_output(file: Path) -> None:
    assert edges(file)["weights"].status is Status.PASS
    change(file, "conv.U", lambda u: u * (1 + 1e-3 * np.arange(u.shape[1])[None, :, None, None]))
    assert edges(file)["weights"].first_divergence == "conv"


@pytest.mark.sampled(1)
def test_a_default_that_is_not_ones(file: Path) -> None:
    change(file, "mask/fc", lambda m: m * np.where(np.arange(m.shape[1]) == 1, 0, 1))
    found = edges(file)
    # Where the mask is given the default has no say: what fails is the case in which it is left out.
    assert found["weights"].status is Status.FAIL
    assert found["export"].status is Status.FAIL
    assert "masks left out" in found["export"].reason


def test_masks_in_the_wrong_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = MaskNodes.given

    def flipped(self: MaskNodes, wanted: Any, spec: Any, nodes: Any) -> Any:
        node = given(self, wanted, spec, nodes)
        if wanted.layer != "conv":
            return node
        return nodes.insert((torch.ops.aten.flip.default, (node, [1])), "flipped")

    monkeypatch.setattr(MaskNodes, "given", flipped)
    result = spdexport.convert(Net(), tmp_path / "m.onnx", **OPTIONS)
    assert result.verification is not None
    found = {e.edge: e for e in result.verification.edges}
    assert (found["rewrite"].status, found["rewrite"].first_divergence) == (Status.FAIL, "conv")
    # The file computes what was placed, and the module what was traced: only the rewrite is at fault.
    assert all(found[e].status is Status.PASS for e in ("capture", "weights", "export", "optimize"))


def test_a_delta_that_is_not_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components = {}
    for name, module in (("conv", Net().conv), ("fc", Net().fc)):
        weight = module.weight.detach().flatten(1).numpy()
        left, sigma, right = np.linalg.svd(weight, full_matrices=False)
        components |= {f"{name}.V": (right[:2].T * sigma[:2]), f"{name}.U": left[:, :2].T.copy()}
    np.savez(tmp_path / "c.npz", **components)
    options = {**OPTIONS, "components": tmp_path / "c.npz", "runtime_delta_masks": True}
    assert spdexport.convert(Net(), tmp_path / "m.onnx", **options).verdict is Status.PASS
    factorized = Prepared.factorized

    def without(self: Prepared, *forms: Any) -> Any:
        program = factorized(self, *forms)
        program.state_dict["fc.delta"].data.zero_()
        return program

    monkeypatch.setattr(Prepared, "factorized", without)
    found = {e.edge: e for e in spdexport.convert(Net(), tmp_path / "n.onnx", **options).verification.edges}  # type: ignore[union-attr]
    assert (found["rewrite"].status, found["rewrite"].first_divergence) == (Status.FAIL, "fc")
    assert found["weights"].reason == "delta of fc in the file is not that of its components"
