"""A torch model is exported once, for its file and for what the file is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from spdexport import pipeline
from spdexport.dense_export import DenseExport
from spdexport.export import translate
from spdexport.options import Options
from spdexport.prepare import prepare
from spdexport.rewrite.exported_sites import match_exported
from spdexport.rewrite.torch_graph import module_path
from spdexport.routes import TorchRoute
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from pathlib import Path


class Mixed(nn.Module):
    """Convolutions with batch norm and without, one called twice, and a linear layer on two and on three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.linear = nn.Linear(6, 5)
        self.last = nn.Linear(5, 4, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give two outputs."""
        y = self.norm(self.conv(x)).relu()
        y = self.up(self.twice(self.twice(y)).relu())
        tokens = self.linear(y.flatten(2).transpose(1, 2))
        return self.last(self.linear(y.mean((2, 3)))), self.last(tokens)


class Computed(nn.Module):
    """A layer whose weight is an expression of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(6, 1) + 0.5)
        self.rows = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply with rows that are scaled."""
        return nn.functional.linear(x, self.scale * self.rows)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The programs that torch's exporter is given."""
    given: list[Any] = []
    exporter = torch.onnx.export

    def counted(program: Any, *args: Any, **kwargs: Any) -> Any:
        given.append(program)
        return exporter(program, *args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", counted)
    return given


@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"form": "auto"}], ids=["exact", "truncated", "auto"])
@pytest.mark.sampled(1)
def test_a_conversion_exports_once(tmp_path: Path, exports: list[Any], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    module = Mixed().eval()
    result = pipeline.convert(module, tmp_path / "m.onnx", inputs=x, thorough=True, **options)
    assert (result.verdict, len(exports)) == (Status.PASS, 1)
    assert pipeline.verify(tmp_path / "m.onnx", against=module, inputs=x).verdict is Status.PASS
    assert len(exports) == 2


def test_initializers_are_named_after_their_layers(tmp_path: Path) -> None:
    pipeline.convert(Mixed().eval(), tmp_path / "m.onnx", inputs=torch.randn(2, 3, 6, 6), verify=False)
    names = set(ir.load(tmp_path / "m.onnx").graph.initializers)
    layers = ("conv", "twice", "up", "linear", "last")
    assert {f"{layer}.{part}" for layer in layers for part in "VU"} <= names


def test_values_have_the_names_of_the_program_that_locates_faults() -> None:
    options = Options.of({"inputs": torch.randn(2, 3, 6, 6)})
    route = TorchRoute(prepare(Mixed().eval(), options), options)
    model = route.model()
    subject = route.subject(None, "m.onnx")
    lowered = {n.name: n for n in subject.lowered().graph.nodes}
    named = [v.name for node in model.graph for v in node.outputs if v.name in lowered]
    # A batch norm that is in the layer before it has that layer's output.
    assert {"norm", "twice", "up", "linear"} <= {module_path(lowered[name]) for name in named}


def test_where_a_weight_is_computed_the_factorized_program_is_exported(tmp_path: Path, exports: list[Any]) -> None:
    result = pipeline.convert(Computed().eval(), tmp_path / "m.onnx", inputs=torch.randn(3, 4))
    assert result.verdict is Status.PASS
    assert len(exports) == 2


def test_layers_are_matched_by_their_numbers_too() -> None:
    module = Mixed().eval()
    program = torch.export.export(module, (torch.randn(2, 3, 6, 6),))
    translated = translate(program)
    places = match_exported(program, translated.lowered, translated.model)
    assert places is not None
    assert len(places) == 8
    assert [place.adds_behind for place in places.values()].count(True) == 1
    for name in ("conv.weight", "conv.bias", "linear.bias"):
        held = translated.model.graph.initializers[name]
        right = held.const_value
        assert right is not None
        held.const_value = ir.tensor(right.numpy() * np.float32(1.5), name=name)
        assert match_exported(program, translated.lowered, translated.model) is None
        held.const_value = right


def test_a_graph_without_forms_is_only_optimized() -> None:
    program = torch.export.export(Computed().eval(), (torch.randn(3, 4),))
    dense = DenseExport(program, opset=None, axes={})
    assert dense.takes(())
    assert [node.op_type for node in dense.model(()).graph][-1] in ("Gemm", "MatMul")
