"""Decisions within rounding are followed, those beyond it fail, and what comes after them is judged in full."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.helper import make_node

from spdexport import pipeline
from spdexport.ort.sessions import Session
from spdexport.verification import recipes
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spdexport.verification.result import EdgeResult, Verification

N = 128
SURE = 3
"""The element of each target that is far from every border."""


@pytest.fixture(autouse=True)
def _few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:2])


def edge(found: Verification, name: str) -> EdgeResult:
    return next(e for e in found.edges if e.edge == name)


def spread(*around: float) -> np.ndarray:
    return np.resize(np.asarray(around, dtype=np.float64), N)


def sure(target: np.ndarray, value: float) -> np.ndarray:
    target[SURE] = value
    return target


NODES: dict[str, tuple[list[onnx.NodeProto], np.ndarray]] = {
    # What makes q of z, and what z is near.
    "Floor": ([make_node("Floor", ["z"], ["q"])], sure(spread(1, 2, -3), 5.4)),
    "Ceil": ([make_node("Ceil", ["z"], ["q"])], sure(spread(1, 2, -3), 5.4)),
    "Round": ([make_node("Round", ["z"], ["q"])], sure(spread(1.5, 2.5, -3.5), 5.2)),
    "Sign": ([make_node("Sign", ["z"], ["q"])], sure(spread(0), 5.2)),
    "Cast to int": ([make_node("Cast", ["z"], ["q"], to=TensorProto.INT64)], sure(spread(1, 2, -3), 5.4)),
    "Cast to bool": ([make_node("Cast", ["z"], ["q"], to=TensorProto.BOOL)], sure(spread(0), 5.4)),
    "Greater": ([make_node("Greater", ["z", "one"], ["q"])], sure(spread(1), 5.4)),
    "GreaterOrEqual": ([make_node("GreaterOrEqual", ["z", "one"], ["q"])], sure(spread(1), 5.4)),
    "Less": ([make_node("Less", ["z", "one"], ["q"])], sure(spread(1), 5.4)),
    "LessOrEqual": ([make_node("LessOrEqual", ["z", "one"], ["q"])], sure(spread(1), 5.4)),
    "Equal": ([make_node("Equal", ["z", "one"], ["q"])], sure(spread(1), 5.4)),
    "Mod": ([make_node("Mod", ["z", "one"], ["q"], fmod=1)], sure(spread(1, 2, -3), 5.4)),
    "ThresholdedRelu": ([make_node("ThresholdedRelu", ["z"], ["q"], alpha=1.0)], sure(spread(1), 5.4)),
    "Shrink": ([make_node("Shrink", ["z"], ["q"], lambd=1.0, bias=0.25)], sure(spread(1, -1), 5.4)),
    "QuantizeLinear": ([make_node("QuantizeLinear", ["z", "one", "zero"], ["q"])], sure(spread(0.5, 7.5, 20.5), 5.2)),
    "DynamicQuantizeLinear": (
        [make_node("DynamicQuantizeLinear", ["z"], ["q", "scale", "point"])],
        sure(np.concatenate(([0.0, 255.0], spread(0.5, 7.5, 20.5)[2:])), 5.2),
    ),
    "ArgMax": (
        [make_node("Reshape", ["z", "rows"], ["r"]), make_node("ArgMax", ["r"], ["q"], axis=1)],
        np.concatenate((spread(1)[: N - 4], [0, 0, 0, 9.0])),
    ),
    "ArgMin": (
        [make_node("Reshape", ["z", "rows"], ["r"]), make_node("ArgMin", ["r"], ["q"], axis=1)],
        np.concatenate((spread(1)[: N - 4], [2, 2, 2, 0.0])),
    ),
    "Hardmax": (
        [make_node("Reshape", ["z", "rows"], ["r"]), make_node("Hardmax", ["r"], ["q"], axis=1)],
        np.concatenate((spread(1)[: N - 4], [0, 0, 0, 9.0])),
    ),
    "TopK": (
        [make_node("TopK", ["z", "seven"], ["values", "q"], axis=1)],
        np.concatenate(([9.0, 8.0], spread(1)[2:])),
    ),
    "sort": (
        [make_node("TopK", ["z", "all"], ["values", "q"], axis=1, largest=0)],
        np.concatenate(([-9.0, -8.0], spread(1)[2:])),
    ),
    "MaxPool": (
        [
            make_node("Reshape", ["z", "image"], ["r"]),
            make_node("MaxPool", ["r"], ["values", "q"], kernel_shape=[2, 2], strides=[2, 2]),
        ],
        sure(np.concatenate(([9.0], spread(1)[1:])), 0.0),
    ),
    "NonZero": ([make_node("Relu", ["z"], ["r"]), make_node("NonZero", ["r"], ["q"])], sure(spread(0), 5.4)),
    "Unique": ([make_node("Unique", ["z"], ["values", "", "q"])], sure(spread(1, 2), 5.4)),
    "Cast to float8": (
        [make_node("Cast", ["z"], ["q"], to=TensorProto.FLOAT8E5M2)], sure(spread(1.125, -2.25, 3.25), 1.0)
    ),
    "CastLike float8": (
        [make_node("CastLike", ["z", "small"], ["q"])], sure(spread(1.0625, -2.125, 3.125), 1.0)
    ),
    "QuantizeLinear to float8": (
        [make_node("QuantizeLinear", ["z", "tenth", "small"], ["q"])], sure(spread(0.10625, -0.2125, 0.3125), 0.1)
    ),
    "QuantizeLinear to int4": (
        [make_node("QuantizeLinear", ["z", "one", "four"], ["q"])], sure(spread(0.5, -2.5, 1.5), 2.2)
    ),
    "QLinearMatMul": (
        [
            make_node("QuantizeLinear", ["z", "one", "zero"], ["a"]),
            make_node("QLinearMatMul", ["a", "tenth", "zero", "fives", "third", "zero", "third", "zero"], ["q"]),
        ],
        sure(spread(1, 3, -1), 4),
    ),
    "QLinearConv": (
        [
            make_node("QuantizeLinear", ["z", "one", "zero"], ["a"]),
            make_node("Reshape", ["a", "channels"], ["r"]),
            make_node("QLinearConv", ["r", "tenth", "zero", "kernel", "third", "zero", "third", "zero"], ["q"]),
        ],
        sure(spread(1, 3, -1), 4),
    ),
    "QLinearAdd": (
        [
            make_node("QuantizeLinear", ["z", "one", "zero"], ["a"]),
            make_node(
                "QLinearAdd", ["a", "tenth", "zero", "fours", "third", "zero", "fifth", "zero"], ["q"],
                domain="com.microsoft",
            ),
        ],
        sure(spread(2, 4, 0), 5),
    ),
    "GridSample": (
        [
            make_node("Reshape", ["z", "grid"], ["r"]),
            make_node("GridSample", ["picture", "r"], ["q"], mode="nearest", align_corners=0),
        ],
        sure(spread(-0.5, 0.25, 0.0, 0.5), 0.1),
    ),
    "NonMaxSuppression": (
        [
            make_node("Reshape", ["z", "scores"], ["r"]),
            make_node("NonMaxSuppression", ["boxes", "r", "all", "half", "half"], ["q"]),
        ],
        sure(spread(0.5, 0.75), 0.9),
    ),
}  # fmt: skip

HIDDEN = ("Cast to float8", "CastLike float8", "QuantizeLinear to float8", "QuantizeLinear to int4")
"""What they choose has a type of which Python has no arrays: it is no output, and is looked at as numbers."""

ONE_CHOICE = [name for name in NODES if not name.startswith("QLinear")]
"""Those before which nothing chooses."""

FAST = [name for name in NODES if name not in ("GreaterOrEqual", "LessOrEqual", "ArgMin", "Ceil")]


def near(target: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An input, weights and a bias with which a matrix product is as near to its target as float32 can tell."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((1, 64)).astype(np.float32), rng.standard_normal((64, target.size)).astype(np.float32)
    b = (target - (x.astype(np.float64) @ w.astype(np.float64))[0]).astype(np.float32)
    return x, w, b


def file(path: Path, name: str, seed: int) -> tuple[Path, torch.Tensor]:
    """A file in which q is decided from z, and y is computed from q; and the input at which rounding decides."""
    nodes, target = NODES[name]
    x, w, b = near(target, seed)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (1, N, 2)).astype(np.float32)
    constants = {
        "w": w, "b": b, "one": np.float32(1), "zero": np.uint8(3), "rows": np.array([-1, 4]), "seven": np.array([7]),
        "all": np.array([N]), "image": np.array([1, 2, 8, -1]), "grid": np.array([1, 8, -1, 2]),
        "scores": np.array([1, 1, N]), "half": np.array([0.5], np.float32), "tenth": np.float32(0.1),
        "third": np.float32(0.3), "fifth": np.float32(0.2), "four": np.array(-4, ml_dtypes.int4),
        "small": np.array(0, ml_dtypes.float8_e4m3fn), "fives": np.uint8(5 * np.eye(N) + 3),
        "kernel": np.uint8(5 * np.eye(N) + 3)[..., None], "fours": np.full((1, N), 4, np.uint8),
        "channels": np.array([1, N, 1]),
        "picture": rng.standard_normal((1, 3, 8, 8)).astype(np.float32),
        "boxes": np.concatenate([corners, corners + 0.4], axis=2),
    }  # fmt: skip
    end = [
        make_node("Gemm", ["x", "w", "b"], ["z"], name="head"),
        *nodes,
        make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
        make_node("Mul", ["f", "tenth"], ["y"]),
    ]
    used = {i for node in end for i in node.input}
    weights = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used]
    graph = onnx.helper.make_graph(
        end, "g", [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [onnx.helper.make_empty_tensor_value_info(k) for k in ("z", "q", "y") if k != "q" or name not in HIDDEN],
        weights,
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if name == "QLinearAdd":  # onnx has no definition of it
        next(value for value in graph.output if value.name == "q").type.tensor_type.elem_type = TensorProto.UINT8
        model.graph.output[1].type.tensor_type.elem_type = TensorProto.UINT8
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save(model, path)
    return path, torch.from_numpy(x)


@pytest.mark.parametrize("name", FAST)
def test_decisions_within_rounding_are_followed(name: str, tmp_path: Path) -> None:
    path, x = file(tmp_path / "m.onnx", name, 0)
    found = pipeline.verify(path, inputs={"x": x})
    assert edge(found, "export").status is Status.PASS, edge(found, "export").reason
    assert edge(found, "optimize").status is Status.PASS, edge(found, "optimize").reason
    reason = edge(found, "export").reason
    assert "within rounding followed: " in reason, reason
    assert f"{NODES[name][0][-1].op_type} node " in reason, reason


@pytest.mark.long
@pytest.mark.parametrize("name", NODES)
def test_no_seed_is_refused(name: str, tmp_path: Path) -> None:
    for seed in range(20):
        path, x = file(tmp_path / "m.onnx", name, seed)
        found = pipeline.verify(path, inputs={"x": x})
        assert found.verdict is Status.PASS, (seed, [e.reason for e in found.edges])


def patched(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Makes ONNX Runtime give something else for a value."""
    run = Session.run

    def changed(self: Session, *args: Any, **settings: Any) -> dict[str, np.ndarray]:
        found = run(self, *args, **settings)
        return {k: change(v.copy()) if k == name else v for k, v in found.items()}

    monkeypatch.setattr(Session, "run", changed)


def another(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """A decision that no rounding explains."""

    def change(q: np.ndarray) -> np.ndarray:
        if name in ("TopK", "sort"):
            q[0, [0, 1]] = q[0, [1, 0]]
        elif name in ("ArgMax", "ArgMin"):
            q[-1] = 0
        elif name == "Hardmax":
            q[-1] = [1, 0, 0, 0]
        elif name == "MaxPool":
            q[0, 0, 0, 0] = 1
        elif name == "NonZero":
            return q[:, q[1] != SURE]
        elif name == "Unique":
            q[SURE] = q[SURE - 1]
        elif name == "NonMaxSuppression":
            return q[1:]
        elif q.dtype == bool:
            q[0, SURE] = ~q[0, SURE]
        else:
            q[0, SURE] += 1
        return q

    return change


NO_CHOICE = ("GridSample", "ThresholdedRelu", "Shrink")
"""What they choose is told from the values, so that another value is a wrong value."""


@pytest.mark.parametrize("name", [n for n in FAST if n not in NO_CHOICE])
def test_decisions_beyond_rounding_fail_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = file(tmp_path / "m.onnx", name, 0)
    patched(monkeypatch, "q as numbers" if name in HIDDEN else "q", another(name))
    found = edge(pipeline.verify(path, inputs={"x": x}), "export")
    assert found.status is Status.FAIL
    if name != "Mod":  # a remainder that is no remainder is a wrong value
        assert "a wrong decision: " in found.reason, found.reason
        assert f"{NODES[name][0][-1].op_type} node " in found.reason


@pytest.mark.parametrize("name", ["Floor", "TopK", "GridSample", "QuantizeLinear", "Greater"])
def test_faults_behind_followed_decisions_are_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = file(tmp_path / "m.onnx", name, 0)
    patched(monkeypatch, "y", lambda y: y * np.float32(1 + 1e-5))
    found = edge(pipeline.verify(path, inputs={"x": x}), "export")
    assert found.status is Status.FAIL
    assert "within rounding followed: " in found.reason
    assert "y[" in found.reason


def test_a_fault_that_tapping_takes_away_is_inconclusive_where_rounding_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, x = file(tmp_path / "m.onnx", "DynamicQuantizeLinear", 0)
    run = Session.run

    def changed(self: Session, *args: Any, **settings: Any) -> dict[str, np.ndarray]:
        found = run(self, *args, **settings)
        # The zero point is no output of the file itself.
        is_near = np.array_equal(args[0]["x"], x.numpy())
        return {k: v + 1 if k == "y" and is_near and "point" not in found else v for k, v in found.items()}

    monkeypatch.setattr(Session, "run", changed)
    found = edge(pipeline.verify(path, inputs={"x": x}), "export")
    assert found.status is Status.INCONCLUSIVE
    assert "a session that has its decisions as outputs too decides otherwise, and is right" in found.reason
