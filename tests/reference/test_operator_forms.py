"""Operators in all their forms, and onnx's own cases at every opset since 7: the reference agrees with ONNX Runtime."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from operator_forms import FAMILIES, Form

from spdexport.ort.sessions import RuntimeFailure, SessionSettings, open_session
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.unavailable import ReferenceUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

FAST = 60
"""Forms of one family that the fast test tries, taken at equal distances."""

TIES = ("DynamicQuantizeLinear", "QLinear", "Resize")
"""Integers that ONNX Runtime finds in float32: a tie in exact numbers is none there, and it may be one step off."""

OPEN = ("ScaledTanh", "ThresholdedRelu")
"""Activations whose defaults ONNX Runtime and the standard do not agree on."""

TOLERANCE = {2: 2e-2, 4: 2e-5, 8: 1e-9}
"""By bytes of the dtype, of the largest element; bfloat16 has ten times that of float16."""

NEWEST = 26
"""What ONNX Runtime takes; the onnx package may be ahead of it."""

UNAVAILABLE = {
    "test_bitcast": "same bit-width",
    "test_batchnorm_example_training_mode": "training mode",
    "test_batchnorm_epsilon_training_mode": "training mode",
    "test_bernoulli": "random",
    "test_scan_sum": "Scan of opset 8",
    "test_training_dropout": "random",
}
"""By the beginnings of names, onnx's cases for which there is nothing to compare with."""

DIFFERENT = ("test_attention_4d_with_past_and_present_qk_matmul_bias",)
"""ONNX Runtime's scores where a mask has -infinity are the lowest number, the standard's are -infinity."""


def difference(ours: Any, theirs: Any, ties: bool) -> str | None:
    """How two results differ by more than the rounding of the second one's dtype; None where they do not."""
    if isinstance(theirs, list):
        return next((why for a, b in zip(ours, theirs, strict=True) if (why := difference(a, b, ties))), None)
    if ours.shape != theirs.shape:
        return f"shape {ours.shape} where {theirs.shape} is right"
    floats = theirs.dtype.kind == "f" or theirs.dtype == ml_dtypes.bfloat16
    if not floats:
        if theirs.dtype.kind in "OUS":
            return None if (ours.astype(str) == theirs.astype(str)).all() else "other strings"
        if ours.dtype != theirs.dtype:
            return f"dtype {ours.dtype} where {theirs.dtype} is right"
        off = np.abs(ours.astype(float) - theirs.astype(float))
        return f"{(off > 0).sum()} other integers" if off.max(initial=0) > (1 if ties else 0) else None
    if ours.dtype != np.float64:
        return f"dtype {ours.dtype}"
    right = theirs.astype(np.float64)
    kinds = [(np.isnan(v), np.isposinf(v), np.isneginf(v)) for v in (ours, right)]
    if any((a != b).any() for a, b in zip(*kinds, strict=True)):
        return "infinities or NaN elsewhere"
    finite = np.isfinite(right)
    size = max(np.abs(right[finite]).max(initial=0), 1e-3)
    allowed = TOLERANCE[theirs.dtype.itemsize] * (1 if theirs.dtype != ml_dtypes.bfloat16 else 10) * size
    off = np.abs(ours[finite] - right[finite]).max(initial=0)
    return f"off by {off / size:.3g} of the largest" if off > allowed else None


def judged(model: onnx.ModelProto, inputs: dict[str, Any], *, ties: bool = False) -> str | None:
    """What is wrong with the reference on a model; None where ONNX Runtime gives the same, or does not run it."""
    try:
        session = open_session(model.SerializeToString(), SessionSettings(threads=1))
        theirs = session.run({name: np.asarray(value) for name, value in inputs.items()})
    except RuntimeFailure:
        return None
    ours = OnnxReference(model).run(inputs)
    found = ((name, difference(ours[name], value, ties)) for name, value in theirs.items())
    return next((f"{name}: {why}" for name, why in found if why), None)


def check(forms: list[Form]) -> None:
    wrong = []
    for form in forms:
        model, inputs = form.model()
        try:
            why = judged(model, inputs, ties=form.op.startswith(TIES))
        except ReferenceUnavailable as error:
            why = str(error)
        if why and not any(name in why for name in OPEN):
            wrong.append(f"{form}: {why}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_some_forms_of_operators_agree_with_onnx_runtime(family: Any) -> None:
    forms = list(family())
    check(forms[:: -(-len(forms) // FAST)])


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_all_forms_of_operators_agree_with_onnx_runtime(family: Any) -> None:
    check(list(family()))


@pytest.mark.parametrize("name", OPEN)
def test_a_default_that_is_open_has_no_reference(name: str) -> None:
    weights = np.ones((1, 3, 2), np.float32), np.ones((1, 3, 3), np.float32)
    attributes = {"hidden_size": 3, "activations": [name]}
    model, inputs = Form("RNN", 14, [np.ones((2, 1, 2), np.float32), *weights], attributes).model()
    with pytest.raises(ReferenceUnavailable, match=f"{name} without its alpha"):
        OnnxReference(model).run(inputs)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_corners_are_aligned_with_the_length_that_the_output_has(mode: str) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((1, 2, 7, 9))
    scales = np.array([1, 1, 1.3, 0.6], np.float32)
    attributes = {"mode": mode, "coordinate_transformation_mode": "align_corners"}
    model, _ = Form("Resize", 13, [x.astype(np.float32), np.zeros(0, np.float32), scales], attributes).model()
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x), scale_factor=(1.3, 0.6), mode=f"bi{mode}", align_corners=True
    )
    np.testing.assert_allclose(OnnxReference(model).run({"i0": x})["o0"], expected.numpy(), atol=1e-12)


HISTORY = {
    name: [schema.since_version for schema in schemas]
    for name, schemas in itertools.groupby(
        sorted((s for s in onnx.defs.get_all_schemas_with_history() if not s.domain), key=lambda s: s.name),
        key=lambda s: s.name,
    )
}

AS_ATTRIBUTES: dict[str, dict[int, str]] = {
    "Clip": {1: "min", 2: "max"},
    "Pad": {1: "pads", 2: "value"},
    "Slice": {1: "starts", 2: "ends", 3: "axes"},
    "Split": {1: "split"},
    "Squeeze": {1: "axes"},
    "TopK": {1: "k"},
    "Unsqueeze": {1: "axes"},
    "Upsample": {1: "scales"},
    **{name: {1: "axes"} for name in HISTORY if name.startswith("Reduce")},
}
"""Inputs, by their positions, that are attributes in older opsets."""


def at_opset(
    model: onnx.ModelProto, opset: int, inputs: dict[str, Any]
) -> tuple[onnx.ModelProto, dict[str, Any]] | None:
    """The model at another opset, with inputs as attributes where they are such there; None where that cannot be."""
    copy, fed = onnx.ModelProto(), dict(inputs)
    copy.CopyFrom(model)
    next(o for o in copy.opset_import if not o.domain).version = opset
    copy.ir_version = min(copy.ir_version, 10)
    for node in copy.graph.node:
        if node.domain:
            continue
        if node.op_type not in HISTORY or min(HISTORY[node.op_type]) > opset:
            return None
        schema = onnx.defs.get_schema(node.op_type, opset)
        for position in range(len(node.input) - 1, max(schema.max_input, 1) - 1, -1):
            attribute = AS_ATTRIBUTES.get(node.op_type, {}).get(position)
            name = node.input.pop()
            values = np.asarray(fed.pop(name, [])).tolist() if name else None
            if attribute not in schema.attributes or values == []:
                return None
            kind = schema.attributes[attribute].type
            if values is not None and isinstance(values, list) and not kind.name.endswith("S"):
                (values,) = values
            if values is not None:
                node.attribute.append(helper.make_attribute(attribute, values))
        known = all(a.name in schema.attributes for a in node.attribute)
        if not known or len(node.input) > schema.max_input or len(node.output) > schema.max_output:
            return None
    stored = {tensor.name for tensor in copy.graph.initializer}
    for index in reversed([i for i, v in enumerate(copy.graph.input) if v.name not in fed and v.name not in stored]):
        del copy.graph.input[index]
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy, fed


def backend_cases() -> Iterator[tuple[str, onnx.ModelProto, dict[str, Any]]]:
    """onnx's own cases, at all opsets from 7 on that changed one of their operators."""
    from onnx.backend.test.loader import load_model_tests

    for kind in ("node", "simple", "pytorch-converted", "pytorch-operator"):
        for case in load_model_tests(kind=kind):
            if case.model is None and case.model_dir is None:
                continue  # it would have to be downloaded
            model = case.model if case.model is not None else onnx.load(Path(case.model_dir) / "model.onnx")
            stored = {tensor.name for tensor in model.graph.initializer}
            names = [value.name for value in model.graph.input if value.name not in stored]
            if case.data_sets is not None:
                values = case.data_sets[0][0]
            else:
                folder = Path(case.model_dir) / "test_data_set_0"
                tensors = [folder / f"input_{k}.pb" for k in range(len(names))]
                if not all(path.exists() for path in tensors):
                    continue
                values = [numpy_helper.to_array(onnx.load_tensor(path)) for path in tensors]
            opsets = [opset.version for opset in model.opset_import if not opset.domain]
            tensors_only = all(isinstance(value, np.ndarray | np.generic) for value in values)
            if not opsets or len(names) != len(values) or not tensors_only:
                continue
            changed = {max(v, 7) for node in model.graph.node for v in HISTORY.get(node.op_type, [])}
            for opset in sorted({*opsets, *(changed if len(model.graph.node) <= 12 else ())}):
                found = at_opset(model, opset, dict(zip(names, values, strict=True))) if opset <= NEWEST else None
                if found is not None:
                    yield f"{case.name} at opset {opset}", *found


@pytest.mark.long
def test_onnx_s_own_cases_agree_with_onnx_runtime_at_every_opset() -> None:
    wrong, tried = [], 0
    for name, model, inputs in backend_cases():
        tried += 1
        try:
            why = judged(model, inputs, ties="quantizelinear" in name)
        except ReferenceUnavailable as error:
            known = any(name.startswith(start) and reason in str(error) for start, reason in UNAVAILABLE.items())
            why = None if known else str(error)
        if why and not name.startswith(DIFFERENT):
            wrong.append(f"{name}: {why}")
    assert tried > 5000
    assert not wrong, "\n".join(wrong)
