"""Terms of one input among others of a sum are added up first; and borders that are filled in ONNX graphs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from cli_command import spdexport
from onnx import numpy_helper
from test_fold_sums import BiasPadded, close, node, ops_of, sum_of
from torch import nn

from spdexport.arrays import to_numpy
from spdexport.folding import fold
from spdexport.model_files import save_program
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.stages import CHANGED
from spdexport.rewrite.torch_fold import fold_program
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from pathlib import Path

A, B = node("Conv", "x K", "a", pads=[1] * 4), node("Conv", "x P", "b")
ORDERS = {
    "z + a + b": ([node("Add", "z a", "s"), node("Add", "s b", "y")], ["Conv", "Add"]),
    "a - z + b": ([node("Sub", "a z", "s"), node("Add", "s b", "y")], ["Conv", "Sub"]),
    "z - a - b": ([node("Sub", "z a", "s"), node("Sub", "s b", "y")], ["Conv", "Sub"]),
    "z - (a - b)": ([node("Sub", "a b", "s"), node("Sub", "z s", "y")], ["Conv", "Sub"]),
    "(a + z) - (w - b)": (
        [node("Add", "a z", "s"), node("Relu", "z", "w"), node("Sub", "w b", "t"), node("Sub", "s t", "y")],
        ["Relu", "Conv", "Add", "Sub"],
    ),
    "Sum(a, z, b, x)": ([node("Sum", "a z b x", "y")], ["Conv", "Add"]),
    "a + x + (x + z) - b - b": (
        [node("Sum", "a x", "s"), node("Add", "x z", "t"), node("Add", "s t", "u"), node("Sub", "u b", "v"),
         node("Sub", "v b", "y")],
        ["Conv", "Add"],
    ),
    "two inputs": (
        [node("Conv", "z K", "c", pads=[1] * 4), node("Conv", "z P", "d"), node("Add", "a c", "s"),
         node("Add", "s b", "t"), node("Add", "t d", "y")],
        ["Conv", "Conv", "Add"],
    ),
    "through what does nothing": (
        [node("Add", "z a", "s"), node("Identity", "s", "i"), node("Dropout", "i", "j"), node("Add", "j b", "y")],
        ["Conv", "Add"],
    ),
    "a scale behind all": (
        [node("Add", "z a", "s"), node("Add", "s b", "t"), node("Mul", "t half", "y")], ["Conv", "Add", "Mul"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_terms_of_one_input_are_one_layer_in_any_order(name: str) -> None:
    nodes, left = ORDERS[name]
    model = sum_of([A, B, *nodes], half=np.array(0.5))
    result = fold_onnx(model)
    assert (ops_of(result.model), result.declined) == (left, ())
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal((1, 2, 8, 8)) for name in ("x", "z")}
    before, after = (OnnxReference(ir.to_proto(m)).run(inputs)["y"] for m in (model, result.model))
    assert close(after, before)
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)


AS_IT_IS = {
    "an output between": (
        [node("Add", "z a", "s"), node("Identity", "s", "out"), node("Add", "s b", "y")], ["out"],
    ),
    "a use between": ([node("Add", "z a", "s"), node("Relu", "s", "r"), node("Add", "s b", "t"),
                       node("Add", "t r", "y")], []),
    "a term that is an output": (
        [node("Add", "z a", "s"), node("Identity", "b", "out"), node("Add", "s b", "y")], ["out"],
    ),
    "other strides": (
        [node("Conv", "x E", "e", strides=[8, 8]), node("Conv", "x E", "f", strides=[2, 2]), node("Add", "z e", "s"),
         node("Add", "s f", "y")], [],
    ),
    "one term of it": ([node("Add", "z a", "s"), node("Add", "s z", "y")], []),
}  # fmt: skip


@pytest.mark.parametrize("name", AS_IT_IS)
def test_a_sum_without_two_such_terms_keeps_its_order(name: str) -> None:
    nodes, outputs = AS_IT_IS[name]
    model = sum_of([A, B, *nodes], E=np.ones((2, 2, 8, 8)))
    if name == "one term of it":
        model.graph.remove(model.graph.node("b"))
    for output in outputs:
        model.graph.outputs.append(model.graph.node(output).outputs[0])
    before = [(n.op_type, tuple(v.name for v in n.inputs)) for n in model.graph]
    result = fold_onnx(model)
    assert [(n.op_type, tuple(v.name for v in n.inputs)) for n in result.model.graph] == before
    assert not result.folded


def test_a_sum_is_regrouped_for_no_fold_that_is_not_made() -> None:
    """Depthwise 5x5 and 1x1 cost more as one layer; a weight that float16 does not hold."""
    large = [node("Conv", "x D", "a", pads=[2] * 4, group=2), B, node("Add", "z a", "s"), node("Add", "s b", "y")]
    model = sum_of(large, D=np.ones((2, 1, 5, 5)))
    assert ops_of(fold_onnx(model).model) == ["Conv", "Add"]
    left = fold_onnx(model, if_cheaper=True)
    assert [n.name for n in left.model.graph] == ["a", "b", "s", "y"]
    assert [s.reason.split(",")[0] for s in left.declined] == [
        "its layers have 54 multiply-accumulates at each output location",
        "something of another input is added to it in between",
    ]


class Written(nn.Module):
    """``z + a(x) + b(x)`` with additions in place, or half of a term."""

    def __init__(self, into: str) -> None:
        super().__init__()
        self.a, self.b, self.into = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1), into

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        x = torch.sigmoid(x)
        match self.into:
            case "a layer":
                y = self.a(x)
                y += z
                y += self.b(x)
                return torch.relu(y)
            case "the other term":
                z = torch.relu(z)
                s = z
                s += self.a(x)
                s = s + self.b(x)
                return s * z
            case "the other term, used before":
                z = torch.relu(z)
                w = z * 2
                z += self.a(x)
                return z + self.b(x) + torch.relu(w)
            case "what is added, between":
                z = torch.relu(z)
                s = z + self.a(x)
                z += 1.0
                return s + self.b(x) + z
            case "half":
                return torch.add(torch.relu(z) + self.a(x), self.b(x), alpha=0.5)
            case _:
                y = torch.relu(z) + self.a(x)
                return y + self.b(x)


COUNTED = "one of them is taken other than a whole number of times"
CASES = {
    "a layer": None, "nothing": None, "the other term": "", "the other term, used before": CHANGED,
    "what is added, between": CHANGED, "half": COUNTED,
}  # fmt: skip


@pytest.mark.parametrize("into", CASES)
def test_what_is_changed_in_place_or_taken_half_keeps_its_order(into: str) -> None:
    reason = CASES[into]
    inputs = tuple(torch.randn(1, 2, 6, 5, dtype=torch.float64) for _ in range(2))
    program = torch.export.export(Written(into).double().eval(), inputs)
    result = fold_program(program)
    calls = [str(n.target) for n in result.program.graph.nodes if n.op == "call_function"]
    assert calls.count("aten.conv2d.default") == (1 if reason is None else 2)
    assert (result.program is program) is (reason is not None)
    assert [s.reason for s in result.declined if "cannot be added up first" in s.reason] == (
        [f"terms of the sum that are one layer cannot be added up first: {reason}"] if reason else []
    )
    assert bool(result.declined) is bool(reason)
    (before,), (after,) = (evaluate(p, inputs) for p in (program, result.program))
    assert close(to_numpy(after), to_numpy(before))


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_the_verdict_proves_a_regrouped_sum_and_sees_one_wrong_weight(tmp_path: Path, ending: str) -> None:
    program = torch.export.export(Written("nothing").eval(), tuple(torch.randn(2, 2, 6, 5) for _ in range(2)))
    if ending == ".onnx":
        torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "in.onnx")
    else:
        save_program(program, tmp_path / "in.pt2")
    done = spdexport("fold", tmp_path / f"in{ending}", "-o", tmp_path / f"out{ending}", "--explain")
    assert done.exit_code == 0, done.output
    assert "1 layer folded" in done.output
    if ending == ".onnx":
        assert sorted(ops_of(ir.load(tmp_path / "out.onnx"))) == ["Add", "Conv", "Relu", "Sigmoid"]
        checked = spdexport("verify", tmp_path / "out.onnx", "--against", tmp_path / "in.onnx")
        assert checked.exit_code == 0, checked.output
        model = onnx.load(tmp_path / "out.onnx")
        (weight,) = (tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
        values = numpy_helper.to_array(weight).copy()
        values.flat[3] += 1e-3
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(model, tmp_path / "wrong.onnx")
        found = spdexport("verify", tmp_path / "wrong.onnx", "--against", tmp_path / "in.onnx")
        assert found.exit_code == 1, found.output


# --- borders that are filled ---

DIMS = {
    "nothing": None,
    "the batch": {0: torch.export.Dim("batch")},
    "all": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")},
}


ODD = [
    ({"filled_with": 1.01}, "its border is filled with other than its bias"),
    ({"sides": 3}, "what is written into the padding between is not one number per channel, all around"),
    ({"read_before": True}, "what is between is used elsewhere"),
]


@pytest.mark.parametrize(
    ("opened", "options", "reason"),
    [
        *((opened, {}, None) for opened in DIMS),
        *(("the batch", *odd) for odd in ODD),
        *(pytest.param(opened, *odd, marks=pytest.mark.long) for opened in ("nothing", "all") for odd in ODD),
    ],
)
@pytest.mark.sampled(2)
def test_a_border_that_is_scattered(tmp_path: Path, opened: str, options: dict[str, Any], reason: str | None) -> None:
    x = torch.randn(2, 3, 7, 6)
    dims = DIMS[opened]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(BiasPadded(**options).eval(), (x,), dynamic_shapes=dims and (dims,))
        torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "in.onnx")
    assert "ScatterND" in ops_of(ir.load(tmp_path / "in.onnx"))
    result = fold(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert result.verdict is Status.PASS
    assert [skipped.reason for skipped in result.declined] == ([reason] if reason else [])
    if reason is None:
        assert ops_of(ir.load(tmp_path / "out.onnx")) == ["Conv", "Relu"]
        assert {edge.edge: edge.status for edge in result.verification.edges}["weights"] is Status.PASS


def scattered(*, index: list[int], data: str = "p", values: float = 0.25, back: bool = True) -> ir.Model:
    """A convolution of a padding by one row, into which rows are scattered, and one beside it; x is (1, 2, 8, 8)."""
    nodes = [
        node("Conv", "x P q", "c"), node("Pad", "c pads", "p"), node("Transpose", data, "t", perm=[2, 0, 1, 3]),
        node("ScatterND", "t i u", "w"), node("Transpose", "w", "v", perm=[1, 2, 0, 3] if back else [1, 2, 3, 0]),
        node("Conv", "v E", "d"), node("Conv", "x F", "e", pads=[1, 0, 0, 0]), node("Add", "d e", "y"),
    ]  # fmt: skip
    return sum_of(
        nodes, q=np.full(2, 0.25), pads=np.array([0, 0, 1, 0, 0, 0, 0, 0]), i=np.array(index)[:, None],
        u=np.full((len(index), 1, 2, 8), values), E=np.arange(8.0).reshape(2, 2, 2, 1), F=np.ones((2, 2, 2, 1)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "folds"),
    [
        ({"index": [0]}, True),
        ({"index": [-9]}, True),
        ({"index": [1]}, False),
        ({"index": [0, 1]}, False),
        ({"index": [0, 0]}, False),
        ({"index": [0], "values": 0.5}, False),
    ],
)
def test_rows_that_are_scattered(given: dict[str, Any], folds: bool) -> None:
    model = scattered(**given)
    result = fold_onnx(model)
    assert (ops_of(result.model) == ["Conv"]) is folds
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal((1, 2, 8, 8)) for name in ("x", "z")}
    before, after = (OnnxReference(ir.to_proto(m)).run(inputs)["y"] for m in (model, result.model))
    assert close(after, before)
