"""Nearest pixels are decisions: those within rounding of a border are followed, those beyond it and ties are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from spdexport import pipeline
from spdexport.ort.sessions import Session
from spdexport.verification import recipes
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.verification.result import EdgeResult


@pytest.fixture(autouse=True)
def _few_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:2])


def file(path: Path, length: int, out: int, *, scale: float | None = None, opset: int = 18, **attributes: Any) -> Path:
    """A convolution and a Resize of its rows, to a length or by a scale."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3, 1, 1)).astype(np.float32)}
    if opset < 11:
        weights["scales"] = np.array([1, 1, scale, 1], np.float32)
        resize = make_node("Upsample" if opset < 10 else "Resize", ["c", "scales"], ["y"], mode="nearest")
    elif scale is not None:
        weights["scales"] = np.array([1, 1, scale, 1], np.float32)
        resize = make_node("Resize", ["c", "", "scales"], ["y"], mode="nearest", **attributes)
    else:
        weights["sizes"] = np.array([2, 4, out, 3])
        resize = make_node("Resize", ["c", "", "", "sizes"], ["y"], mode="nearest", **attributes)
    graph = make_graph(
        [make_node("Conv", ["x", "w"], ["c"], name="head"), resize], "g",
        [make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, length, 3])],
        [make_tensor_value_info("y", TensorProto.FLOAT, [2, 4, out, 3])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", opset)], ir_version=8), path)
    return path


def moved(monkeypatch: pytest.MonkeyPatch, place: int, step: int, length: int) -> None:
    """Makes ONNX Runtime take the pixel beside its own for one row of the output."""
    run = Session.run

    def changed(self: Session, inputs: Any, *args: Any, **settings: Any) -> dict[str, np.ndarray]:
        found = run(self, inputs, *args, **settings)
        y = found["y"].copy()
        source = np.einsum("oi,nihw->nohw", HEAD, inputs["x"].astype(np.float64))
        nearest = np.abs(source[:, :, :, None] - y[:, :, None, :]).sum(axis=(0, 1, 4)).argmin(axis=0)
        y[:, :, place] = source[:, :, np.clip(nearest[place] + step, 0, length - 1)].astype(np.float32)
        return {**found, "y": y}

    monkeypatch.setattr(Session, "run", changed)


HEAD = np.random.default_rng(0).standard_normal((4, 3, 1, 1)).astype(np.float32)[:, :, 0, 0].astype(np.float64)


def export(path: Path) -> EdgeResult:
    return next(edge for edge in pipeline.verify(path).edges if edge.edge == "export")


FLOOR = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
CEIL = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil"}
HALF = {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"}
CORNERS = {"coordinate_transformation_mode": "align_corners", "nearest_mode": "floor"}

BORDERS: dict[str, tuple[dict[str, Any], int, int, int]] = {
    # What is resized how, which row of the output lies between two pixels but for rounding, and where the other one is.
    "floor": ({"length": 6, "out": 10, **FLOOR}, 5, -1, 3),  # 5 * 6 / 10 is 3
    "ceil": ({"length": 6, "out": 10, **CEIL}, 5, 1, 3),
    "half, to a length": ({"length": 6, "out": 9, **HALF}, 4, 1, 3),  # (4 + 1/2) * 6 / 9 - 1/2 is 2 1/2
    "half, by a scale": ({"length": 6, "out": 9, "scale": 1.5, **HALF}, 4, 1, 3),
    "smaller": ({"length": 15, "out": 6, **FLOOR}, 2, -1, 3),
    "corners": ({"length": 10, "out": 28, **CORNERS}, 9, -1, 10),  # 9 * 9 / 27 is 3
    "Upsample": ({"length": 5, "out": 15, "scale": 3.0, "opset": 9}, 6, -1, 7),
    "Resize of opset 10": ({"length": 5, "out": 15, "scale": 3.0, "opset": 10}, 6, -1, 7),
}


@pytest.mark.parametrize("name", BORDERS)
def test_a_pixel_within_rounding_of_a_border_is_followed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, place, step, _ = BORDERS[name]
    path = file(tmp_path / "m.onnx", **settings)
    assert export(path).status is Status.PASS
    moved(monkeypatch, place, step, settings["length"])
    found = export(path)
    assert found.status is Status.PASS, found.reason
    assert "1 decision within rounding followed: " in found.reason, found.reason
    assert f"node y[0, 0, {place}, 0] chooses" in found.reason


@pytest.mark.parametrize("name", BORDERS)
def test_a_pixel_beside_another_place_is_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, _, step, place = BORDERS[name]
    path = file(tmp_path / "m.onnx", **settings)
    moved(monkeypatch, place, step, settings["length"])
    assert export(path).status is Status.FAIL


@pytest.mark.parametrize(
    ("settings", "place", "step"),
    [
        ({"length": 6, "out": 12, **FLOOR}, 6, -1),
        ({"length": 6, "out": 3, **HALF}, 1, 1),  # (1 + 1/2) * 2 - 1/2 is 2 1/2
        ({"length": 6, "out": 3, "scale": 0.5, **HALF}, 1, 1),
        ({"length": 4, "out": 8, "scale": 2.0, "opset": 10}, 4, -1),
    ],
)
def test_where_the_scale_is_a_power_of_two_the_definition_decides(
    settings: dict[str, Any], place: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file(tmp_path / "m.onnx", **settings)
    assert export(path).status is Status.PASS
    moved(monkeypatch, place, step, settings["length"])
    found = export(path)
    assert found.status is Status.FAIL
    assert "a wrong decision: " in found.reason, found.reason


def test_a_file_that_prefers_the_other_pixel_at_a_tie_is_a_fault(tmp_path: Path) -> None:
    right = file(tmp_path / "right.onnx", 6, 3, **HALF)
    other = file(tmp_path / "other.onnx", 6, 3, **{**HALF, "nearest_mode": "round_prefer_ceil"})
    assert pipeline.verify(right, against=right).verdict is Status.PASS
    assert pipeline.verify(other, against=right).verdict is Status.FAIL


@pytest.mark.parametrize("length", [5, 7, 12])
def test_no_size_is_refused(length: int, tmp_path: Path) -> None:
    for number, out in enumerate((4, 9, 10, 15, 21)):
        settings = (FLOOR, CEIL, HALF, CORNERS, {"nearest_mode": "round_prefer_ceil"})[number]
        found = pipeline.verify(file(tmp_path / "m.onnx", length, out, **settings))
        assert found.verdict is Status.PASS, (out, [edge.reason for edge in found.edges])


CHOOSING = {
    "Resize": make_node("Resize", ["c", "", "scales"], ["r"], mode="nearest", **HALF),
    "ThresholdedRelu": make_node("ThresholdedRelu", ["c"], ["r"], alpha=0.5),
    "Shrink": make_node("Shrink", ["c"], ["r"], lambd=0.25, bias=0.5),
    "Mod": make_node("Mod", ["c", "scale"], ["r"], fmod=1),
}


@pytest.mark.parametrize("op", CHOOSING)
def test_a_choice_in_a_body_that_rounding_leaves_alone_hides_no_fault(
    op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = onnx.load(file(tmp_path / "m.onnx", 6, 9, scale=1.5, **HALF))
    del source.graph.node[-1]
    source.graph.output[0].CopyFrom(make_tensor_value_info("y", TensorProto.FLOAT, None))
    end = make_tensor_value_info("r", TensorProto.FLOAT, None)
    held = [onnx.numpy_helper.from_array(np.float32(v), k) for k, v in (("zero", 0), ("scale", 0.75))]
    body = make_graph([CHOOSING[op]], "body", [], [end])
    other = make_graph([CHOOSING[op], make_node("Neg", ["r"], ["s"])], "other", [], [end])
    other.output[0].name = "s"
    source.graph.initializer.extend(held)
    source.graph.node.extend(
        [
            make_node("ReduceMean", ["c"], ["mean"], keepdims=0),
            make_node("Greater", ["mean", "zero"], ["flag"]),
            make_node("If", ["flag"], ["y"], then_branch=body, else_branch=other),
        ]
    )
    onnx.save(source, tmp_path / "if.onnx")
    assert export(tmp_path / "if.onnx").status is Status.PASS
    run = Session.run

    def changed(self: Session, *args: Any, **settings: Any) -> dict[str, np.ndarray]:
        return {k: v * np.float32(1.001) if k == "y" else v for k, v in run(self, *args, **settings).items()}

    monkeypatch.setattr(Session, "run", changed)
    found = export(tmp_path / "if.onnx")
    assert found.status is Status.FAIL, found.reason
