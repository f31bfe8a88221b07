"""Every operator test of onnx's own backend data with a convolution, folded: it still gives the expected output.

Once as it is, where weights are often inputs and there is nothing to fold; and once with constant weights and with two
pointwise convolutions behind, which undo each other, so that three layers become one of the tested geometry.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.loader import load_model_tests
from onnx.reference import ReferenceEvaluator

from spdexport.rewrite.onnx_fold import fold_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx.backend.test.case.test_case import TestCase

CONVOLUTIONS = {"Conv", "ConvTranspose"}
KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")

ONNXRUNTIME_OPSET = 26
"""What ONNX Runtime takes; the onnx package may be ahead of it."""

LEFT = {
    "test_convtranspose_output_shape": "its output_shape decides",
    "test_convtranspose_kernel_shape": "its output_shape decides",
    "test_convtranspose_autopad_same": "its padding is SAME_UPPER",
    "test_conv_with_autopad_same": "its padding is SAME_LOWER with a stride",
}
"""Cases whose padding is not known without the input's size: they are left as they are, with this reason."""


def model_of(case: TestCase) -> onnx.ModelProto:
    if case.model is not None:
        return case.model
    assert case.model_dir is not None
    return onnx.load(Path(case.model_dir) / "model.onnx")


def loaded() -> Iterator[Any]:
    for kind in KINDS:
        for case in load_model_tests(kind=kind):
            if case.model is None and case.model_dir is None:
                continue  # it would have to be downloaded
            if any(node.op_type in CONVOLUTIONS for node in model_of(case).graph.node):
                yield pytest.param(case, id=f"{kind}-{case.name}")


CASES = tuple(loaded())


def data_of(case: TestCase, model: onnx.ModelProto) -> Iterator[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
    given = {value.name for value in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in given]
    if case.data_sets is not None:
        for inputs, outputs in case.data_sets:
            yield dict(zip(names, inputs, strict=True)), list(outputs)
        return
    for folder in sorted(Path(case.model_dir).glob("test_data_set_*")):
        read = {
            kind: [
                numpy_helper.to_array(onnx.load_tensor(folder / f"{kind}_{index}.pb"))
                for index in range(len(list(folder.glob(f"{kind}_*.pb"))))
            ]
            for kind in ("input", "output")
        }
        yield dict(zip(names, read["input"], strict=True)), read["output"]


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    if any(opset.domain == "" and opset.version > ONNXRUNTIME_OPSET for opset in model.opset_import):
        return list(ReferenceEvaluator(model).run(None, feed))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in feed.items() if name in names})


def check(model: onnx.ModelProto, feed: dict[str, np.ndarray], expected: list[np.ndarray], case: TestCase) -> None:
    for got, right in zip(run(model, feed), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=max(case.rtol, 1e-3), atol=max(case.atol, 1e-5))


def test_the_cases_are_there() -> None:
    names = [param.values[0].name for param in CASES]
    assert len(names) > 40
    assert set(LEFT) <= set(names)
    assert {"test_convtranspose_dilations", "test_Conv3d_groups", "test_operator_convtranspose"} <= set(names)


@pytest.mark.parametrize("case", CASES)
def test_a_case_as_it_is(case: TestCase) -> None:
    model = model_of(case)
    folded = ir.to_proto(fold_onnx(ir.from_proto(model)).model)
    for feed, expected in data_of(case, model):
        check(folded, feed, expected, case)


@pytest.mark.parametrize("case", [c for c in CASES if len(model_of(c.values[0]).graph.node) == 1])
def test_a_case_with_constant_weights_and_a_turn_there_and_back(case: TestCase) -> None:
    model = model_of(case)
    for feed, expected in data_of(case, model):
        grown, kept = turned(model, feed)
        result = fold_onnx(ir.from_proto(grown))
        types = [node.op_type for node in result.model.graph]
        if case.name in LEFT:
            assert types == [model.graph.node[0].op_type, "Conv"]  # the two behind are one
            assert any(LEFT[case.name] in declined.reason for declined in result.declined)
        else:
            assert types == [model.graph.node[0].op_type]
            assert len(result.folded) == 1
        check(ir.to_proto(result.model), kept, expected, case)


def turned(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """The model with all inputs but the first stored, and a turn of the output channels and back appended."""
    grown = onnx.ModelProto()
    grown.CopyFrom(model)
    graph = grown.graph
    data, *rest = [value.name for value in graph.input]
    stored = {value.name for value in graph.initializer}
    graph.initializer.extend(numpy_helper.from_array(feed[name], name) for name in rest if name not in stored)
    del graph.input[1:]
    node, output = graph.node[0], graph.output[0]
    arrays = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    weight = arrays[node.input[1]]
    groups = next((a.i for a in node.attribute if a.name == "group"), 1)
    channels = weight.shape[0] if node.op_type == "Conv" else weight.shape[1] * groups
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((channels, channels)))[0]
    for name, matrix in (("there", turn), ("back", turn.T)):
        kernel = matrix.reshape(channels, channels, *(1,) * (weight.ndim - 2)).astype(weight.dtype)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(kernel), name))
    node.output[0] = "plain"
    graph.node.append(helper.make_node("Conv", ["plain", "there"], ["turned"]))
    graph.node.append(helper.make_node("Conv", ["turned", "back"], [output.name]))
    return grown, {data: feed[data]}
