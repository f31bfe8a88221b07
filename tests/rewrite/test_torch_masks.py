"""Masks that are known only at run time, placed in programs of every kind of layer, against their definition."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

import spdexport
from spdexport.errors import MaskError, UsageError
from spdexport.export import export_onnx
from spdexport.forms import GateMode
from spdexport.gates import GateFunction, GateKind, GateLayer, Sigmoid
from spdexport.planning import PlanOptions, make_plan
from spdexport.planning.live_masks import LiveMasks, LiveOptions
from spdexport.reference.masked_reference import evaluate_masked, of_program
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.torch_graph import CONVOLUTIONS, list_sites
from spdexport.rewrite.torch_place import place_forms
from spdexport.sources.svd import svd_source
from spdexport.verification.result import Status


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.relu(self.conv(x)))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


NETWORKS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "groups": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)), (2, 4, 5, 6)),
    "transposed": (
        nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), nn.ReLU()),
        (2, 3, 4, 5),
    ),
    "same, even kernel": (nn.Sequential(nn.Conv1d(3, 4, 4, padding="same", dilation=2)), (2, 3, 11)),
    "three axes": (nn.Sequential(nn.Conv3d(2, 3, 2, stride=2)), (2, 2, 4, 4, 6)),
    "batch norm": (nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU()), (2, 3, 6, 6)),
    "called twice": (Twice(), (2, 3, 5, 5)),
    "tokens": (Tokens(), (2, 7, 6)),
    "half": (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).half(), (2, 6)),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("per_location", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.sampled(5)
def test_masks_at_run_time_in_every_kind_of_layer(tmp_path: Path, name: str, per_location: bool) -> None:
    module, shape = NETWORKS[name]
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.normal_(norm.weight)
    x = torch.randn(shape, dtype=next(module.parameters()).dtype)
    result = spdexport.convert(
        module.eval(),
        tmp_path / "m.onnx",
        inputs=x,
        runtime_masks="all",
        runtime_masks_per_location=per_location,
        runtime_routing=True,
        activation_outputs=True,
    )
    assert result.verification is not None
    assert result.verification.verdict is Status.PASS
    edges = {e.edge: e.status for e in result.verification.edges}
    assert all(edges[e] is Status.PASS for e in ("capture", "weights", "rewrite", "export", "optimize"))


def placed(module: nn.Module, x: torch.Tensor, functions: dict[str, GateFunction], **options: Any) -> Any:
    """The dense program, the one with gates, and its plan."""
    program = torch.export.export(module.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    sites, skipped = list_sites(program)
    live_masks = LiveMasks(options=LiveOptions(gate_outputs=True, **options), gates=functions)
    plan = make_plan(sites, skipped, svd_source, PlanOptions(), live_masks=live_masks)
    return program, place_forms(program, plan.forms(), reads=plan.gate_reads), plan


def gate(kind: GateKind, sigmoid: Sigmoid, components: int, size: int, random: np.random.Generator) -> GateFunction:
    def drawn(*shape: int) -> Any:
        return (random.standard_normal(shape) / np.sqrt(shape[-2])).astype(np.float32)

    def shift(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32)

    if kind is GateKind.SHARED_MLP:
        sizes = [size, 5, components]
        layers = [GateLayer(weight=drawn(a, b), bias=shift(b)) for a, b in pairwise(sizes)]
    else:
        start = size if kind is GateKind.VECTOR_MLP else 1
        sizes = [start, 1] if kind is GateKind.LINEAR else [start, 4, 3, 1]
        layers = [GateLayer(weight=drawn(components, a, b), bias=shift(components, b)) for a, b in pairwise(sizes)]
    return GateFunction(kind=kind, layers=tuple(layers), sigmoid=sigmoid)


class Small(nn.Module):
    def __init__(self, *, convolutional: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1) if convolutional else nn.Linear(6, 4)
        self.second = nn.Conv2d(4, 3, 1) if convolutional else nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.first(x)))


# The kinds with one sigmoid, and the sigmoids with one kind: neither knows of the other.
KINDS = [
    *((kind, True, (2, 2, 5, 5), Sigmoid.LEAKY_HARD) for kind in (GateKind.MLP, GateKind.LINEAR)),
    *((kind, False, shape, Sigmoid.NORMAL) for kind in GateKind for shape in ((3, 6), (2, 5, 6))),
    *((GateKind.MLP, False, (3, 6), sigmoid) for sigmoid in Sigmoid),
]


@pytest.mark.parametrize(("kind", "convolutional", "shape", "sigmoid"), KINDS)
@pytest.mark.sampled(6)
def test_gates_of_every_kind_and_sigmoid(
    kind: GateKind, convolutional: bool, shape: tuple[int, ...], sigmoid: Sigmoid
) -> None:
    random = np.random.default_rng(0)
    module, x = Small(convolutional=convolutional), torch.randn(shape)
    sizes = {"first": (4, 6), "second": (3, 4)}
    gates = {name: gate(kind, sigmoid, c, size, random) for name, (c, size) in sizes.items()}
    for mode in GateMode:
        program, gated, plan = placed(module, x, gates, gates=mode)
        found = evaluate(gated, (x,))
        model = of_program(program, (x,), {})
        right = evaluate_masked(model, model, plan.decisions, {})
        expected = [*right.outputs, *(right.further[name] for name in plan.runtime_outputs)]
        for mine, theirs in zip(found, expected, strict=True):
            # Both are in float64; a slope of 0.01 is written in float32 nowhere.
            np.testing.assert_allclose(mine.numpy(), theirs.numpy(), rtol=0, atol=1e-12 + 1e-12 * theirs.abs().max())
        # One grouped operation for each of the function's maps, in every layer.
        maps = [n for n in gated.graph.nodes if n.target in CONVOLUTIONS and n.args[-1] in (3, 4) and len(n.args) == 7]
        grouped = len(gates["first"].layers) - (kind is GateKind.VECTOR_MLP)
        assert len(maps) == (0 if kind is GateKind.SHARED_MLP else 2 * grouped)


@pytest.mark.parametrize("sigmoid", list(Sigmoid))
@pytest.mark.sampled(3)
def test_gates_in_onnx_runtime(tmp_path: Path, sigmoid: Sigmoid) -> None:
    random = np.random.default_rng(1)
    module, x = Small(convolutional=False), torch.randn(2, 6)
    kinds = {"first": GateKind.VECTOR_MLP, "second": GateKind.MLP}
    gates = {
        name: gate(kinds[name], sigmoid, c, size, random)
        for name, (c, size) in {"first": (4, 6), "second": (3, 4)}.items()
    }
    program, gated, plan = placed(module, x, gates, gates=GateMode.EXACT)
    ir.save(export_onnx(gated, outputs=plan.runtime_outputs).model, tmp_path / "m.onnx")
    more = torch.randn(5, 6)
    model = of_program(program, (more,), {})
    right = evaluate_masked(model, model, plan.decisions, {})
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    names = ["output", *plan.runtime_outputs]
    expected = [*right.outputs, *(right.further[name] for name in plan.runtime_outputs)]
    for mine, theirs in zip(session.run(names, {"x": more.numpy()}), expected, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_gates_of_the_layers_input_are_refused_for_convolutions() -> None:
    random = np.random.default_rng(0)
    gates = {"first": gate(GateKind.SHARED_MLP, Sigmoid.HARD, 4, 6, random)}
    with pytest.raises(UsageError, match="kind shared_mlp, which SPD has for linear layers alone"):
        placed(Small(convolutional=True), torch.randn(2, 2, 5, 5), gates, gates=GateMode.LOCAL)


def test_a_gate_of_a_layer_that_is_called_twice_is_refused() -> None:
    gates = {"conv": gate(GateKind.MLP, Sigmoid.HARD, 3, 27, np.random.default_rng(0))}
    with pytest.raises(UsageError, match="conv is called more than once"):
        placed(Twice(), torch.randn(2, 3, 5, 5), gates, gates=GateMode.LOCAL)


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        y.add_(1)
        return self.second(y)


def test_a_dense_pass_that_changes_values_in_place_is_refused() -> None:
    gates = {name: gate(GateKind.MLP, Sigmoid.HARD, 4, 4, np.random.default_rng(0)) for name in ("first", "second")}
    with pytest.raises(UsageError, match=r"add_.* which changes a value in place"):
        placed(InPlace(), torch.randn(2, 4), gates, gates=GateMode.EXACT)
    placed(InPlace(), torch.randn(2, 4), gates, gates=GateMode.LOCAL)


class Folded(nn.Module):
    """A layer that runs on the patches of each sample as samples of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.reshape(-1, 3)).reshape(x.shape[0], -1)


def test_a_layer_on_another_batch_than_the_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"runs on a batch of 4\*batch, and the model on one of batch: no mask for"):
        spdexport.convert(Folded(), tmp_path / "m.onnx", inputs=torch.randn(2, 12), runtime_masks="all")


def test_masks_for_locations_of_a_size_that_is_computed_are_refused(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3, stride=2))
    options: dict[str, Any] = {"inputs": torch.randn(2, 1, 8, 8), "dynamic": "input:2=height"}
    with pytest.raises(UsageError, match="whose number is computed from the input's size"):
        spdexport.convert(module, tmp_path / "m.onnx", runtime_masks="all", runtime_masks_per_location=True, **options)
    np.savez(tmp_path / "m.npz", **{"0": np.ones((3, 3, 2))})
    with pytest.raises(MaskError, match="is for 3x3 locations, and the layer's output changes its size"):
        spdexport.convert(module, tmp_path / "m.onnx", masks=tmp_path / "m.npz", **options)


def test_masks_for_tokens_of_a_dynamic_number(tmp_path: Path) -> None:
    result = spdexport.convert(
        Tokens(),
        tmp_path / "m.onnx",
        inputs=torch.randn(2, 7, 6),
        dynamic="x:1=tokens",
        runtime_masks="all",
        runtime_masks_per_location=True,
    )
    assert result.verification is not None
    assert result.verification.verdict is Status.PASS
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    random = np.random.default_rng(0)
    feeds = {"x": random.random((3, 9, 6)), "mask/first": random.random((3, 9, 6)), "mask/second": np.ones((1, 1, 4))}
    (found,) = session.run(None, {k: v.astype(np.float32) for k, v in feeds.items()})
    assert found.shape == (3, 9, 4)
