"""A file is judged by the precision that it computes in, whatever types its weights are stored in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from spdexport import pipeline
from spdexport.ort.sessions import Session
from spdexport.verification import recipes
from spdexport.verification.precision import file_unit_rounding
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.verification.result import EdgeResult

RNG = np.random.default_rng(0)
W = RNG.standard_normal((32, 16)).astype(np.float32) / 4
STORED: dict[str, tuple[np.ndarray, list[onnx.NodeProto]]] = {
    # What a weight is stored in, and how it becomes the float32 that is multiplied by.
    "float16": (W.astype(np.float16), [make_node("Cast", ["stored"], ["w"], to=TensorProto.FLOAT)]),
    "bfloat16": (W.astype(ml_dtypes.bfloat16), [make_node("Cast", ["stored"], ["w"], to=TensorProto.FLOAT)]),
    "float8": (
        W.astype(ml_dtypes.float8_e4m3fn),
        [make_node("DequantizeLinear", ["stored", "scale"], ["w"])],
    ),
    "float8, cast": (W.astype(ml_dtypes.float8_e5m2), [make_node("Cast", ["stored"], ["w"], to=TensorProto.FLOAT)]),
    "int4": (
        np.clip(np.rint(W * 8), -8, 7).astype(ml_dtypes.int4),
        [make_node("DequantizeLinear", ["stored", "scale"], ["w"])],
    ),
}


def file(path: Path, stored: str, *, types: bool) -> Path:
    """A linear layer and a Softplus in float32, of a weight that is stored in another type."""
    weight, nodes = STORED[stored]
    tensors = {"stored": weight, "scale": np.float32(0.125)}
    nodes = [*nodes, make_node("MatMul", ["x", "w"], ["z"]), make_node("Softplus", ["z"], ["y"])]
    used = {name for node in nodes for name in node.input}
    graph = make_graph(
        nodes, "g", [make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items() if k in used],
    )  # fmt: skip
    model = make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10)
    onnx.save(onnx.shape_inference.infer_shapes(model) if types else model, path)
    return path


def exported(path: Path) -> EdgeResult:
    """The export edge; what ONNX Runtime makes of quantized weights when it optimizes is another matter."""
    return next(edge for edge in pipeline.verify(path).edges if edge.edge == "export")


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("types", [False, True])
def test_weights_that_are_stored_in_fewer_bits_do_not_loosen_the_tolerance(
    stored: str, types: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:2])
    path = file(tmp_path / "m.onnx", stored, types=types)
    assert file_unit_rounding(ir.load(path)) == 2.0**-24
    found = exported(path)
    assert found.status is Status.PASS, found
    run = Session.run

    def changed(self: Session, *args: Any, **settings: Any) -> dict[str, np.ndarray]:
        return {k: v * np.float32(1 + 3e-5) for k, v in run(self, *args, **settings).items()}

    monkeypatch.setattr(Session, "run", changed)
    found = exported(path)
    assert found.status is Status.FAIL, found


def computing(element: int, *, weight: int) -> ir.Model:
    """A product in one type, of a weight that is stored in another one; no type of an inner value is told."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(weight)
    nodes = [
        make_node("Cast", ["x"], ["low"], to=element),
        make_node("Cast", ["stored"], ["w"], to=element),
        make_node("MatMul", ["low", "w"], ["z"]),
        make_node("Cast", ["z"], ["y"], to=TensorProto.FLOAT),
    ]
    ports = (
        [make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
    )
    graph = make_graph(nodes, "g", *ports, [onnx.numpy_helper.from_array(W.astype(dtype), "stored")])
    return ir.from_proto(make_model(graph, opset_imports=[make_opsetid("", 21)], ir_version=10))


@pytest.mark.parametrize(
    ("element", "u"),
    [(TensorProto.FLOAT, 2.0**-24), (TensorProto.FLOAT16, 2.0**-11), (TensorProto.BFLOAT16, 2.0**-8)],
)
@pytest.mark.parametrize("weight", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_the_type_that_products_are_computed_in_counts(element: int, weight: int, u: float) -> None:
    assert file_unit_rounding(computing(element, weight=weight)) == u


def test_a_file_without_floats_counts_as_one_of_float32() -> None:
    ports = (
        [make_tensor_value_info("x", TensorProto.INT64, [1])],
        [make_tensor_value_info("y", TensorProto.INT64, [1])],
    )
    graph = make_graph([make_node("Add", ["x", "x"], ["y"])], "g", *ports)
    assert file_unit_rounding(ir.from_proto(make_model(graph))) == 2.0**-24
