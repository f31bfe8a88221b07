"""Random chains and sums become one convolution each, and it is the one that impulses through the source show."""

from __future__ import annotations

import warnings

import numpy as np
import onnx_ir as ir
import pytest
import torch
from fold_networks import KINDS, Draw, kernel_of, onnx_model

from spdexport.arrays import to_numpy
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.onnx_graph import read_layer
from spdexport.rewrite.torch_fold import fold_program
from spdexport.rewrite.torch_graph import list_sites


def close(got: np.ndarray, right: np.ndarray) -> bool:
    return got.shape == right.shape and bool(np.abs(got - right).max(initial=0) <= 1e-10 * (1 + np.abs(right).max()))


def check_onnx(kind: str, seed: int) -> None:
    """One Conv, and its kernel and bias are those that the source answers impulses with."""
    draw = Draw(seed)
    module, x = draw.module(kind), draw.input()
    model = onnx_model(module, x)
    result = fold_onnx(ir.from_proto(model))
    before, after = (OnnxReference(m) for m in (model, ir.to_proto(result.model)))
    right = before.run({"x": x.numpy()})["y"]
    assert close(module(x).detach().numpy(), right), (kind, seed)
    assert close(after.run({"x": x.numpy()})["y"], right), (kind, seed)
    if kind == "wild":
        return
    ops = [node.op_type for node in result.model.graph if node.op_type not in ("Identity", "Dropout")]
    assert ops == ["Conv"], (kind, seed, module, ops, result.declined)
    assert result.declined == (), (kind, seed)
    stage = next(s for node in result.model.graph if (s := read_layer(node)) is not None).stage
    kernel, bias = kernel_of(lambda v: before.run({"x": v})["y"], stage.spec, tuple(x.shape[2:]))
    groups, spec = stage.spec.groups, stage.spec
    whole = np.zeros((groups, spec.group_out, groups, spec.in_channels // groups, *spec.kernel))
    for group, own in enumerate(np.split(np.asarray(stage.weight), groups)):
        whole[group, :, group] = own
    whole = whole.reshape(kernel.shape)
    # A tap that only ever meets the zeros around so small an input leaves no answer.
    assert close(np.where(np.isnan(kernel), whole, kernel), whole), (kind, seed)
    assert close(np.zeros_like(bias) if stage.bias is None else stage.bias, bias), (kind, seed)


def check_torch(kind: str, seed: int) -> None:
    """One convolution, which computes in float64 what the source does."""
    draw = Draw(seed)
    module, x = draw.module(kind), draw.input()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    result = fold_program(program)
    (before,), (after,) = (evaluate(p, (x,)) for p in (program, result.program))
    assert close(to_numpy(after), to_numpy(before)), (kind, seed)
    if kind == "wild":
        return
    sites, _ = list_sites(result.program)
    assert len(sites) == 1, (kind, seed, module, result.declined)
    assert result.declined == (), (kind, seed)
    kinds = {str(node.target) for node in result.program.graph.nodes if node.op == "call_function"}
    assert not kinds & {"aten.batch_norm.default", "aten.add.Tensor", "aten.mul.Tensor", "aten.avg_pool2d.default"}
    assert fold_program(result.program).program is result.program, (kind, seed)


@pytest.mark.parametrize("kind", [*KINDS, "wild"])
def test_onnx_graphs(kind: str) -> None:
    for seed in range(40):
        check_onnx(kind, seed)


@pytest.mark.parametrize("kind", [*KINDS, "wild"])
def test_torch_programs(kind: str) -> None:
    for seed in range(100, 112):
        check_torch(kind, seed)


@pytest.mark.long
@pytest.mark.parametrize("kind", [*KINDS, "wild"])
def test_two_thousand_onnx_graphs(kind: str) -> None:
    for seed in range(1000, 3000):
        check_onnx(kind, seed)


@pytest.mark.long
@pytest.mark.parametrize("kind", [*KINDS, "wild"])
def test_two_thousand_torch_programs(kind: str) -> None:
    for seed in range(3000, 5000):
        check_torch(kind, seed)
