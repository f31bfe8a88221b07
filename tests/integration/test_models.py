"""What models take and give: nested inputs and outputs, dtypes, tied weights, fixed batches; each through convert."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from spdexport.pipeline import Conversion, convert
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.long


def converted(module: nn.Module, inputs: Any, folder: Path, **options: Any) -> tuple[Conversion, dict[str, list[Any]]]:
    """The conversion, and the inputs and outputs of the file: name to shape."""
    result = convert(module, folder / "m.onnx", inputs=inputs, **options)
    file = next(folder.glob("*.onnx"))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    ports = [*session.get_inputs(), *session.get_outputs()]
    return result, {port.name: port.shape for port in ports}


@dataclass
class Detections:
    boxes: torch.Tensor
    scores: torch.Tensor | None
    extra: dict[str, torch.Tensor]


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.words = nn.Embedding(10, 4)

    def forward(self, batch: Mapping[str, Any], frames: list[torch.Tensor], scale: float = 1.0) -> Detections:
        x = self.conv(batch["image"] + frames[0] * scale)
        if batch["mask"] is not None:
            x = x * batch["mask"]
        y = x + self.words(batch["ids"]).mean(1)[:, :, None, None]
        return Detections(boxes=y, scores=None, extra={"left": x.mean((1, 2, 3)), "right": frames[1] * 2})


def nested_inputs() -> dict[str, Any]:
    image = torch.randn(1, 3, 8, 8)
    batch = {"image": image, "mask": None, "ids": torch.tensor([[1, 4, 9]])}
    return {"batch": batch, "frames": [torch.randn(1, 3, 8, 8), torch.randn(1, 2)], "scale": 0.5}


def test_nested_inputs_and_outputs_keep_their_names_and_the_batch(tmp_path: Path) -> None:
    result, ports = converted(
        Nested(), nested_inputs(), tmp_path, dynamic=("batch_image:2=height", "frames_0:2=height")
    )
    assert result.verdict is Status.PASS
    assert ports == {
        "batch_image": ["batch", 3, "height", 8],
        "batch_ids": ["batch", 3],
        "frames_0": ["batch", 3, "height", 8],
        "frames_1": ["batch", 2],
        "boxes": ["batch", 4, "height - 2", 6],
        "extra.left": ["batch"],
        "extra.right": ["batch", 2],
    }
    assert "inputs that are no tensors keep the example's value: 0.5" in result.notes


class Outputs(nn.Module):
    """Tuples in dicts, a named tuple, and None."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, *xs: torch.Tensor, gain: torch.Tensor | None = None) -> OrderedDict[str, Any]:
        y = self.layer(sum(xs))
        if gain is not None:
            y = y * gain
        pair = Pair(left=y, right=y.argmax(-1))
        return OrderedDict(pair=pair, nothing=None, more=(y.relu(), [y.sum(-1)]))


@pytest.mark.parametrize("gain", [False, True])
def test_outputs_of_every_structure(gain: bool, tmp_path: Path) -> None:
    keywords = {"gain": torch.randn(2, 1)} if gain else {}
    result, ports = converted(Outputs(), ((torch.randn(2, 4), torch.randn(2, 4)), keywords), tmp_path)
    assert result.verdict is Status.PASS
    assert list(ports) == ["xs_0", "xs_1", *keywords, "pair.left", "pair.right", "more.0", "more.1.0"]


def test_a_program_with_nested_inputs_and_keywords_in_another_order(tmp_path: Path) -> None:
    module, inputs = Nested().eval(), nested_inputs()
    inputs["batch"]["mask"] = torch.rand(1, 4, 6, 6)
    with torch.no_grad():
        module(**inputs)
    program = torch.export.export(_Plain(module), (), inputs)
    turned = dict(reversed(inputs.items()))
    assert convert(program, tmp_path / "m.onnx", inputs=turned).verdict is Status.PASS
    assert convert(program, tmp_path / "n.onnx").verdict is Status.PASS


class _Plain(nn.Module):
    """Its module with a dict in the place of the dataclass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, batch: Mapping[str, Any], frames: list[torch.Tensor], scale: float) -> Any:
        found = self.inner(batch, frames, scale)
        return {"boxes": found.boxes, "extra": found.extra}


class Net(nn.Module):
    """Convolution, batch norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.relu(self.norm(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize(
    ("dtype", "verdict"),
    [
        (torch.float16, Status.PASS),
        # ONNX Runtime has no CPU kernels for these convolutions, which says nothing about the file.
        (torch.bfloat16, Status.INCONCLUSIVE),
        (torch.float64, Status.INCONCLUSIVE),
    ],
)
def test_dtypes(dtype: torch.dtype, verdict: Status, tmp_path: Path) -> None:
    result = convert(Net().to(dtype), tmp_path / "m.onnx", inputs=torch.randn(2, 3, 8, 8, dtype=dtype))
    assert result.verdict is verdict
    edges = {e.edge: e for e in result.verification.edges}  # type: ignore[union-attr]
    for edge in ("capture", "weights", "rewrite"):
        assert edges[edge].status is Status.PASS
    if verdict is Status.INCONCLUSIVE:
        assert "ONNX Runtime" in edges["export"].reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_linear_layers_run_or_say_why(dtype: torch.dtype, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4)).to(dtype)
    result = convert(module, tmp_path / "m.onnx", inputs=torch.randn(2, 6, dtype=dtype))
    assert result.verdict is (Status.INCONCLUSIVE if dtype is torch.bfloat16 else Status.PASS)


class Tied(nn.Module):
    """A language model's embedding and head, which are one weight, and two convolutions that are another."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.words.weight
        self.first, self.second = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)
        self.second.weight = self.first.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids).transpose(1, 2)
        return self.head(self.second(self.first(x).relu()).transpose(1, 2))


def test_tied_weights_stay_tied_where_nothing_replaces_them(tmp_path: Path) -> None:
    result, ports = converted(Tied(), torch.randint(0, 12, (2, 5)), tmp_path)
    assert result.verdict is Status.PASS
    assert ports["ids"] == ["batch", 5]
    assert [layer.name for layer in result.plan.layers] == ["first", "second", "head"]


class FixedReshape(nn.Module):
    """It works with a batch of 2 alone, which the tracer sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(2, -1)


def test_a_model_that_cannot_have_a_dynamic_batch(tmp_path: Path) -> None:
    result, ports = converted(FixedReshape(), torch.randn(2, 3, 8, 8), tmp_path)
    assert result.verdict is Status.PASS
    assert ports["x"] == [2, 3, 8, 8]
    assert any("the batch size is fixed at the example's" in note for note in result.notes)


class SelfAttention(nn.Module):
    """Attention with a trained bias: torch chooses its kernel, and with it strides, by whether there are gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.bias = nn.Linear(8, 24), nn.Parameter(torch.randn(1, 2, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.project(x).reshape(-1, 4, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return y.transpose(1, 2).reshape(-1, 4, 8)


def test_attention_whose_kernel_depends_on_gradients(tmp_path: Path) -> None:
    assert convert(SelfAttention(), tmp_path / "m.onnx", inputs=torch.randn(2, 4, 8)).verdict is Status.PASS


class ConstantLayer(nn.Module):
    """A layer that runs on a constant: the exporter evaluates it."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.layer = nn.Linear(2, 6), nn.Linear(6, 6)
        self.register_buffer("grid", torch.randn(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x + self.positions(self.grid))


def test_a_layer_on_a_constant_is_left_alone_with_its_reason(tmp_path: Path) -> None:
    result = convert(ConstantLayer(), tmp_path / "m.onnx", inputs=torch.randn(2, 4, 6))
    assert result.verdict is Status.PASS
    assert [(s.name, s.reason) for s in result.plan.skipped] == [
        ("positions", "its input is constant, so that the file holds its output")
    ]
