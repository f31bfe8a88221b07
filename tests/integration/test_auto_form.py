"""Whole conversions with the cheapest form of each layer: equivalent, and verified again from the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from cli_command import DIGITS, MASKS
from cli_command import spdexport as command
from onnx_models import exported, outputs
from safetensors.numpy import save_file
from torch import nn

import spdexport
from spdexport.errors import PlanError, UsageError
from spdexport.verification.result import Status

FORMS = {"few": "factorized", "many": "dense", "low": "recompressed", "none": "constant", "up": "recompressed",
         "grouped": "recompressed", "fc": "recompressed"}  # fmt: skip


class Net(nn.Module):
    """One layer for each form, grouped, transposed and linear ones among them."""

    def __init__(self) -> None:
        super().__init__()
        self.few = nn.Conv2d(32, 48, 3, padding=1)
        self.norm = nn.BatchNorm2d(48)
        self.many = nn.Conv2d(48, 48, 3, stride=2)
        self.low = nn.Conv2d(48, 64, 3, padding=1)
        self.none = nn.Conv2d(64, 64, 1)
        self.up = nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1)
        self.grouped = nn.Conv2d(64, 128, 3, groups=2)
        self.fc = nn.Linear(128, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.many(self.norm(self.few(x)).relu())
        x = self.low(x).relu() + self.none(self.low(x))
        return self.fc(self.grouped(self.up(x)).relu().mean((2, 3)))


def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    model.norm.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Components of the layers and their masks, as files: overcomplete, of low rank, or with few live ones."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("components")
    tensors, masks = {}, {}

    def add(name: str, shape: tuple[int, int], components: int, *, rank: int, live: int, groups: int = 0) -> None:
        lead = (groups,) if groups else ()
        V = rng.standard_normal((*lead, shape[0], rank)) @ rng.standard_normal((*lead, rank, components))
        U = rng.standard_normal((*lead, components, shape[1]))
        scale = float(np.sqrt(rank * components * shape[0]))
        tensors[f"{name}.V"], tensors[f"{name}.U"] = V.astype(np.float32), (U / scale).astype(np.float32)
        mask = np.zeros((*lead, components), np.float32)
        mask[..., :live] = rng.choice([1.0, 0.5], live)
        masks[name] = mask

    add("few", (288, 48), 60, rank=60, live=7)
    add("many", (432, 48), 90, rank=90, live=80)
    add("low", (432, 64), 90, rank=6, live=80)
    add("none", (64, 64), 90, rank=64, live=0)
    add("up", (64 * 16, 64), 90, rank=10, live=70)
    add("grouped", (288, 64), 80, rank=11, live=70, groups=2)
    add("fc", (128, 96), 130, rank=9, live=120)
    save_file(tensors, folder / "components.safetensors")
    save_file(masks, folder / "masks.safetensors")
    return {"components": folder / "components.safetensors", "masks": folder / "masks.safetensors"}


def source_of(kind: str, folder: Path) -> Any:
    if kind == "torch":
        return net()
    return exported(net(), torch.zeros(2, 32, 8, 8), folder / "dense.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "onnx"])
@pytest.mark.sampled(1)
def test_auto_computes_what_the_literal_form_computes(tmp_path: Path, given: dict[str, Any], kind: str) -> None:
    source, inputs = source_of(kind, tmp_path), {"inputs": torch.randn(2, 32, 8, 8)}
    literal = spdexport.convert(source, tmp_path / "literal.onnx", **inputs, **given)
    auto = spdexport.convert(
        source, tmp_path / "auto.onnx", **inputs, **given, form="auto", save_plan=tmp_path / "p.json"
    )
    assert literal.verdict is auto.verdict is Status.PASS
    forms = {layer.name.partition("#")[0]: layer.form for layer in auto.plan.layers}
    assert forms == FORMS
    assert auto.plan.macs_after < min(auto.plan.macs_before, literal.plan.macs_after)
    weights = next(edge for edge in auto.verification.edges if edge.edge == "weights")
    assert weights.noise_ratio is not None
    assert weights.noise_ratio < 4

    x = np.random.default_rng(1).standard_normal((3, 32, 8, 8)).astype(np.float32)
    results = [outputs(tmp_path / f"{name}.onnx", x) for name in ("literal", "auto")]
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=2e-5 * np.abs(results[0]).max())

    # Verified again, from what the file says of its forms.
    options = {**inputs, **given}
    assert spdexport.verify(tmp_path / "auto.onnx", against=source, **options).verdict is Status.PASS
    # And repeated, byte for byte.
    again = spdexport.convert(source, tmp_path / "again.onnx", **options, plan=tmp_path / "p.json", verify=False)
    assert again.plan.as_json() == auto.plan.as_json()
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "auto.onnx").read_bytes()


@pytest.mark.slow
def test_a_file_that_lies_about_its_forms_fails(tmp_path: Path, given: dict[str, Any]) -> None:
    source, options = net(), {"inputs": torch.randn(2, 32, 8, 8), **given}
    spdexport.convert(source, tmp_path / "m.onnx", **options, form="auto", verify=False)
    model = ir.load(tmp_path / "m.onnx")
    plan = json.loads(model.metadata_props["spdexport.plan"])
    held = model.graph.initializers
    # The file keeps 3 of the 6 components of one layer, and says that these are its exact rank.
    held["low.V"].const_value = ir.tensor(held["low.V"].const_value.numpy()[:3].copy(), name="low.V")
    held["low.U"].const_value = ir.tensor(held["low.U"].const_value.numpy()[:, :3].copy(), name="low.U")
    next(layer for layer in plan["layers"] if layer["name"] == "low")["kept"] = 3
    model.metadata_props["spdexport.plan"] = json.dumps(plan)
    for name in ("low.V", "low.U"):
        held[name].shape = ir.Shape(held[name].const_value.shape)
    ir.save(model, tmp_path / "lie.onnx")
    onnx.checker.check_model(tmp_path / "lie.onnx")
    found = spdexport.verify(tmp_path / "lie.onnx", against=source, **options)
    assert found.verdict is Status.FAIL
    weights = next(edge for edge in found.edges if edge.edge == "weights")
    assert (weights.status, weights.first_divergence) == (Status.FAIL, "low")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "options"),
    [("auto", {"energy": 0.6}), ("factorized", {"max_error": 0.5}), ("dense", {"rank": ["3", "few=2"]})],
)
@pytest.mark.sampled(1)
def test_a_truncated_model_is_equivalent_to_the_truncated_weights(
    tmp_path: Path, given: dict[str, Any], form: str, options: dict[str, Any]
) -> None:
    everything = {**given, "input_shape": "2x32x8x8"}
    result = spdexport.convert(net(), tmp_path / "m.onnx", **everything, **options, form=form)
    assert result.verdict is Status.PASS
    assert any(layer.truncation for layer in result.plan.layers)
    assert result.verification.approximation.relative_l2 > 0
    assert spdexport.verify(tmp_path / "m.onnx", against=net(), **everything).verdict is Status.PASS
    with pytest.raises(UsageError, match=r"The file was made with (energy|max_error|rank) = "):
        spdexport.verify(tmp_path / "m.onnx", against=net(), **everything, energy=0.1, max_error=None, rank=[])


@pytest.mark.slow
def test_a_half_precision_model_keeps_its_verdict(tmp_path: Path, given: dict[str, Any]) -> None:
    options = {"inputs": torch.randn(2, 32, 8, 8).half(), **given, "form": "auto"}
    result = spdexport.convert(net().half(), tmp_path / "m.onnx", **options)
    assert result.verdict is Status.PASS
    assert {layer.form for layer in result.plan.layers} >= {"recompressed", "constant"}


def test_the_digits_run_gains_nothing_exactly_and_is_told_so(tmp_path: Path) -> None:
    run = ("convert", *DIGITS, "--masks", MASKS, "-o", tmp_path / "d.onnx", "--no-verify")
    done = command(*run, "--form", "auto", "--save-plan", tmp_path / "p.json", "--report", tmp_path / "r.json")
    text = " ".join(done.output.split())
    assert done.exit_code == 0
    assert "Exact pruning gains nothing here: every layer is cheapest dense (conv1 11 live, break-even 5, " in text
    assert "--energy 0.999 would gain nothing either." in text
    assert "--max-error begins to make layers cheaper at conv2 0.211 (rank 16), fc1 0.224 (rank 48)" in text
    assert "forms: the cheapest form of each layer, counted in MACs, channels in lanes of 16" in text
    assert "conv2: dense is cheapest: 41 live of 64 components, break-even 26; rank 32 of 32" in text
    layers = json.loads((tmp_path / "r.json").read_text())["layers"]
    assert all(layer["macs_after"] <= layer["macs_before"] for layer in layers)
    assert [w["form"] for w in layers[1]["weighed"]] == ["dense", "factorized", "recompressed"]
    literal = " ".join(command(*run).output.split())
    assert "This costs more than the dense model. 5 layers" in literal
    assert "--form auto" in literal


def test_errors_of_plan_files(tmp_path: Path) -> None:
    run = ("convert", *DIGITS, "-o", tmp_path / "d.onnx", "--no-verify", "-q")
    plan = tmp_path / "p.json"
    assert command(*run, "--masks", MASKS, "--form", "auto", "--save-plan", plan).exit_code == 0
    for arguments, status, what in (
        (("--plan", plan), 4, "The weight delta of 'conv1' is dropped in the plan, and kept here."),
        (("--plan", plan, "--form", "dense"), 2, "The plan decides that already."),
        (("--plan", plan, "--energy", "0.9"), 2, "The plan decides that already."),
        (("--plan", tmp_path / "none.json"), 4, "There is no such file."),
        (("--plan", MASKS), 4, "The plan is not text: "),
        (("--optimize-for", "params"), 2, "There is nothing to optimize: the form of all layers is factorized."),
        (("--rank", "0"), 2, "'0' is not a rank."),
        (("--rank", "konv=3"), 2, "The pattern 'konv' matches no layer."),
        (("--save-plan", tmp_path / "no" / "p.json"), 2, "The folder of the output does not exist."),
        (("--save-plan", plan, "--report", plan), 2, "The output would overwrite another file, which is written too."),
    ):
        done = command(*run, *arguments)
        assert done.exit_code == status, done.output
        first, where, hint = done.stderr.splitlines()
        assert what in first
        assert where.startswith("  where: ")
        assert hint.startswith("  to do: ")
    with pytest.raises(PlanError):
        spdexport.convert(net(), tmp_path / "m.onnx", input_shape="2x32x8x8", plan=plan)
