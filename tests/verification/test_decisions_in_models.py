"""Decisions of whole models: of programs and their files, of branches, loops and functions, of faulty files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from planting import planted, weight
from subjects import make_subject
from torch import nn

from spdexport import pipeline
from spdexport.ort.sessions import Session
from spdexport.verification import recipes
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spdexport.verification.result import EdgeResult, Verification
    from spdexport.verification.torch_source import Subject


def edge(found: Verification, name: str) -> EdgeResult:
    return next(e for e in found.edges if e.edge == name)


class Deciding(nn.Module):
    """Two branches of an image, of which one decides about the other."""

    def __init__(self, choose: Callable[[torch.Tensor, torch.Tensor], object], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.score = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.choose = choose

    def forward(self, x: torch.Tensor) -> object:
        y = torch.relu(self.stem(x))
        return self.choose(y, self.score(y))


def top(y: torch.Tensor, score: torch.Tensor) -> object:
    values, indices = score.flatten(1).topk(300, 1)
    return values, y.flatten(1).argmax(1), torch.nn.functional.one_hot(indices, score[0].numel()).sum(1)


def ordered(y: torch.Tensor, score: torch.Tensor) -> object:
    return *torch.sort(y.flatten(1), 1), score


def nearest(y: torch.Tensor, score: torch.Tensor) -> object:
    grid = torch.tanh(score).permute(0, 2, 3, 1)
    return torch.nn.functional.grid_sample(y, grid, mode="nearest", align_corners=False)


def whole(y: torch.Tensor, score: torch.Tensor) -> object:
    return (score * 3000).to(torch.int64).float() * 0.1 + y[:, :2]


def floored(y: torch.Tensor, score: torch.Tensor) -> object:
    return torch.floor(score * 3000) * 0.1, torch.round(y * 3000)


def pooled(y: torch.Tensor, score: torch.Tensor) -> object:
    return *torch.nn.functional.max_pool2d(y, 2, return_indices=True), score


def compared(y: torch.Tensor, score: torch.Tensor) -> object:
    return torch.where(score[:, :1] > score[:, 1:], y, -y), (y == 0).sum((1, 2, 3))


def image(seed: int, size: int = 23) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("choose", "is_followed"), [(ordered, True), (floored, True), (top, False), (compared, False)])
@pytest.mark.sampled(2)
def test_programs_and_their_files_may_decide_otherwise(
    choose: Callable[[torch.Tensor, torch.Tensor], object],
    is_followed: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:2])
    found = pipeline.convert(Deciding(choose, 1), tmp_path / "m.onnx", inputs=(image(1, 16),)).verification
    assert found is not None
    assert found.verdict is Status.PASS, [e.reason for e in found.edges]
    if is_followed:
        for name in ("capture", "export"):
            assert "within rounding followed: " in edge(found, name).reason


@pytest.mark.long
@pytest.mark.parametrize("choose", [top, ordered, nearest, whole, floored, compared])
def test_no_seed_of_a_program_is_refused(
    choose: Callable[[torch.Tensor, torch.Tensor], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:3])
    for seed in range(20):
        file = tmp_path / f"{seed}.onnx"
        found = pipeline.convert(Deciding(choose, seed), file, inputs=(image(seed),)).verification
        assert found is not None
        assert found.verdict is Status.PASS, (seed, [e.reason for e in found.edges])
        assert pipeline.verify(file).verdict is Status.PASS


def slightly_off(values: np.ndarray) -> np.ndarray:
    return values * np.float32(1.001)


def ceiling(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Floor").op_type = "Ceil"


def smallest(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "TopK")
    next(a for a in node.attribute if a.name == "largest").i ^= 1


@pytest.mark.parametrize(
    ("choose", "fault"),
    [
        (floored, ceiling),
        (floored, weight("score.V", slightly_off)),
        (ordered, smallest),
    ],
)
@pytest.mark.sampled(1)
def test_faults_of_a_file_are_not_taken_for_decisions(
    choose: Callable[[torch.Tensor, torch.Tensor], object],
    fault: Callable[[onnx.ModelProto], None],
    tmp_path: Path,
    check: Callable[[Subject, Path], Verification],
) -> None:
    subject = make_subject(tmp_path, Deciding(choose, 1), {"inputs": (image(1, 8),)})
    assert subject.file is not None
    found = check(subject, planted(subject.file, fault, tmp_path / "faulty.onnx"))
    assert edge(found, "rewrite").status is Status.PASS
    for name in ("export", "optimize"):
        assert edge(found, name).status is Status.FAIL
        assert "in float64" in edge(found, name).reason, edge(found, name).reason
        assert edge(found, name).first_divergence


def near(target: np.ndarray, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """An input, and the weights of a Gemm that brings it as near to its target as float32 can tell."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((1, 64)).astype(np.float32), rng.standard_normal((64, target.size)).astype(np.float32)
    return x, {"w": w, "b": (target - (x.astype(np.float64) @ w.astype(np.float64))[0]).astype(np.float32)}


def save(path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], functions: object = ()) -> Path:
    tensors = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    outputs = [make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("z", "y")]
    graph = make_graph(nodes, "g", [make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])], outputs, tensors)
    opsets = [make_opsetid("", 20), make_opsetid("local", 1)]
    onnx.save(make_model(graph, opset_imports=opsets, ir_version=9, functions=functions), path)
    return path


GEMM = make_node("Gemm", ["x", "w", "b"], ["z"], name="head")


def branch(factor: str) -> onnx.GraphProto:
    outputs = [make_tensor_value_info(f"by_{factor}", TensorProto.FLOAT, [1, 1])]
    return make_graph([make_node("Mul", ["z", factor], [f"by_{factor}"])], factor, [], outputs)


def test_a_branch_that_is_taken_otherwise_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:2])
    nodes = [
        GEMM,
        make_node("Greater", ["z", "one"], ["greater"]),
        make_node("Squeeze", ["greater"], ["flag"]),
        make_node("If", ["flag"], ["y"], then_branch=branch("two"), else_branch=branch("three")),
    ]
    followed = 0
    for seed in range(12):
        x, weights = near(np.ones(1), seed)
        constants = {"one": np.float32(1), "two": np.float32(2), "three": np.float32(3)}
        path = save(tmp_path / "m.onnx", nodes, {**weights, **constants})
        found = pipeline.verify(path, inputs={"x": torch.from_numpy(x)})
        assert found.verdict is Status.PASS, [e.reason for e in found.edges]
        followed += "Greater node greater" in edge(found, "export").reason
    assert followed


def test_decisions_in_functions_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:2])
    steps = onnx.helper.make_function(
        "local", "Steps", ["v"], ["u"], [make_node("Floor", ["v"], ["u"])], [make_opsetid("", 20)]
    )
    x, weights = near(np.resize([1.0, 2.0, -3.0], 64), 0)
    path = save(tmp_path / "m.onnx", [GEMM, make_node("Steps", ["z"], ["y"], domain="local")], weights, [steps])
    found = pipeline.verify(path, inputs={"x": torch.from_numpy(x)})
    assert found.verdict is Status.PASS, [e.reason for e in found.edges]
    assert "within rounding followed: Floor node" in edge(found, "export").reason


def test_decisions_in_loops_are_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:2])
    body = make_graph(
        [
            make_node("Identity", ["go"], ["on"]),
            make_node("Floor", ["z"], ["steps"]),
            make_node("Add", ["so_far", "steps"], ["next"]),
        ],
        "body",
        [
            make_tensor_value_info("i", TensorProto.INT64, []),
            make_tensor_value_info("go", TensorProto.BOOL, []),
            make_tensor_value_info("so_far", TensorProto.FLOAT, [1, 64]),
        ],
        [
            make_tensor_value_info("on", TensorProto.BOOL, []),
            make_tensor_value_info("next", TensorProto.FLOAT, [1, 64]),
        ],
    )
    x, weights = near(np.resize([1.0, 2.0, -3.0], 64), 0)
    path = save(
        tmp_path / "m.onnx", [GEMM, make_node("Loop", ["two", "", "zeros"], ["y"], body=body)],
        {**weights, "two": np.array(2), "zeros": np.zeros((1, 64), np.float32)},
    )  # fmt: skip
    found = pipeline.verify(path, inputs={"x": torch.from_numpy(x)})
    assert found.verdict is not Status.FAIL, [e.reason for e in found.edges]

    run = Session.run

    def changed(self: Session, *args: Any, **settings: Any) -> dict[str, np.ndarray]:
        is_near = np.array_equal(args[0]["x"], x)
        return {k: v + 50 * (k == "y" and is_near) for k, v in run(self, *args, **settings).items()}

    monkeypatch.setattr(Session, "run", changed)
    found = pipeline.verify(path, inputs={"x": torch.from_numpy(x)})
    assert edge(found, "export").status is Status.INCONCLUSIVE
    assert "rounding decides at Floor node steps, which cannot be followed" in edge(found, "export").reason


def quantized(path: Path, seed: int, zero: int = 3) -> Path:
    rng = np.random.default_rng(seed)
    nodes = [
        make_node("Conv", ["x", "first.weight"], ["c"]),
        make_node("QuantizeLinear", ["c", "scale", "zero"], ["q"]),
        make_node("DequantizeLinear", ["q", "scale", "right"], ["d"]),
        make_node("Conv", ["d", "second.weight"], ["y"]),
    ]
    weights = {
        "first.weight": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) * np.float32(0.2),
        "second.weight": rng.standard_normal((4, 8, 3, 3)).astype(np.float32) * np.float32(0.2),
        "scale": np.float32(0.02), "zero": np.int8(zero), "right": np.int8(3),
    }  # fmt: skip
    tensors = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()]
    ports = ([make_tensor_value_info("x", 1, [2, 3, 32, 32])], [make_tensor_value_info("y", 1, None)])
    model = make_model(make_graph(nodes, "g", *ports, tensors), opset_imports=[make_opsetid("", 19)], ir_version=9)
    onnx.save(model, path)
    return path


def test_a_quantizer_is_followed_and_another_zero_point_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:3])
    right = quantized(tmp_path / "right.onnx", 0)
    assert pipeline.verify(right).verdict is Status.PASS
    assert pipeline.verify(right, against=quantized(tmp_path / "again.onnx", 0)).verdict is Status.PASS
    found = edge(pipeline.verify(quantized(tmp_path / "off.onnx", 0, zero=4), against=right), "export")
    assert found.status is Status.FAIL
    assert "in float64" in found.reason


@pytest.mark.long
def test_no_seed_of_a_quantizer_is_refused(tmp_path: Path) -> None:
    told = 0
    for seed in range(20):
        found = pipeline.verify(quantized(tmp_path / "m.onnx", seed))
        assert found.verdict is Status.PASS, (seed, [e.reason for e in found.edges])
        told += "followed" in edge(found, "export").reason
    assert told


def quantized_layer(path: Path, *, bias_off: float) -> Path:
    """A quantized convolution whose float bias is off whole numbers of its scales' product by a share of one."""
    rng = np.random.default_rng(0)
    weights = {
        "xs": np.array(0.5, np.float32), "ws": np.array(0.25, np.float32), "ys": np.array(0.02, np.float32),
        "zero": np.array(0, np.int8), "w": rng.integers(-3, 4, (4, 3, 1, 1)).astype(np.int8),
        "b": np.full(4, 0.125 * (3 + bias_off), np.float32),
    }  # fmt: skip
    nodes = [
        make_node("QuantizeLinear", ["x", "xs", "zero"], ["xq"]),
        make_node("DequantizeLinear", ["xq", "xs", "zero"], ["xd"]),
        make_node("DequantizeLinear", ["w", "ws", "zero"], ["wd"]),
        make_node("Conv", ["xd", "wd", "b"], ["c"]),
        make_node("QuantizeLinear", ["c", "ys", "zero"], ["cq"]),
        make_node("DequantizeLinear", ["cq", "ys", "zero"], ["y"]),
    ]
    floats = TensorProto.FLOAT
    graph = make_graph(
        nodes, "quantized",
        [make_tensor_value_info("x", floats, [1, 3, 4, 4])], [make_tensor_value_info("y", floats, [1, 4, 4, 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    proto = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path)
    return path


def test_biases_that_onnx_runtime_makes_whole_numbers_are_no_fault_of_the_file(tmp_path: Path) -> None:
    found = pipeline.verify(quantized_layer(tmp_path / "m.onnx", bias_off=0.4))
    assert edge(found, "export").status is Status.PASS
    optimized = edge(found, "optimize")
    assert optimized.status is Status.INCONCLUSIVE
    assert "not so without ONNX Runtime's WeightBiasQuantization, which rounds float biases" in optimized.reason
    found = pipeline.verify(quantized_layer(tmp_path / "n.onnx", bias_off=0.0))
    assert found.verdict is Status.PASS, found.edges
