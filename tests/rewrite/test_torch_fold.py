"""Folding of torch programs: back to the very program that was factorized, and what must not be folded."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from spdexport.arrays import to_numpy
from spdexport.factors import Factors, expected_shapes
from spdexport.forms import factorized, fold_form
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.torch_fold import ProgramFold, fold_program
from spdexport.rewrite.torch_graph import list_sites
from spdexport.rewrite.torch_place import place_forms

if TYPE_CHECKING:
    from torch.export import ExportedProgram

CONVS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def export(module: nn.Module, x: torch.Tensor) -> ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(module.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))


def calls(program: ExportedProgram) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


def written(program: ExportedProgram) -> list[tuple[Any, ...]]:
    """All nodes with their arguments, the result's shape, and the module they came from."""
    return [
        (n.op, n.name, n.target, str(n.args), str(n.kwargs), str(getattr(n.meta.get("val"), "shape", "")),
         str(n.meta.get("nn_module_stack")))
        for n in program.graph.nodes
    ]  # fmt: skip


def same(after: ExportedProgram, before: ExportedProgram, x: torch.Tensor, tolerance: float = 1e-6) -> None:
    """The two agree in float64 but for the rounding of the new weight."""
    (got,), (right,) = evaluate(after, (x,)), evaluate(before, (x,))
    assert got.shape == right.shape
    assert (got - right).abs().max() <= tolerance * right.abs().max()


# --- back to the program that was factorized ---


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A layer with an activation behind it, of any geometry, and an input of two samples."""
    axes = draw(st.integers(0, 3))
    torch.manual_seed(draw(st.integers(0, 1000)))
    bias = draw(st.booleans())
    if axes == 0:
        layer: nn.Module = nn.Linear(draw(st.integers(1, 4)), draw(st.integers(1, 4)), bias=bias)
        shape = (2, *draw(st.sampled_from(((), (3,)))), layer.in_features)
    else:
        groups = draw(st.sampled_from((1, 1, 2)))
        kernel = tuple(draw(st.integers(1, 3)) for _ in range(axes))
        dilation = draw(st.integers(1, 2))
        same_padding = draw(st.booleans())
        layer = CONVS[axes](
            groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3)), kernel, bias=bias, groups=groups,
            dilation=dilation, stride=1 if same_padding else draw(st.integers(1, 2)),
            padding="same" if same_padding else draw(st.integers(0, 1)),
        )  # fmt: skip
        shape = (2, layer.in_channels, *(dilation * (k - 1) + 2 for k in kernel))
    return nn.Sequential(layer, nn.ReLU()), torch.randn(shape)


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(layers(), st.booleans(), st.booleans())
def test_folding_gives_back_the_program_that_was_factorized(
    layer: tuple[nn.Module, torch.Tensor], keep_mask: bool, keep_delta: bool
) -> None:
    module, x = layer
    program = export(module, x)
    (site,), _ = list_sites(program)
    rng = np.random.default_rng(0)
    v, u = (rng.standard_normal(s).astype(np.float32) for s in expected_shapes(site.spec, 3))
    mask = rng.choice([0.0, 0.5, 1.0], size=(*v.shape[:-2], 3)).astype(np.float32)
    delta = rng.standard_normal(site.weight.shape).astype(np.float32) if keep_delta else None
    form = factorized(site.spec, Factors(V=v, U=u, mask=mask), site.bias, delta=delta, keep_mask=keep_mask)
    placed = place_forms(program, [(site, form)])
    result = fold_program(placed)

    assert written(result.program) == written(program)
    assert result.program.graph_signature == program.graph_signature
    assert result.program.state_dict.keys() == program.state_dict.keys()
    wanted = np.asarray(fold_form(form).weight)
    got = to_numpy(result.program.state_dict["0.weight"])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted.astype(np.float32))
    assert result.program.state_dict.get("0.bias") is program.state_dict.get("0.bias")
    (chain,) = result.folded
    assert (chain.name, chain.spec, result.declined) == ("0", site.spec, ())
    assert chain.nodes[-1] == site.node
    same(result.program, placed, torch.randn(5, *x.shape[1:]))


@pytest.mark.parametrize("padding", ["same", 1])
def test_factorizing_and_folding_leave_no_guards_on_the_batch(padding: str | int) -> None:
    program = export(nn.Sequential(nn.Conv2d(3, 4, (2, 3), padding=padding)), X)
    (site,), _ = list_sites(program)
    V, U = (np.ones(s, dtype=np.float32) for s in expected_shapes(site.spec, 3))
    placed = place_forms(program, [(site, factorized(site.spec, Factors(V=V, U=U), site.bias))])
    for edited in (placed, fold_program(placed).program):
        file = io.BytesIO()
        torch.export.save(edited, file)
        file.seek(0)
        assert torch.export.load(file).module()(torch.randn(33, 3, 8, 8)).shape[:2] == (33, 4)
        nodes = [node for node in edited.graph.nodes if node.op == "call_function"]
        assert all(isinstance(node.meta["val"].shape[0], torch.SymInt) for node in nodes)


# --- modules that are written with V, mask, U and delta ---


class Block(nn.Module):
    """V, [mask], U, [delta], each on either side of its operator, biases anywhere."""

    def __init__(self, *, mask_left: bool = False, delta_left: bool = False, inplace: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.V = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.U = nn.Conv2d(4, 5, 1)
        self.delta = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.register_buffer("mask", torch.rand(4))
        self.mask_left, self.delta_left, self.inplace = mask_left, delta_left, inplace

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, mask = self.V(x), self.mask.view(-1, 1, 1)
        if self.inplace:
            y *= mask
        else:
            y = mask * y if self.mask_left else y * mask
        y = self.U(2.0 * y + 0.5)
        if self.inplace:
            y += self.delta(x)
            return y
        return self.delta(x) + y if self.delta_left else y + self.delta(x)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("options", [{}, {"mask_left": True}, {"delta_left": True}, {"inplace": True}])
def test_a_block_becomes_one_convolution(options: dict[str, bool]) -> None:
    program = export(nn.Sequential(Block(**options), nn.ReLU(inplace=True), nn.Conv2d(5, 2, 3)), X)
    result = fold_program(program)
    assert [c for c in calls(result.program) if "relu" not in c] == ["aten.conv2d.default"] * 2
    assert set(result.program.state_dict) == {"0.weight", "0.U.bias", "2.weight", "2.bias"}
    assert result.folded[0].macs_before == (4 + 5) * 27 + 4 * 5
    assert result.folded[0].macs_after == 5 * 27
    same(result.program, program, torch.randn(5, 3, 9, 9)[:, :, :8, :8])


def test_the_argument_is_unchanged_and_other_tensors_are_shared() -> None:
    program = export(nn.Sequential(Block(), nn.ReLU(), nn.Conv2d(5, 2, 3)), X)
    before, names = written(program), list(program.state_dict)
    result = fold_program(program)
    assert written(program) == before
    assert list(program.state_dict) == names
    assert result.program.state_dict["2.weight"] is program.state_dict["2.weight"]


def test_the_result_is_saved_and_loaded_by_plain_torch() -> None:
    program = export(Block(), X)
    file = io.BytesIO()
    torch.export.save(fold_program(program).program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    x = torch.randn(7, 3, 8, 8)
    right = program.module()(x)
    assert (loaded.module()(x) - right).abs().max() <= 2e-6 * right.abs().max()


def test_a_program_without_factors_is_given_back_itself() -> None:
    program = export(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), X)
    result = fold_program(program)
    assert result.program is program
    assert result.folded == result.declined == ()


def test_folding_again_changes_nothing() -> None:
    folded = fold_program(export(Block(), X)).program
    assert fold_program(folded).program is folded


class Twice(nn.Module):
    """One pair of factors, called twice, with a bias that another layer has too."""

    def __init__(self) -> None:
        super().__init__()
        self.V, self.U, self.other = nn.Linear(4, 2, bias=False), nn.Linear(2, 4), nn.Linear(4, 4)
        self.other.bias = self.U.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.U(self.V(x)))
        return self.other(torch.relu(self.U(self.V(x))))


def test_a_layer_that_is_called_twice_has_one_weight() -> None:
    program = export(Twice(), torch.randn(2, 4))
    result = fold_program(program)
    assert calls(result.program).count("aten.linear.default") == 3
    assert len(result.folded) == 2
    assert len(result.program.state_dict) == len([n for n in program.state_dict if n != "V.weight"])
    same(result.program, program, torch.randn(5, 4))


def test_a_bare_parameter_keeps_its_name() -> None:
    program = export(nn.Linear(4, 3), torch.randn(2, 4))
    (site,), _ = list_sites(program)
    V, U = site.weight.T.copy(), np.eye(3, dtype=np.float32)
    form = factorized(site.spec, Factors(V=V, U=U), site.bias)
    assert set(fold_program(place_forms(program, [(site, form)])).program.state_dict) == {"weight", "bias"}


def test_a_lowered_program_folds_to_linear_layers_and_convolutions() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = Block(), Twice()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.conv(x)).mean((2, 3))[:, :4])

    program = export(Both(), X).run_decompositions()
    result = fold_program(program)
    assert [chain.name for chain in result.folded] == ["conv", "head", "head"]
    assert calls(result.program).count("aten.convolution.default") == 1
    same(result.program, program, torch.randn(5, 3, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_stay_what_they_are(dtype: torch.dtype) -> None:
    program = export(Block().to(dtype), X.to(dtype))
    result = fold_program(program)
    assert result.program.state_dict["weight" if "weight" in result.program.state_dict else "U.weight"].dtype == dtype
    same(result.program, program, X.to(dtype), 1e-12 if dtype is torch.float64 else 2e-2)


# --- what is not one layer ---


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.V, self.U = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 5, 1)
        self.wide, self.behind = nn.Conv2d(4, 5, 3), nn.Conv2d(5, 5, 3)
        self.padded = nn.Conv2d(3, 5, 3, padding=1)
        self.register_buffer("mask", torch.rand(4, 1, 1))
        self.register_buffer("map", torch.rand(4, 6, 6))
        self.register_buffer("mean", torch.rand(4))
        self.register_buffer("variance", torch.rand(4))


class Used(Layers):
    def forward(self, x: torch.Tensor) -> Any:
        v = self.V(x)
        return self.U(v), torch.relu(v)


class GivenOut(Layers):
    def forward(self, x: torch.Tensor) -> Any:
        v = self.V(x)
        return self.U(v), v


class Padded(Layers):
    """V reads beyond its own padding, where the next layer has zeros."""

    def forward(self, x: torch.Tensor) -> Any:
        return functional.conv2d(self.V(x), self.wide.weight, padding=1)


class BiasInFront(Layers):
    def forward(self, x: torch.Tensor) -> Any:
        return functional.conv2d(self.U(x[:, :1].repeat(1, 4, 1, 1)), self.behind.weight, padding=1)


class TrainedNorm(Layers):
    def forward(self, x: torch.Tensor) -> Any:
        y = functional.batch_norm(self.V(x), self.mean, self.variance, training=True)
        return self.U(y)


class MaskOfPlaces(Layers):
    def forward(self, x: torch.Tensor) -> Any:
        return self.U(self.V(x) * self.map)


class ComputedMask(Layers):
    def forward(self, x: torch.Tensor) -> Any:
        return self.U(self.V(x) * x.mean())


class ChangedMask(Layers):
    """The signature of a traced program does not tell of this change."""

    def forward(self, x: torch.Tensor) -> Any:
        y = self.U(self.V(x) * self.mask)
        self.mask.view(-1).add_(1.0)
        return y


class ChangedInput(Layers):
    def forward(self, x: torch.Tensor) -> Any:
        x = x + 1
        v = self.V(x)
        x.add_(1)
        return self.U(v) + x.mean()


class ComputedWeight(Layers):
    def forward(self, x: torch.Tensor) -> Any:
        return functional.conv2d(self.V(x), self.U.weight * x.mean())


class OtherType(Layers):
    def __init__(self) -> None:
        super().__init__()
        self.U, self.mask = self.U.double(), self.mask.double()

    def forward(self, x: torch.Tensor) -> Any:
        return self.U(self.V(x) * self.mask)


NOT_CONSTANT = "the mask between is not constant"
DECLINED = {
    Used: "what is between is used elsewhere",
    GivenOut: "what is between is an output of the graph",
    Padded: "the second pads along axis 0, where the first would go on with values that are not zero",
    BiasInFront: "the first has a bias, and the second pads with zeros what the bias is added to",
    TrainedNorm: "the batch norm between is in training mode",
    MaskOfPlaces: "what comes between is multiplied by a constant that is not one number per channel",
    ComputedMask: NOT_CONSTANT,
    ChangedMask: NOT_CONSTANT,
    ChangedInput: "an operator between the layers changes a tensor in place",
    ComputedWeight: "its weight is not constant",
    OtherType: "the type changes between the layers",
}


@pytest.mark.parametrize("module", DECLINED, ids=lambda cls: cls.__name__)
def test_what_is_not_one_layer_is_declined(module: type[Layers]) -> None:
    program = export(module(), X)
    result = fold_program(program)
    assert result.program is program
    assert [skipped.reason for skipped in result.declined] == [DECLINED[module]]


def test_a_delta_of_another_geometry_stays_beside_the_folded_chain() -> None:
    class Beside(Layers):
        def forward(self, x: torch.Tensor) -> Any:
            return self.U(self.V(x)) + self.padded(x)[:, :, 1:-1, 1:-1]

    class Unequal(Layers):
        def forward(self, x: torch.Tensor) -> Any:
            return self.U(self.V(x)) + functional.conv2d(x, self.padded.weight[:, :, :1, :1], stride=8)

    for module, reasons in ((Beside, []), (Unequal, ["what is added to it has another stride"])):
        program = export(module(), X)
        result: ProgramFold = fold_program(program)
        assert len(result.folded) == 1
        assert [skipped.reason for skipped in result.declined] == reasons
        assert calls(result.program).count("aten.conv2d.default") == 2
        same(result.program, program, X)


def test_a_scaled_sum_and_a_gate_are_no_part_of_a_layer() -> None:
    class Scaled(Layers):
        def forward(self, x: torch.Tensor) -> Any:
            v = self.V(x)
            return torch.add(self.U(v * torch.sigmoid(v)), self.padded(x)[:, :, 1:-1, 1:-1], alpha=2)

    result = fold_program(export(Scaled(), X))
    assert result.folded == result.declined == ()


def test_a_layer_that_overflows_its_type_is_declined() -> None:
    module = Layers()
    for parameter in module.parameters():
        parameter.data.fill_(3e4)
    program = export(nn.Sequential(module.V, module.U).half(), X.half())
    (declined,) = fold_program(program).declined
    assert declined.reason == "the folded weight does not fit the type float16"


class Transposed(nn.Module):
    """Layers in a row, the first of them transposed."""

    def __init__(self, first: nn.ConvTranspose1d, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(self.first(x))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (
            Transposed(nn.ConvTranspose1d(2, 3, 2, stride=2), nn.Conv1d(3, 4, 2, padding="same")),
            "torch has no transposed convolution that crops one end more than the other",
        ),
        (
            Transposed(nn.ConvTranspose1d(2, 3, 3, dilation=3, output_padding=2), nn.ConvTranspose1d(3, 4, 2)),
            "torch has no transposed convolution with so much output padding",
        ),
    ],
)
def test_what_torch_cannot_compute_in_one_layer_is_declined(module: nn.Module, reason: str) -> None:
    for layer in (module.first, module.second):
        layer.bias = None
    program = export(module, torch.randn(2, 2, 9))
    result = fold_program(program)
    assert result.program is program
    assert [skipped.reason for skipped in result.declined] == [reason]


def test_layers_behind_another_that_cannot_be_read_are_told() -> None:
    class Vector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.vector = nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> Any:
            return functional.linear(self.linear(x), self.vector)

    (declined,) = fold_program(export(Vector(), torch.randn(2, 4))).declined
    assert declined.reason == "its weight or its bias has an unusual shape"
    complex_layers = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).to(torch.complex64)
    assert fold_program(export(complex_layers, torch.randn(2, 4, dtype=torch.complex64))).folded == ()
