"""Weights that the graph computes: the same value however it is rounded, and another one where it is another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import spdexport
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.verification.computed import with_computed
from spdexport.verification.result import Status
from spdexport.verification.weights import weights_edge

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RNG = np.random.default_rng(0)
node = helper.make_node
# A row of zeros and one that is tiny, beside ordinary ones.
V = (RNG.standard_normal((6, 40, 3, 3)) * np.array([1, 1e-12, 1, 300, 1, 1]).reshape(-1, 1, 1, 1)).astype(np.float32)
G = RNG.standard_normal((6, 1, 1, 1)).astype(np.float32)


def model(nodes: list[onnx.NodeProto], **weights: np.ndarray) -> ir.Model:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 40, 6, 6])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(w, n.replace("__", ".")) for n, w in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


def stored(weight: np.ndarray) -> ir.Model:
    return model([node("Conv", ["x", "conv.weight"], ["y"])], conv__weight=weight.astype(np.float32))


def norm() -> ir.Model:
    nodes = [
        node("ReduceL2", ["conv.parametrizations.weight.original1", "axes"], ["n"], keepdims=1),
        node("Div", ["conv.parametrizations.weight.original1", "n"], ["d"]),
        node("Mul", ["d", "conv.parametrizations.weight.original0"], ["w"]),
        node("Conv", ["x", "w"], ["y"]),
    ]
    names = {"conv__parametrizations__weight__original0": G, "conv__parametrizations__weight__original1": V}
    return model(nodes, axes=np.array([1, 2, 3]), **names)


def standardized() -> ir.Model:
    nodes = [
        node("ReduceMean", ["conv.weight", "axes"], ["m"], keepdims=1),
        node("Sub", ["conv.weight", "m"], ["c"]),
        node("Mul", ["c", "c"], ["s"]),
        node("ReduceMean", ["s", "axes"], ["v"], keepdims=1),
        node("Add", ["v", "eps"], ["e"]),
        node("Sqrt", ["e"], ["r"]),
        node("Div", ["c", "r"], ["w"]),
        node("Conv", ["x", "w"], ["y"]),
    ]
    return model(nodes, conv__weight=V, axes=np.array([1, 2, 3]), eps=np.array([1e-5], np.float32))


def one_after_another(values: np.ndarray) -> np.ndarray:
    """The sum of the entries of each row as a simple loop in float32 has it."""
    return np.cumsum(values.reshape(len(values), -1), axis=1, dtype=np.float32)[:, -1].reshape(-1, 1, 1, 1)


def norm_in(kind: type[np.floating], total: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    v, g = V.astype(kind), G.astype(kind)
    return np.asarray(v / np.sqrt(total(v * v)) * g)


def standardized_in(kind: type[np.floating], total: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    v = V.astype(kind)
    n = kind(v[0].size)
    centred = v - total(v) / n
    return np.asarray(centred / np.sqrt(total(centred * centred) / n + kind(1e-5)))


def pairwise(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.sum(axis=(1, 2, 3), keepdims=True))


KINDS = {"weight norm": (norm, norm_in), "standardization": (standardized, standardized_in)}


@pytest.mark.parametrize(("graph", "of"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("total", [pairwise, one_after_another], ids=["pairwise", "one after another"])
def test_a_weight_that_was_folded_in_float32_is_the_computed_one(
    graph: Callable[[], ir.Model], of: Callable[..., np.ndarray], total: Callable[[np.ndarray], np.ndarray]
) -> None:
    for file, plain in ((stored(of(np.float32, total)), graph()), (graph(), stored(of(np.float32, total)))):
        found = weights_edge(file, plain)
        assert found.status is Status.PASS, found
        assert found.noise_ratio is not None
        assert found.noise_ratio < 4
    assert weights_edge(graph(), graph()).status is Status.PASS


def off(value: np.ndarray, place: int, by: float) -> np.ndarray:
    changed = value.copy()
    changed.flat[place] *= 1 + by
    return changed


@pytest.mark.parametrize(("graph", "of"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    "fault",
    [
        lambda w: off(w, 0, 1e-3),
        lambda w: off(w, int(np.abs(w).argmin()), 0.5),
        lambda w: off(w, 370, 0.01),  # in the row that is tiny
        lambda w: w.astype(ml_dtypes.bfloat16),
        lambda w: w.astype(np.float16),
        np.negative,
        lambda w: w[::-1],
    ],
)
def test_a_fault_in_a_folded_weight_is_found(
    graph: Callable[[], ir.Model], of: Callable[..., np.ndarray], fault: Callable[[np.ndarray], np.ndarray]
) -> None:
    found = weights_edge(stored(fault(of(np.float64, pairwise)).astype(np.float32)), graph())
    assert found.status is Status.FAIL
    assert found.first_divergence == "conv"
    assert "computed from conv." in found.reason
    assert found.noise_ratio is not None
    assert np.isfinite(found.noise_ratio)


def test_a_mismatch_names_the_parameters() -> None:
    file = norm()
    value = file.graph.initializers["conv.parametrizations.weight.original0"]
    value.const_value = ir.tensor(off(G, 2, 0.01), name=value.name)
    found = weights_edge(file, norm())
    assert found.status is Status.FAIL
    assert found.first_divergence == "conv"
    assert found.reason.startswith("what the file computes as w, at [2, ")
    assert found.reason.endswith(
        "(computed from conv.parametrizations.weight.original1, conv.parametrizations.weight.original0)"
    )


def test_what_only_moves_numbers_is_exact() -> None:
    nodes = [
        node("DequantizeLinear", ["q", "scale"], ["f"]),
        node("Reshape", ["f", "shape"], ["r"]),
        node("Transpose", ["r"], ["w"], perm=[1, 0, 2, 3]),
        node("Conv", ["x", "w"], ["y"]),
    ]
    q = RNG.integers(-128, 127, (40, 18)).astype(np.int8)
    scale = np.float32(0.013)
    graph = model(nodes, q=q, scale=np.asarray(scale), shape=np.array([40, 6, 3, 1]))
    # The reference of the arithmetic is numpy's, in float32, as ONNX defines it.
    right = (q.astype(np.float32) * scale).reshape(40, 6, 3, 1).transpose(1, 0, 2, 3)
    assert weights_edge(stored(right), graph).noise_ratio == 0
    wrong = right.copy()
    wrong.flat[7] = np.nextafter(wrong.flat[7], np.float32(9))
    found = weights_edge(stored(wrong), graph)
    assert found.status is Status.FAIL
    assert "nothing should have changed it" in found.reason


def test_weights_in_constant_nodes_before_a_batch_norm_of_tiny_variance() -> None:
    channels = [("scale", 1.0), ("shift", -0.5), ("mean", -3e-4), ("variance", 1e-12)]
    values = {name: (size * (1 + RNG.random(6))).astype(np.float32) for name, size in channels}
    weight = (RNG.standard_normal((6, 40, 3, 3)) * 1e-6).astype(np.float32)
    held = {"conv_w": weight, **values}
    constants = [node("Constant", [], [name], value=numpy_helper.from_array(v, name)) for name, v in held.items()]
    norm = node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["y"], epsilon=1e-12)
    graph = model([*constants, node("Conv", ["x", "conv_w"], ["c"]), norm])
    factor = values["scale"] / np.sqrt(values["variance"].astype(np.float64) + np.float64(np.float32(1e-12)))
    made = model(
        [node("Conv", ["x", "conv.weight", "conv.bias"], ["y"])],
        conv__weight=(weight * factor.reshape(-1, 1, 1, 1)).astype(np.float32),
        conv__bias=np.nextafter((values["shift"] - values["mean"] * factor).astype(np.float32), np.float32(0)),
    )
    found = weights_edge(made, graph)
    assert found.status is Status.PASS, found


def test_a_number_stays_one_without_axes() -> None:
    """What gathers by it has an axis less than what gathers by a list of one."""
    number = numpy_helper.from_array(np.array(3, dtype=np.int64))
    nodes = [
        node("Constant", [], ["three"], value=number), node("Shape", ["x"], ["sizes"]),
        node("Gather", ["sizes", "three"], ["last"]), node("Unsqueeze", ["last", "zero"], ["list"]),
        node("Concat", ["minus", "list"], ["to"], axis=0), node("Reshape", ["x", "to"], ["y"]),
    ]  # fmt: skip
    found = with_computed(model(nodes, zero=np.array([0]), minus=np.array([-1])))
    assert found.graph.initializers["three"].const_value.shape == ()
    x = RNG.standard_normal((2, 40, 6, 6))
    assert OnnxReference(ir.to_proto(found)).run({"x": x})["y"].shape == (480, 6)


def test_what_cannot_be_computed_stays() -> None:
    nodes = [
        node("RandomNormal", [], ["noise"], shape=[6, 40, 3, 3], seed=1.0),
        node("RandomNormalLike", ["conv.weight"], ["more"]),
        node("Odd", ["conv.weight"], ["odd"], domain="odd"),
        node("Sum", ["noise", "more", "odd"], ["w"]),
        node("Conv", ["x", "w"], ["y"]),
    ]
    left = with_computed(model(nodes, conv__weight=V))
    assert [n.op_type for n in left.graph] == ["RandomNormal", "RandomNormalLike", "Odd", "Sum", "Conv"]


class Standardized(nn.Conv2d):
    """A convolution whose weight has mean 0 and variance 1 in each output channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w / (w.var((1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return self._conv_forward(x, w, self.bias)


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))


# Above the size up to which torch's exporter folds what it can compute.
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "weight norm": (
        lambda: sequence(weight_norm(nn.Conv1d(4, 64, 3)), weight_norm(nn.Conv1d(64, 64, 5), dim=2)), (2, 4, 16)),
    "spectral norm": (
        lambda: sequence(spectral_norm(nn.Conv2d(3, 48, 3)), spectral_norm(nn.Conv2d(48, 40, 3))), (2, 3, 8, 8)),
    "standardization": (lambda: sequence(Standardized(3, 48, 3), Standardized(48, 48, 3, groups=2)), (2, 3, 8, 8)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("make", "shape"), NETS.values(), ids=NETS)
@pytest.mark.sampled(1)
def test_models_that_compute_their_weights_are_equivalent(
    make: Callable[[], nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    found = spdexport.convert(make().eval(), tmp_path / "net.onnx", inputs=(torch.randn(shape),))
    assert found.verification is not None
    edge = next(e for e in found.verification.edges if e.edge == "weights")
    assert edge.status is Status.PASS, edge
    assert found.verdict is Status.PASS
