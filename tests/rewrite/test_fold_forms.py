"""Folding undoes factorizing: for every form and geometry, in graphs of both kinds, in float64."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import torch
from form_strategies import forms, geometries
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from spdexport.arrays import to_numpy
from spdexport.conv import ConvSpec, stored_weight
from spdexport.forms import Form, fold_form
from spdexport.reference.onnx_reference import OnnxReference
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.onnx_graph import conv_attributes, read_layer
from spdexport.rewrite.torch_fold import fold_program
from spdexport.rewrite.torch_graph import list_sites
from spdexport.rewrite.torch_place import place_forms

SIZE = 9
"""Large enough for every kernel and crop that is drawn."""


def model_of(form: Form) -> onnx.ModelProto:
    """A form as an ONNX graph in float64, written by hand."""
    nodes, arrays, ends = [], {}, []
    for c, chain in enumerate(form.chains):
        value = "x"
        for s, stage in enumerate(chain):
            name = f"{c}_{s}"
            arrays[f"{name}.weight"] = np.ascontiguousarray(stored_weight(stage.weight, stage.spec))
            inputs = [value, f"{name}.weight"]
            if stage.bias is not None and stage.mask is None:
                arrays[f"{name}.bias"] = stage.bias
                inputs.append(f"{name}.bias")
            value = f"{name}.out"
            node = helper.make_node("ConvTranspose" if stage.spec.transposed else "Conv", inputs, [value])
            node.attribute.extend(ir.to_proto(attribute) for attribute in conv_attributes(stage.spec))
            nodes.append(node)
            if stage.mask is not None:
                arrays[f"{name}.mask"] = stage.mask.reshape(-1, *(1,) * stage.spec.axes)
                nodes.append(helper.make_node("Mul", [value, f"{name}.mask"], [f"{name}.masked"]))
                value = f"{name}.masked"
        ends.append(value)
    while len(ends) > 1:
        left, right, *ends = ends
        nodes.append(helper.make_node("Add", [left, right], [f"{left}+{right}"]))
        ends.append(f"{left}+{right}")
    spec = form.chains[0][0].spec
    nodes.append(helper.make_node("Relu", ends, ["y"]))
    graph = helper.make_graph(
        nodes,
        "form",
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, (2, spec.in_channels, *(SIZE,) * spec.axes))],
        [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [None] * (spec.axes + 2))],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def close(got: np.ndarray, right: np.ndarray) -> bool:
    return got.shape == right.shape and bool(np.abs(got - right).max(initial=0) <= 1e-11 * (1 + np.abs(right).max()))


@settings(max_examples=60)
@given(st.data())
def test_an_onnx_graph(data: st.DataObject) -> None:
    spec: ConvSpec = data.draw(geometries(symmetric=False))
    form: Form = data.draw(forms(spec))
    model = model_of(form)
    result = fold_onnx(ir.from_proto(model))
    layer, relu = (node.op_type for node in result.model.graph)
    assert relu == "Relu"
    assert layer == ("ConvTranspose" if spec.transposed else "Conv") or (is_pointwise(spec) and layer == "Conv")
    assert result.declined == ()
    assert len(result.folded) == (len(form.stages) > 1)
    stage = read_layer(next(iter(result.model.graph))).stage
    wanted = fold_form(form)
    assert same_reach(stage.spec, spec)
    assert close(stage.weight, wanted.weight)
    x = np.random.default_rng(0).standard_normal((2, spec.in_channels, *(SIZE,) * spec.axes))
    before, after = (OnnxReference(m).run({"x": x})["y"] for m in (model, ir.to_proto(result.model)))
    assert before.dtype == after.dtype == np.float64
    assert close(after, before)


def same_reach(a: ConvSpec, b: ConvSpec) -> bool:
    """Equal but for the dilation of axes with a single tap, and for groups, which chains may have written out.

    A transposed convolution that is pointwise is a convolution.
    """

    def key(spec: ConvSpec) -> tuple[object, ...]:
        if is_pointwise(spec):
            return (spec.in_channels, spec.out_channels, spec.axes)
        dilation = tuple(d if k > 1 else 1 for d, k in zip(spec.dilation, spec.kernel, strict=True))
        return (*spec.moves[:3], dilation, *spec.moves[4:], spec.in_channels, spec.out_channels)

    return key(a) == key(b)


def is_pointwise(spec: ConvSpec) -> bool:
    is_moved = any(map(any, spec.padding)) or any(spec.output_padding)
    return set(spec.kernel) == set(spec.stride) == {1} and not is_moved


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_a_torch_program(data: st.DataObject) -> None:
    spec: ConvSpec = data.draw(geometries(symmetric=True))
    form: Form = data.draw(forms(spec))
    options = {"output_padding": spec.output_padding} if spec.transposed else {}
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d) if spec.transposed else (
        nn.Conv1d, nn.Conv2d, nn.Conv3d,
    )  # fmt: skip
    layer = kinds[spec.axes - 1](
        spec.in_channels, spec.out_channels, spec.kernel, spec.stride, [before for before, _ in spec.padding],
        groups=spec.groups, dilation=spec.dilation, bias=False, dtype=torch.float64, **options,
    )  # fmt: skip
    x = torch.randn(2, spec.in_channels, *(SIZE,) * spec.axes, dtype=torch.float64)
    program = torch.export.export(nn.Sequential(layer, nn.ReLU()).eval(), (x,))
    (site,), _ = list_sites(program)
    assert site.spec == spec
    placed = place_forms(program, [(site, form)])
    result = fold_program(placed)
    assert result.declined == ()
    (folded,), _ = list_sites(result.program)
    assert same_reach(folded.spec, spec)
    wanted = fold_form(form)
    assert close(folded.weight, wanted.weight)
    assert (folded.bias is None) == (wanted.bias is None)
    assert folded.bias is None or close(folded.bias, wanted.bias)
    (before,), (after,) = (evaluate(p, (x,)) for p in (placed, result.program))
    assert close(to_numpy(after), to_numpy(before))
