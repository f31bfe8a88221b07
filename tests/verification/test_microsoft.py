"""Files with com.microsoft's float operators: honest rounding passes, and what is more than that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from spdexport import pipeline
from spdexport.ort.sessions import Session
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spdexport.verification.result import EdgeResult

MICROSOFT = "com.microsoft"


class Net:
    """A file while it grows: images of 3 channels, whose rows are sequences of 24 numbers."""

    def __init__(self, seed: int) -> None:
        self.rng, self.weights, self.nodes = np.random.default_rng(seed), {}, []

    def weight(self, *shape: int, scale: float = 1.0, dtype: str = "float32") -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = (self.rng.standard_normal(shape) * scale).astype(dtype)
        return name

    def add(self, op: str, *inputs: str, domain: str = MICROSOFT, outputs: int = 1, **attributes: Any) -> str:
        names = [f"v{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(make_node(op, inputs, names, domain=domain, **attributes))
        return names[0]

    def save(self, end: str, path: Path) -> Path:
        self.nodes.append(make_node("Identity", [end], ["y"]))
        graph = make_graph(
            self.nodes, "g", [make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 24])],
            [make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [onnx.numpy_helper.from_array(value, name) for name, value in self.weights.items()],
        )  # fmt: skip
        opsets = [make_opsetid("", 17), make_opsetid(MICROSOFT, 1)]
        onnx.save(make_model(graph, opset_imports=opsets, ir_version=8), path)
        return path


def conv(activation: str = "", *params: float, added: bool = False) -> Callable[[Net], str]:
    def make(n: Net) -> str:
        weight, bias = n.weight(8, 3, 3, 3, scale=0.3), n.weight(8)
        # Only for what has an activation is a fourth input asked for.
        other = [n.add("Conv", "x", n.weight(8, 3, 1, 1), domain="")] if added else []
        settings: dict[str, Any] = {"activation": activation} if activation else {}
        settings |= {"activation_params": list(params)} if params else {}
        return n.add("FusedConv", "x", weight, bias, *other, pads=[1, 1, 1, 1], **settings)

    return make


def gemm(activation: str, **settings: Any) -> Callable[[Net], str]:
    def make(n: Net) -> str:
        rows = n.add("Reshape", "x", shape(n, -1, 24), domain="")
        weight = n.weight(24, 16, scale=0.2)
        return n.add("FusedGemm", rows, weight, n.weight(16), activation=activation, **settings)

    return make


def shape(n: Net, *sizes: int) -> str:
    name = f"w{len(n.weights)}"
    n.weights[name] = np.array(sizes)
    return name


def product(**settings: Any) -> Callable[[Net], str]:
    return lambda n: n.add("FusedMatMul", "x", n.add("Abs", "x", domain=""), transB=1, **settings)


def normed(op: str, *, bias: bool, beta: bool = False, mean: float = 0.0) -> Callable[[Net], str]:
    def make(n: Net) -> str:
        tokens = n.add("Reshape", "x", shape(n, 0, -1, 24), domain="")
        n.weights["mean"] = np.float32(mean)
        moved = n.add("Add", tokens, "mean", domain="")
        given = [n.weight(24)] + ([n.weight(24) if beta else ""] if op == "SkipLayerNormalization" else [])
        skip = n.add("Tanh", tokens, domain="")
        return n.add(op, moved, skip, *given, *([n.weight(24)] if bias else []), epsilon=1e-5)

    return make


def inverse(n: Net) -> str:
    square = n.add("MatMul", "x", n.add("Transpose", "x", domain="", perm=[0, 1, 3, 2]), domain="")
    n.weights["eye"] = (0.5 * np.eye(16)).astype(np.float32)
    return n.add("Inverse", n.add("Add", square, "eye", domain=""))


def of_integers(n: Net) -> str:
    rows = n.add("Reshape", "x", shape(n, -1, 24), domain="")
    n.weights |= {"s": np.float32(0.05), "ws": np.float32(0.01), "z": np.uint8(120), "wz": np.int8(3)}
    steps = n.add("QuantizeLinear", rows, "s", "z", domain="")
    # Of seven bits: with eight, ONNX Runtime's sums of pairs may leave 16 bits on older processors.
    n.weights["q"] = n.rng.integers(-60, 60, (24, 16)).astype(np.int8)
    return n.add("MatMulIntegerToFloat", steps, "q", "s", "ws", "z", "wz", n.weight(16, scale=5.0))


NODES: dict[str, Callable[[Net], str]] = {
    "FusedConv": conv("Relu"),
    "FusedConv, LeakyRelu": conv("LeakyRelu", 0.1),
    "FusedConv, Clip": conv("Clip", 0.0, 6.0),
    "FusedConv, Sigmoid": conv("Sigmoid"),
    "FusedConv, Tanh": conv("Tanh"),
    "FusedConv, HardSigmoid": conv("HardSigmoid", 0.2, 0.5),
    "FusedConv of a sum": conv("Relu", added=True),
    "FusedGemm": gemm("Relu"),
    "FusedGemm, factors": gemm("LeakyRelu", activation_alpha=0.1, alpha=-0.5, beta=2.0),
    "FusedGemm, Sigmoid": gemm("Sigmoid"),
    "FusedMatMul": product(alpha=0.125),
    "FusedMatMul, negative": product(alpha=-2.0),
    "Gelu": lambda n: n.add("Gelu", "x"),
    "BiasGelu": lambda n: n.add("BiasGelu", "x", n.weight(24)),
    "FastGelu": lambda n: n.add("FastGelu", "x", n.weight(24)),
    "FastGelu without a bias": lambda n: n.add("FastGelu", "x"),
    "QuickGelu": lambda n: n.add("QuickGelu", "x", alpha=1.702),
    "SkipLayerNormalization": normed("SkipLayerNormalization", bias=True, beta=True),
    "SkipLayerNormalization around 30": normed("SkipLayerNormalization", bias=False, beta=True, mean=30.0),
    "SkipSimplifiedLayerNormalization": normed("SkipSimplifiedLayerNormalization", bias=True),
    "Inverse": inverse,
    "MatMulIntegerToFloat": of_integers,
}


def export(path: Path, seed: int = 0) -> EdgeResult:
    return next(edge for edge in pipeline.verify(path, seed=seed).edges if edge.edge == "export")


@pytest.mark.parametrize("name", NODES)
def test_honest_rounding_passes_and_more_fails(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net(0)
    path = net.save(NODES[name](net), tmp_path / "m.onnx")
    found = export(path)
    assert found.status is Status.PASS, found.reason
    assert found.noise_ratio is not None
    assert found.noise_ratio < 4, found
    run = Session.run

    def changed(self: Session, *args: Any, **settings: Any) -> dict[str, np.ndarray]:
        values = run(self, *args, **settings)
        return {k: v + np.float32(1e-3) * np.abs(v).max() if k == "y" else v for k, v in values.items()}

    monkeypatch.setattr(Session, "run", changed)
    assert export(path).status is Status.FAIL


@pytest.mark.long
@pytest.mark.parametrize("name", NODES)
def test_no_seed_is_refused(name: str, tmp_path: Path) -> None:
    for seed in range(10):
        net = Net(seed)
        found = export(net.save(NODES[name](net), tmp_path / "m.onnx"), seed)
        assert found.status is Status.PASS, (seed, found.reason)
