"""Files whose layers are one with what does nothing between them, or with branches whose weights are products."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from fold_networks import KINDS, Draw, onnx_model
from torch import nn
from torch.nn import functional

from spdexport.folding import fold
from spdexport.model_files import save_program
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.torch_graph import list_sites
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENDINGS = (".onnx", ".pt2")


def written(module: nn.Module, x: torch.Tensor, path: Path) -> Path:
    """A module's file; of ONNX as torch's exporter leaves it without its optimizer, which computes and removes much."""
    program = torch.export.export(module.eval(), (x,))
    if path.suffix == ".pt2":
        save_program(program, path)
    else:
        torch.onnx.export(program, dynamo=True, optimize=False, verbose=False).save(path)
    return path


def layers_of(path: Path) -> list[np.ndarray]:
    """The weights of all layers of a file, of a matrix product that of the linear layer."""
    if path.suffix == ".pt2":
        return [np.asarray(site.weight) for site in list_sites(torch.export.load(path))[0]]
    graph = ir.load(path).graph
    held = [node.inputs[1].const_value.numpy() for node in graph if node.op_type in ("Conv", "Gemm")]
    return held + [node.inputs[1].const_value.numpy().T for node in graph if node.op_type == "MatMul"]


# --- what does nothing ---


class Between(nn.Module):
    """Two convolutions, or two linear layers, and something between them that changes nothing."""

    def __init__(self, nothing: Callable[[torch.Tensor], torch.Tensor], *, linear: bool) -> None:
        super().__init__()
        self.nothing = nothing
        self.first: nn.Module = nn.Linear(4, 3) if linear else nn.Conv2d(4, 3, 3)
        self.second: nn.Module = nn.Linear(3, 5) if linear else nn.Conv2d(3, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.nothing(self.first(x))))


NOTHINGS = {
    "reshape": lambda x: x.reshape(2, 3, 6, 6),
    "reshape of sizes": lambda x: x.reshape(x.shape),
    "view with a size left open": lambda x: x.view(2, 3, -1, 6),
    "squeeze of an axis": lambda x: x.squeeze(3),
    "squeeze of all": torch.squeeze,
    "flatten of one axis": lambda x: x.flatten(1, 1),
    "expand": lambda x: x.expand(2, 3, 6, 6),
    "contiguous": lambda x: x.contiguous(),
    "clone": torch.clone,
    "the same type": lambda x: x.to(torch.float32),
    "identity": nn.Identity(),
    "dropout": lambda x: functional.dropout(x, 0.5, training=False),
    "channels dropped out": lambda x: functional.dropout2d(x, 0.5, training=False),
    "no padding": lambda x: functional.pad(x, (0, 0, 0, 0)),
    "several": lambda x: functional.dropout(x.reshape(2, 3, 6, 6).flatten(1, 1), 0.1, training=False).clone(),
}
OF_LINEAR = {
    "reshape": lambda x: x.reshape(2, 3),
    "flatten": lambda x: x.flatten(1),
    "squeeze": lambda x: x.squeeze(0),
    "dropout": lambda x: functional.dropout(x, 0.5, training=False),
}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", [*NOTHINGS, *(f"linear, {name}" for name in OF_LINEAR)])
def test_what_does_nothing_is_seen_through(tmp_path: Path, name: str, ending: str) -> None:
    linear = name.startswith("linear, ")
    module = Between(OF_LINEAR[name.removeprefix("linear, ")] if linear else NOTHINGS[name], linear=linear)
    x = torch.randn(2, 4) if linear else torch.randn(2, 4, 8, 8)
    source = written(module, x, tmp_path / f"in{ending}")
    result = fold(source, tmp_path / f"out{ending}", verify=name in ("several", "linear, flatten"))
    assert [chain.spec.describe() for chain in result.folded] == ["4>5" if linear else "4>5 3x3"]
    assert result.declined == ()
    assert result.verdict in (Status.PASS, Status.NOT_RUN)
    (found,) = layers_of(tmp_path / f"out{ending}")
    first, second = (layer.weight.detach().double().numpy() for layer in (module.first, module.second))
    right = np.tensordot(second.reshape(5, 3), first, axes=(1, 0))
    assert np.abs(found - right).max() <= 1e-6 * np.abs(right).max()


# --- branches whose weights are products ---


class Adapted(nn.Module):
    """A layer with an adapter beside it, as adapters run: the product of its factors is computed in the graph."""

    def __init__(self, kind: str, *, linear: bool) -> None:
        super().__init__()
        self.kind, self.linear, k = kind, linear, 1 if linear else 9
        self.base: nn.Module = nn.Linear(16, 48) if linear else nn.Conv2d(16, 48, 3, padding=1)
        shapes = {
            "loha": {"w1_a": (48, 24), "w1_b": (24, 16 * k), "w2_a": (48, 24), "w2_b": (24, 16 * k)},
            "lokr": {"w1": (2, 2), "w2_a": (24, 50), "w2_b": (50, 8 * k)},
            "tucker": {"w1_a": (12, 48), "w1_b": (12, 16), "t1": (12, 12, 3, 3), "w2_a": (12, 48), "w2_b": (12, 16),
                       "t2": (12, 12, 3, 3)},
        }[kind]  # fmt: skip
        self.register_buffer("none", torch.zeros(48))
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))

    def change(self) -> torch.Tensor:
        """What the adapter adds to the weight."""
        if self.kind == "loha":
            return ((self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)).reshape(self.base.weight.shape)
        if self.kind == "lokr":
            second = (self.w2_a @ self.w2_b).reshape(24, 8, *self.base.weight.shape[2:])
            first = self.w1 if self.linear else self.w1[:, :, None, None]
            return torch.kron(first, second)
        parts = [(self.t1, self.w1_a, self.w1_b), (self.t2, self.w2_a, self.w2_b)]
        one, two = (torch.einsum("ijkl,jr,ip->prkl", t, b, a) for t, a, b in parts)
        return one * two

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change = self.change()
        beside = functional.linear(x, change) if self.linear else functional.conv2d(x, change, self.none, padding=1)
        return torch.relu(self.base(x) + 0.75 * beside)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("kind", "linear"), [("loha", False), ("loha", True), ("lokr", False), ("lokr", True), ("tucker", False)]
)
def test_an_adapter_beside_a_layer_is_one_with_it(tmp_path: Path, kind: str, linear: bool, ending: str) -> None:
    """LoHa and LoKr, as LyCORIS and peft run them."""
    module = Adapted(kind, linear=linear)
    x = torch.randn(2, 16) if linear else torch.randn(2, 16, 7, 7)
    source = written(module, x, tmp_path / f"in{ending}")
    result = fold(source, tmp_path / f"out{ending}")
    assert (len(result.folded), result.declined, result.verdict) == (1, (), Status.PASS)
    (found,) = layers_of(tmp_path / f"out{ending}")
    with torch.no_grad():
        right = (module.double().base.weight + 0.75 * module.change()).numpy()
    assert np.abs(found - right).max() <= 1e-6 * np.abs(right).max()


# --- what is cheaper ---


def macs(model: onnx.ModelProto) -> float:
    """Multiply-accumulates of the convolutions and poolings of a graph, for one sample."""
    infos = (*model.graph.value_info, *model.graph.output, *model.graph.input)
    shapes = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in infos}
    held = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    total = 0.0
    for node in model.graph.node:
        places = math.prod(shapes.get(node.output[0], [0])[2:])
        if node.op_type == "Conv":
            total += places * math.prod(held[node.input[1]])
        elif node.op_type == "AveragePool":
            kernel = next(a.ints for a in node.attribute if a.name == "kernel_shape")
            total += places * shapes[node.output[0]][1] * math.prod(kernel)
    return total


def check_cheaper(kind: str, seed: int) -> None:
    """Never dearer than the file as it is, nor than the one layer."""
    draw = Draw(seed)
    module, x = draw.module(kind), draw.input()
    model = onnx_model(module, x)
    every, cheaper = (fold_onnx(ir.from_proto(model), if_cheaper=only) for only in (False, True))
    before, most, least = (
        macs(onnx.shape_inference.infer_shapes(m)) for m in (model, *(ir.to_proto(r.model) for r in (every, cheaper)))
    )
    assert least <= min(before, most) + 1e-9, (kind, seed, before, most, least)
    assert cheaper.declined or least == most, (kind, seed)


@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_if_cheaper_is_never_dearer(kind: str) -> None:
    for seed in range(12):
        check_cheaper(kind, seed)


@pytest.mark.long
@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_if_cheaper_is_never_dearer_of_two_thousand(kind: str) -> None:
    for seed in range(100, 2100):
        check_cheaper(kind, seed)
