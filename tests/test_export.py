from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from networks import SmallNet, TwoInputs
from torch import nn
from torch.export import Dim

from spdexport.errors import ExportError
from spdexport.export import export_onnx
from spdexport.rewrite.onnx_names import name_scopes


def program_of(module: nn.Module, *args: torch.Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(module.eval(), args, dynamic_shapes=tuple({0: Dim("n")} for _ in args))


@pytest.fixture(scope="module")
def small() -> torch.export.ExportedProgram:
    return program_of(SmallNet(), torch.randn(2, 3, 16, 16))


def shape(value: ir.Value) -> list[str]:
    return [str(d) for d in value.shape or ()]


def test_axes_inputs_and_outputs_have_names(small: torch.export.ExportedProgram) -> None:
    model = export_onnx(small, axes={"x": {0: "samples"}}).model
    assert [(v.name, shape(v)) for v in model.graph.inputs] == [("x", ["samples", "3", "16", "16"])]
    assert [(v.name, shape(v)) for v in model.graph.outputs] == [("output", ["samples", "5"])]
    symbols = {d for node in model.graph for v in node.outputs for d in shape(v) if not d.isdigit()}
    assert symbols == {"samples"}


def test_axes_without_a_given_name_are_called_after_what_they_are() -> None:
    class Resizable(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.mean((2, 3))

    axes = {"image": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}}
    program = torch.export.export(Resizable(), (torch.randn(2, 3, 5, 4),), dynamic_shapes=axes)
    (image,) = export_onnx(program).model.graph.inputs
    assert shape(image) == ["batch", "3", "image_dim2", "4"]


def test_outputs_are_called_after_the_models_own_structure() -> None:
    class Nested(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            return x + 1, {"twice": 2 * x, "x": x - 1}

    model = export_onnx(program_of(TwoInputs(), torch.randn(2, 3, 8, 8), torch.ones(2))).model
    assert [v.name for v in model.graph.outputs] == ["features", "mean"]
    model = export_onnx(program_of(Nested(), torch.randn(2, 3))).model
    assert [v.name for v in model.graph.outputs] == ["output_0", "1.twice", "1.x"]


def test_only_the_module_path_is_kept_of_what_the_exporter_notes(small: torch.export.ExportedProgram) -> None:
    model = export_onnx(small).model
    content = ir.to_proto(model).SerializeToString()
    assert not any(word in content for word in (b"site-packages", b".py", b"stack_trace", b"forward("))
    assert name_scopes(model.graph[0])[:2] == ["", "stem"]


def test_the_opset_is_as_asked_or_an_error(small: torch.export.ExportedProgram) -> None:
    assert export_onnx(small, opset=19).model.opset_imports[""] == 19
    with pytest.raises(ExportError, match="gives opset 18 where 17 was asked for"):
        export_onnx(small, opset=17)


def test_an_operator_without_an_onnx_form_is_named() -> None:
    class Unknown(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvalsh(x)

    program = torch.export.export(Unknown(), (torch.eye(3),))
    with pytest.raises(ExportError, match=r"eigvalsh|_linalg_eigh"):
        export_onnx(program)


def test_an_input_that_is_an_output_too_keeps_its_name() -> None:
    class Passing(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor | None]]:
            return x, {"none": None, "more": x + 1}

    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x, "more": x + 1}

    model = export_onnx(program_of(Passing(), torch.randn(2, 3)), axes={"x": {0: "samples"}}).model
    assert [(v.name, shape(v)) for v in model.graph.inputs] == [("x", ["samples", "3"])]
    assert [v.name for v in model.graph.outputs] == ["output_0", "1.more"]
    model = export_onnx(program_of(Named(), torch.randn(2, 3))).model
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert [v.name for v in model.graph.outputs] == ["x_value", "more"]


def test_batch_norm_that_is_folded_into_a_bfloat16_layer_leaves_weights_of_one_dtype() -> None:
    program = program_of(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).bfloat16(), torch.ones(2, 3, 8, 8).bfloat16()
    )
    model = export_onnx(program).model
    assert {str(v.dtype) for v in model.graph.initializers.values()} == {"BFLOAT16"}
    assert [node.op_type for node in model.graph] == ["Conv"]


def test_attention_is_exported_with_the_kernel_that_was_traced() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.randn(1, 2, 4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = x.reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
            return y.transpose(1, 2).reshape(-1, 4, 8)

    with torch.no_grad():
        program = program_of(Biased(), torch.randn(2, 4, 24))
    # Gradients would choose another kernel, whose output has other strides than the graph relies on.
    with torch.enable_grad():
        assert export_onnx(program).model.graph.outputs[0].name == "output"


class PaddedPool(nn.Module):
    """As BiT pads in front of its pooling."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.max_pool2d(nn.functional.pad(x, (1, 1, 1, 1)), 3, stride=2)


def test_zeros_in_front_of_max_pooling_stay_zeros_on_onnx_runtime() -> None:
    x = -torch.rand(2, 3, 8, 8) - 1
    model = export_onnx(program_of(PaddedPool(), x)).model
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {model.graph.inputs[0].name: x.numpy()})[0]
    assert (found[:, :, 0] == 0).all()
    np.testing.assert_array_equal(found, PaddedPool()(x).numpy())
