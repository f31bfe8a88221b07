from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from networks import Block, CalledTwice, DataDependent, FixedBatch, SmallNet, TwoInputs
from torch import nn

from spdexport.capture import Captured, DynamicAxes, capture, eval_mode
from spdexport.errors import CaptureError, ExampleInputError, SourceError, UsageError
from spdexport.export import export_onnx
from spdexport.loading import ExampleInputs, LoadedModel


def captured(
    module: nn.Module, *args: torch.Tensor, dynamic: DynamicAxes | None = None, **kwargs: torch.Tensor
) -> Captured:
    inputs = ExampleInputs(args=args, kwargs=kwargs, origin="the test")
    return capture(LoadedModel(kind="module", module=module), inputs, dynamic or DynamicAxes())


def input_shape(found: Captured, name: str = "x") -> list[str]:
    node = next(n for n in found.program.graph.nodes if n.op == "placeholder" and n.name == name)
    return ["dynamic" if isinstance(size, torch.SymInt) else str(size) for size in node.meta["val"].shape]


def test_a_batch_of_one_becomes_dynamic() -> None:
    module = SmallNet()
    found = captured(module, torch.randn(1, 3, 16, 16))
    assert input_shape(found) == ["dynamic", "3", "16", "16"]
    assert found.axes == {"x": {0: "batch"}}
    x = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(found.program.module()(x), module.eval()(x))


def test_static_batch_and_further_dynamic_axes() -> None:
    dynamic = DynamicAxes.parse(("x:2=height", "x:3=width"), batch=False)
    found = captured(Block(3, 4), torch.randn(1, 3, 9, 8), dynamic=dynamic)
    assert input_shape(found) == ["1", "3", "dynamic", "dynamic"]
    assert found.program.module()(torch.randn(1, 3, 12, 11)).shape == (1, 4, 10, 9)


def test_inputs_that_share_the_batch_share_its_dimension_by_position_and_by_keyword() -> None:
    for found in (
        captured(TwoInputs(), torch.randn(2, 3, 8, 8), torch.ones(2)),
        captured(TwoInputs(), torch.randn(2, 3, 8, 8), scale=torch.ones(2)),
        captured(TwoInputs(), image=torch.randn(2, 3, 8, 8), scale=torch.ones(2)),
    ):
        assert found.axes == {"image": {0: "batch"}, "scale": {0: "batch"}}
        assert input_shape(found, "scale") == ["dynamic"]


def test_the_same_tensor_may_be_given_twice() -> None:
    class Sum(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a + b

    x = torch.randn(2, 3)
    found = captured(Sum(), x, x)
    assert found.program.module()(torch.ones(3, 3), torch.zeros(3, 3)).sum() == 9


def test_a_model_that_cannot_have_a_dynamic_batch_stays_static_and_says_so() -> None:
    found = captured(FixedBatch(), torch.randn(2, 3, 8, 8))
    assert input_shape(found) == ["2", "3", "8", "8"]
    assert "the batch size is fixed" in found.notes[-1]


def test_training_mode_is_told_and_every_flag_restored() -> None:
    module = SmallNet()
    module.grouped.eval()
    flags = [m.training for m in module.modules()]
    found = captured(module, torch.randn(2, 3, 16, 16))
    assert found.notes == ("the model was in training mode; it is exported in eval mode",)
    assert [m.training for m in module.modules()] == flags
    assert captured(module.eval(), torch.randn(2, 3, 16, 16)).notes == ()


def test_flags_are_restored_when_the_block_fails() -> None:
    module = CalledTwice()
    with pytest.raises(RuntimeError, match="stop"), eval_mode(module) as training:
        assert training
        assert not module.training
        raise RuntimeError("stop")
    assert module.training


def test_a_torchscript_archive_gets_a_dynamic_batch_too() -> None:
    module = SmallNet().eval()
    found = captured(torch.jit.trace(module, torch.randn(1, 3, 16, 16)), torch.randn(1, 3, 16, 16))
    assert input_shape(found)[0] == "dynamic"
    x = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(found.program.module()(x), module(x))


def test_a_program_is_taken_as_it_is() -> None:
    program = torch.export.export(SmallNet().eval(), (torch.randn(2, 3, 16, 16),))
    found = capture(LoadedModel(kind="program", program=program), None, DynamicAxes())
    assert found.program is program


def test_a_program_in_training_mode_is_refused() -> None:
    program = torch.export.export(SmallNet().train(), (torch.randn(2, 3, 16, 16),))
    with pytest.raises(SourceError, match=r"captured in training mode: aten\.batch_norm\.default has training=True"):
        capture(LoadedModel(kind="program", program=program), None, DynamicAxes())


def test_no_example_inputs() -> None:
    with pytest.raises(ExampleInputError, match="needs example inputs"):
        capture(LoadedModel(kind="module", module=SmallNet()), None, DynamicAxes())


def test_inputs_that_the_model_cannot_take() -> None:
    with pytest.raises(ExampleInputError, match=r"fails on the example inputs 1x4x16x16:float32: RuntimeError"):
        captured(SmallNet(), torch.randn(1, 4, 16, 16))
    with pytest.raises(ExampleInputError, match="does not take these inputs: too many positional arguments"):
        captured(SmallNet(), torch.randn(1, 3, 16, 16), torch.randn(1))


@pytest.mark.parametrize(
    ("dtype", "weights", "hint"),
    [
        (torch.float64, torch.float32, r"weights are float32: store the inputs as float32 too\.$"),
        (torch.float32, torch.float64, r"weights are float64: store the inputs as float64 too\.$"),
        (torch.uint8, torch.float32, r"weights are float32: .* scaled as the model was trained"),
        (torch.float32, torch.float32, "Give inputs that the model accepts"),
    ],
)
def test_inputs_of_another_type_of_numbers(dtype: torch.dtype, weights: torch.dtype, hint: str) -> None:
    channels = 4 if dtype == weights else 3
    with pytest.raises(ExampleInputError, match="fails on the example inputs") as caught:
        captured(SmallNet().to(weights), torch.ones(1, channels, 16, 16, dtype=dtype))
    assert re.search(hint, caught.value.hint or "")


def test_a_model_that_cannot_be_traced() -> None:
    with pytest.raises(CaptureError, match=r"torch\.export cannot trace the model") as caught:
        captured(DataDependent(), torch.ones(2, 3, 8, 8))
    assert "\n" not in caught.value.what


class Windows(torch.nn.Module):
    """Attention inside of windows: (batch, windows, length, width), with two heads on an axis of their own."""

    def __init__(self, **options: object) -> None:
        super().__init__()
        self.qkv, self.options = torch.nn.Linear(8, 24), options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(-2, -3) for t in self.qkv(x).chunk(3, -1))
        options = dict(self.options)
        if "attn_mask" in options:
            options["attn_mask"] = torch.ones(5, 5, dtype=torch.bool).triu(-1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": True}, {"enable_gqa": True}]
)
def test_attention_of_five_axes_is_traced_as_its_formula(options: dict[str, object]) -> None:
    module, x = Windows(**options).eval(), torch.randn(2, 3, 5, 8)
    program = captured(module, x).program
    assert not any("attention" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), module(x))
    assert export_onnx(program).model.graph.outputs[0].shape is not None


def test_attention_of_four_axes_stays_one_operator() -> None:
    program = captured(Windows().eval(), torch.randn(2, 5, 8)).program
    assert any("attention" in str(node.target) for node in program.graph.nodes)


def test_dynamic_axes_that_name_nothing() -> None:
    with pytest.raises(UsageError, match="does not name a dynamic axis"):
        DynamicAxes.parse(("x=2",), batch=True)
    for text, what in (("y:0=n", "no input named 'y'"), ("x:4=n", "has 4 axes, so there is no axis 4")):
        with pytest.raises(UsageError, match=what):
            captured(SmallNet(), torch.randn(2, 3, 16, 16), dynamic=DynamicAxes.parse((text,), batch=True))


def test_the_callers_buffers_and_inputs_keep_their_values() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            return x.mul_(2) + self.calls

    module, x = Counting(), torch.ones(2, 3)
    capture(LoadedModel(kind="module", module=module), ExampleInputs(args=(x,)), DynamicAxes())
    assert module.calls == 0
    assert torch.equal(x, torch.ones(2, 3))


def test_a_module_that_branches_and_loops_is_taken_and_keeps_its_buffers() -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.often, self.rare = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            y = torch.cond(x.sum() > 50, lambda t: self.rare(t), lambda t: self.often(t), (x,))
            _, z = torch.while_loop(lambda i, _: i < 3, lambda i, t: (i + 1, self.often(t)), (torch.tensor(0), y))
            result: torch.Tensor = z + self.calls
            return result

    module = Steps()
    found = captured(module, torch.randn(2, 4), dynamic=DynamicAxes())
    assert [
        type(node.target).__name__ for node in found.program.graph.nodes if "Higher" in str(type(node.target).mro())
    ]
    assert module.calls == 0


def test_inputs_that_a_loaded_program_does_not_take() -> None:
    x = torch.randn(2, 4, 8, 8)
    program = torch.export.export(CalledTwice(), (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    loaded = LoadedModel(kind="pt2", program=program)
    assert capture(loaded, ExampleInputs(args=(torch.randn(5, 4, 8, 8),)), DynamicAxes()).program is program
    with pytest.raises(ExampleInputError, match="takes 1 positional inputs, and is given 2"):
        capture(loaded, ExampleInputs(args=(x, x)), DynamicAxes())
    for other, given in ((x[:, :, 1:], "2x4x7x8:float32"), (x.double(), "2x4x8x8:float64")):
        with pytest.raises(ExampleInputError) as caught:
            capture(loaded, ExampleInputs(args=(other,)), DynamicAxes())
        assert caught.value.what == f"The program's input x is *x4x8x8:float32, and is given {given}."


def test_a_loaded_program_keeps_its_axes() -> None:
    program = torch.export.export(CalledTwice(), (torch.randn(2, 4, 8, 8),))
    with pytest.raises(UsageError, match="traced already"):
        capture(LoadedModel(kind="pt2", program=program), None, DynamicAxes(named={"x": {2: "height"}}))


class ThroughNumpy(nn.Module):
    """What only torch's strict tracing follows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.maximum(self.conv(x).detach().numpy(), 0))


def test_strict_mode_where_the_other_one_fails() -> None:
    found = captured(ThroughNumpy().eval(), torch.randn(1, 3, 8, 8))
    assert input_shape(found)[0] == "dynamic"
    assert "traced by torch's strict mode, because the other one fails" in found.notes[0]


class PadsByABuffer(nn.Module):
    """As EnCodec's convolutions do."""

    stride: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3, stride=2)
        self.register_buffer("stride", torch.tensor(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        frames = torch.ceil((x.shape[-1] - 3) / self.stride + 1).to(torch.int64) - 1
        missing = frames * self.stride + 3 - x.shape[-1]
        if x.shape[-1] > max(missing, self.stride):
            x = nn.functional.pad(x, (0, missing))
        result: torch.Tensor = self.conv(x)
        return result


@pytest.mark.parametrize("size", [8, 9])
def test_sizes_computed_from_buffers_of_one_integer(size: int) -> None:
    module = PadsByABuffer()
    found = captured(module, torch.randn(2, 1, size))
    reason = "buffers of one integer are constants, because the trace fails otherwise: torch.export cannot trace"
    assert any(note.startswith(reason) for note in found.notes)
    assert input_shape(found) == ["dynamic", "1", str(size)]
    x = torch.randn(5, 1, size)
    with torch.no_grad():
        torch.testing.assert_close(found.program.module()(x), module(x))
    assert type(module) is PadsByABuffer
    assert dict(module.named_buffers()) == {"stride": torch.tensor(2)}


def test_dynamic_axes_inside_of_nested_inputs() -> None:
    class Total(nn.Module):
        def forward(self, batch: dict[str, torch.Tensor], more: list[torch.Tensor]) -> torch.Tensor:
            return batch["im-age"].sum((1, 2)) + more[0]

    inputs = ({"im-age": torch.randn(1, 3, 4)}, [torch.randn(1)])
    found = capture(
        LoadedModel(kind="module", module=Total()),
        ExampleInputs(args=inputs),
        DynamicAxes.parse(("batch_im_age:2=width",), batch=True),
    )
    assert found.axes == {"batch_im_age": {0: "batch", 2: "width"}, "more_0": {0: "batch"}}
    assert input_shape(found, "batch_im_age") == ["dynamic", "3", "dynamic"]
    x = torch.randn(5, 3, 7)
    assert found.program.module()({"im-age": x}, [torch.zeros(5)]).shape == (5,)


def test_inputs_that_are_no_tensors_keep_their_value_and_are_told() -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, scale: float, mask: torch.Tensor | None) -> torch.Tensor:
            return x * scale if mask is None else x * mask

    found = capture(
        LoadedModel(kind="module", module=Scaled().eval()),
        ExampleInputs(args=(torch.ones(2, 3), 2.5, None)),
        DynamicAxes(),
    )
    assert found.notes == ("inputs that are no tensors keep the example's value: 2.5",)


def test_dataclass_outputs_need_no_registration() -> None:
    @dataclass
    class Found:
        boxes: torch.Tensor
        scores: torch.Tensor | None

    class Detector(nn.Module):
        def forward(self, x: torch.Tensor) -> list[Found]:
            return [Found(boxes=x * 2, scores=None)]

    found = captured(Detector(), torch.randn(2, 3))
    (result,) = found.program.module()(torch.ones(3, 3))
    assert isinstance(result, Found)
    assert result.boxes.shape == (3, 3)
