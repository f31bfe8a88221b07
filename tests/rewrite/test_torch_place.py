from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CalledTwice, Functional, SmallNet
from torch import nn
from torch.export import Dim, ExportedProgram

from spdexport.conv import ConvSite
from spdexport.factors import Factors, masked_weight
from spdexport.forms import Form, dense, factorized
from spdexport.lowrank import svd_factors
from spdexport.rewrite.torch_graph import list_sites
from spdexport.rewrite.torch_place import place_forms


def program_of(module: nn.Module, x: torch.Tensor) -> ExportedProgram:
    return torch.export.export(module.eval(), (x,), dynamic_shapes=({0: Dim("batch")},))


def exact(site: ConvSite) -> Form:
    return factorized(site.spec, svd_factors(site.weight, site.spec), site.bias)


def factorize_all(program: ExportedProgram) -> ExportedProgram:
    return place_forms(program, [(site, exact(site)) for site in list_sites(program)[0]])


def difference(a: ExportedProgram, b: ExportedProgram, x: torch.Tensor) -> float:
    one, other = (torch.utils._pytree.tree_leaves(p.module()(x))[0].detach() for p in (a, b))
    return float((one - other).abs().max() / other.abs().max())


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A float64 Conv2d of any geometry and an input that it takes."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    into, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    padding = draw(st.one_of(st.just("same"), st.just("valid"), st.tuples(st.integers(0, 2), st.integers(0, 2))))
    stride = (1, 1) if padding == "same" else (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    torch.manual_seed(draw(st.integers(0, 99)))
    bias = draw(st.booleans())
    layer = nn.Conv2d(into, out, kernel, stride, padding, dilation, groups, bias=bias, dtype=torch.float64)
    return layer, torch.randn(2, into, 9, 8, dtype=torch.float64)


@settings(max_examples=25)
@given(convolutions())
def test_factorized_is_dense_in_float64_for_every_geometry(case: tuple[nn.Module, torch.Tensor]) -> None:
    layer, x = case
    program = program_of(layer, x)
    assert difference(factorize_all(program), program, x) < 1e-12


@settings(max_examples=15)
@given(convolutions(), st.integers(0, 9), st.booleans(), st.booleans())
def test_masks_and_deltas_are_the_effective_weight_in_float64(
    case: tuple[nn.Module, torch.Tensor], seed: int, keep_mask: bool, keep_delta: bool
) -> None:
    layer, x = case
    program = program_of(layer, x)
    (site,), _ = list_sites(program)
    exact_factors = svd_factors(site.weight, site.spec)
    rng = np.random.default_rng(seed)
    shape = (*exact_factors.V.shape[:-2], exact_factors.components)
    mask = rng.choice([0.0, 0.5, 1.0, -0.3], size=shape)
    delta = rng.normal(size=site.spec.weight_shape) if keep_delta else None
    factors = Factors(V=exact_factors.V, U=exact_factors.U, mask=mask)
    form = factorized(site.spec, factors, site.bias, delta=delta, keep_mask=keep_mask)
    weight = masked_weight(factors, site.spec) + (0 if delta is None else delta)
    placed = place_forms(program, [(site, form)])
    wanted = place_forms(program, [(site, dense(site.spec, weight, site.bias))])
    ours, right = (p.module()(x).detach() for p in (placed, wanted))
    scale = program.module()(x).detach().abs().max()
    assert float((ours - right).abs().max() / scale) < 1e-12
    assert ("weight.mask" in placed.state_dict) == keep_mask


def test_the_program_keeps_names_shapes_and_untouched_tensors() -> None:
    program = program_of(SmallNet(), torch.randn(2, 3, 16, 16))
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    text = str(program.graph)
    sites, _ = list_sites(program)
    placed = place_forms(program, [(sites[0], exact(sites[0]))])

    assert str(program.graph) == text
    assert all(torch.equal(program.state_dict[name], tensor) for name, tensor in before.items())
    assert set(placed.state_dict) == set(before) - {"stem.conv.weight"} | {"stem.conv.V", "stem.conv.U"}
    assert placed.state_dict["head.weight"].data_ptr() == program.state_dict["head.weight"].data_ptr()
    old, new = ([n.name for n in p.graph.nodes if n.op == "call_function"] for p in (program, placed))
    assert [n for n in new if n in old] == old
    assert placed.module()(torch.randn(5, 3, 16, 16)).shape == (5, 5)


def test_plain_torch_saves_loads_and_runs_it(tmp_path: Path) -> None:
    program = program_of(SmallNet(), torch.randn(2, 3, 16, 16))
    placed = factorize_all(program)
    torch.export.save(placed, tmp_path / "placed.pt2")
    loaded = torch.export.load(tmp_path / "placed.pt2")
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(loaded.module()(x), program.module()(x), rtol=1e-4, atol=1e-5)


def test_two_calls_of_one_layer_share_its_factors() -> None:
    program = program_of(CalledTwice(), torch.randn(2, 4, 6, 6))
    placed = factorize_all(program)
    assert set(placed.state_dict) == {"conv.V", "conv.U", "conv.bias"}
    assert difference(placed, program, torch.randn(3, 4, 6, 6)) < 1e-5


def test_a_weight_that_is_also_used_elsewhere_stays() -> None:
    program = program_of(Functional(), torch.randn(2, 3, 8, 8))
    placed = factorize_all(program)
    assert set(placed.state_dict) == {"first", "first_factors.V", "first_factors.U", "second.V", "second.U"}
    assert difference(placed, program, torch.randn(3, 3, 8, 8)) < 1e-5


def test_a_computed_weight_and_what_computed_it_are_gone() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    program = program_of(nn.Sequential(layer), torch.randn(2, 3, 8, 8))
    placed = factorize_all(program)
    assert set(placed.state_dict) == {"0.V", "0.U", "0.bias"}
    assert difference(placed, program, torch.randn(3, 3, 8, 8)) < 1e-5


@pytest.mark.parametrize("module", [nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3), nn.Conv3d(4, 6, 3)])
def test_lowered_programs_and_unbatched_inputs(module: nn.Module) -> None:
    x = torch.randn(4, *(6,) * (module.weight.ndim - 2))
    for program in (
        torch.export.export(module.eval(), (x,)),
        torch.export.export(module.eval(), (x[None],)).run_decompositions(),
    ):
        given = x if program.example_inputs[0][0].ndim == x.ndim else x[None]
        assert difference(factorize_all(program), program, given) < 1e-5


def test_lowered_linear_layers() -> None:
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False))
    program = program_of(module, torch.randn(2, 6)).run_decompositions()
    placed = factorize_all(program)
    assert set(placed.state_dict) == {"0.V", "0.U", "0.bias", "2.V", "2.U"}
    assert difference(placed, program, torch.randn(3, 6)) < 1e-5


def test_an_input_called_like_a_builtin_keeps_its_name() -> None:
    placed = factorize_all(program_of(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)))
    assert placed.graph_signature.user_inputs == ("input",)
    assert set(placed.state_dict) == {"weight.V", "weight.U", "bias"}
