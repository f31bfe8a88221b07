"""Faults where inputs hardly come to: the weights edge finds them in whole files, from the command line too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from cli_command import spdexport as command
from onnx import helper, numpy_helper
from onnx_models import model
from planting import one_off, planted, weight
from torch import nn

import spdexport
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Edit = Callable[[onnx.ModelProto], None]

pytestmark = pytest.mark.slow


class Branching(nn.Module):
    """A branch that is taken where the mean is above 50, which no input that is drawn comes to."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.rare = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def rare(x: torch.Tensor) -> torch.Tensor:
            return self.rare(x) * 2

        def often(x: torch.Tensor) -> torch.Tensor:
            return self.often(x).clamp(-3.0, 3.0)

        y: torch.Tensor = torch.cond(x.mean() > 50, rare, often, (x,))
        return self.last(y).clamp(-40.0, 40.0)


@pytest.fixture(scope="module")
def branching(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("branching")
    torch.manual_seed(0)
    net = torch.export.export(Branching().eval(), (torch.randn(2, 3, 8, 8),))
    found = spdexport.convert(net, folder / "net.onnx", inputs=(torch.randn(2, 3, 8, 8),))
    assert found.verdict is Status.PASS
    return net, folder / "net.onnx"


def bodies(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    found = next(n for n in proto.graph.node if n.op_type == "If")
    return [a.g for a in found.attribute]


def negated(proto: onnx.ModelProto) -> None:
    """The weight of the rare branch, wherever the exporter keeps it."""
    held = [t for graph in (proto.graph, *bodies(proto)) for t in graph.initializer if t.name == "rare.weight"]
    held[0].CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(held[0]), held[0].name))


def bound(proto: onnx.ModelProto) -> None:
    """The upper bound of the clamp in the other branch."""
    clip = next(n for graph in bodies(proto) for n in graph.node if n.op_type == "Clip")
    for graph in (proto.graph, *bodies(proto)):
        for tensor in graph.initializer:
            if tensor.name == clip.input[2]:
                tensor.CopyFrom(numpy_helper.from_array(np.float32(3.5).reshape(tensor.dims), tensor.name))
        for n in graph.node:
            if n.op_type == "Constant" and clip.input[2] in n.output:
                n.attribute[0].t.CopyFrom(numpy_helper.from_array(np.float32(3.5), "bound"))


@pytest.mark.parametrize(("edit", "layer"), [(negated, "rare"), (bound, "")], ids=["negated", "bound"])
def test_a_fault_in_a_branch(branching: tuple[Any, Path], tmp_path: Path, edit: Edit, layer: str) -> None:
    net, file = branching
    wrong = planted(file, edit, tmp_path / "wrong.onnx")
    found = spdexport.verify(wrong, against=net, inputs=(torch.randn(2, 3, 8, 8),))
    assert found.verdict is Status.FAIL
    edge = next(e for e in found.edges if e.edge == "weights")
    assert edge.status is Status.FAIL
    assert "branch of If" in edge.reason
    assert layer in (edge.first_divergence or "")
    # Of two files that spdexport made, the weights are compared, whatever hash they carry.
    apart = spdexport.verify(wrong, against=file)
    assert apart.verdict is Status.FAIL
    assert next(e for e in apart.edges if e.edge == "weights").status is Status.FAIL


def clipped(high: float) -> onnx.ModelProto:
    """A Clip whose bound no input that is drawn comes to, in a local function."""
    constants = [("low", -1e4), ("high", high)]
    inner = [
        helper.make_node("Constant", [], [n], value=numpy_helper.from_array(np.float32(v), n)) for n, v in constants
    ]
    clip = helper.make_node("Clip", ["a", "low", "high"], ["b"])
    function = helper.make_function("local", "bounded", ["a"], ["b"], [*inner, clip], [helper.make_opsetid("", 18)])
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"]),
        helper.make_node("bounded", ["c"], ["d"], domain="local"),
        helper.make_node("Conv", ["d", "last.weight"], ["y"]),
    ]
    weights = {
        "conv.weight": rng.standard_normal((6, 3, 3, 3)).astype(np.float32),
        "last.weight": rng.standard_normal((4, 6, 1, 1)).astype(np.float32),
    }
    made = model(
        nodes, inputs={"x": ["N", 3, 8, 8]}, outputs={"y": ["N", 4, 6, 6]}, weights=weights, domains=("local",)
    )
    made.functions.append(function)
    return made


def test_a_bound_in_a_function_of_an_onnx_source(tmp_path: Path) -> None:
    onnx.save(clipped(1e4), tmp_path / "source.onnx")
    onnx.save(clipped(2e4), tmp_path / "other.onnx")
    for name in ("source", "other"):
        made = command("convert", tmp_path / f"{name}.onnx", "-o", tmp_path / f"{name}-made.onnx")
        assert made.exit_code == 0, made.output
    right = command("verify", tmp_path / "source-made.onnx", "--against", tmp_path / "source.onnx")
    assert right.exit_code == 0, right.output
    wrong = command("verify", tmp_path / "other-made.onnx", "--against", tmp_path / "source.onnx")
    assert wrong.exit_code == 1
    assert "in the function bounded: Constant has value" in " ".join(wrong.output.split())
    # One that spdexport made against another one that it made.
    apart = command("verify", tmp_path / "other-made.onnx", "--against", tmp_path / "source-made.onnx")
    assert apart.exit_code == 1
    same = command("verify", tmp_path / "source-made.onnx", "--against", tmp_path / "source-made.onnx")
    assert same.exit_code == 0, same.output


def test_a_weight_between_two_files(tmp_path: Path) -> None:
    onnx.save(clipped(1e4), tmp_path / "source.onnx")
    for form in ("factorized", "dense"):
        spdexport.convert(tmp_path / "source.onnx", tmp_path / f"{form}.onnx", form=form, verify=False)
    # V and U against one dense layer: the same function, to rounding.
    found = spdexport.verify(tmp_path / "factorized.onnx", against=tmp_path / "dense.onnx")
    assert found.verdict is Status.PASS
    edge = next(e for e in found.edges if e.edge == "weights")
    assert edge.reason == "the graph is that of the other file, and every weight is, to rounding"
    planted(tmp_path / "factorized.onnx", weight("conv.V", one_off), tmp_path / "wrong.onnx")
    found = spdexport.verify(tmp_path / "wrong.onnx", against=tmp_path / "dense.onnx")
    edge = next(e for e in found.edges if e.edge == "weights")
    assert (edge.status, edge.first_divergence) == (Status.FAIL, "conv")
