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
