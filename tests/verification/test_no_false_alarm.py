"""Correct conversions of varied models pass with default settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
import torch
from rounding_nets import NETS, rounding_net
from small_nets import SMALL, TRANSFORMERS, deep, image, near_100, settled, vit

from spdexport import pipeline
from spdexport.errors import ExportError
from spdexport.report.explain import advice
from spdexport.verification.compare import FACTOR
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from small_nets import Net

RUN = ("weights", "export", "optimize")


def name(make: Callable[[], Net]) -> str:
    return make.__name__


@pytest.mark.parametrize("make", SMALL, ids=name)
@pytest.mark.sampled(4)
def test_a_correct_conversion_passes(make: Callable[[], Net], tmp_path: Path) -> None:
    module, inputs = make()
    done = pipeline.convert(module, tmp_path / "m.onnx", inputs=inputs)
    assert done.verification is not None
    assert done.verdict is Status.PASS, done.verification.edges
    ran = {e.edge: e for e in done.verification.edges if e.status is not Status.NOT_RUN}
    assert set(ran) == {"capture", "rewrite", *RUN}
    assert all(e.noise_ratio is not None and e.noise_ratio <= FACTOR / 2 for e in ran.values())


@pytest.mark.parametrize("make", SMALL, ids=name)
@pytest.mark.sampled(4)
def test_a_correct_file_passes_alone(make: Callable[[], Net], tmp_path: Path) -> None:
    module, inputs = make()
    pipeline.convert(module, tmp_path / "m.onnx", inputs=inputs, verify=False)
    found = pipeline.verify(tmp_path / "m.onnx")
    assert found.verdict is Status.PASS, found.edges
    assert [e.edge for e in found.edges if e.status is Status.PASS] == list(RUN)


FAST = ("mean over 64 x 64", "group norm", "running sums", "one logit, sigmoid near 0", "one logit, SiLU", "softmax")


def assert_passes(net: str, seed: int, folder: Path) -> None:
    """A conversion and its file alone pass; how near they come to failing is in benchmarks/results/noise.md."""
    module, inputs = rounding_net(net, seed)
    done = pipeline.convert(module, folder / "m.onnx", inputs=inputs, seed=seed)
    assert done.verification is not None
    assert done.verdict is Status.PASS, (seed, done.verification.edges)
    alone = pipeline.verify(folder / "m.onnx", seed=seed)
    assert alone.verdict is Status.PASS, (seed, alone.edges)
    for edge in (*done.verification.edges, *alone.edges):
        assert (edge.noise_ratio or 0.0) <= FACTOR / 2, (seed, edge)


@pytest.mark.parametrize("net", FAST)
@pytest.mark.sampled(2)
def test_a_model_whose_kernels_round_much_passes(net: str, tmp_path: Path) -> None:
    assert_passes(net, 0, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("net", NETS)
def test_models_whose_kernels_round_much_pass_with_any_weights(net: str, tmp_path: Path) -> None:
    for seed in range(20):
        assert_passes(net, seed, tmp_path)


def test_activations_in_bfloat16_fail_behind_a_long_sum_too(tmp_path: Path) -> None:
    # The tolerance of a mean over 64 x 64 places is that of its terms, not of the worst that they could be.
    module, inputs = rounding_net("mean over 64 x 64", 0)
    pipeline.convert(module, tmp_path / "m.onnx", inputs=inputs, verify=False)
    model = onnx.load(tmp_path / "m.onnx")
    index, relu = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "Relu")
    end, relu.output[0] = relu.output[0], "long"
    model.graph.node.insert(index + 1, onnx.helper.make_node("Cast", ["long"], ["short"], to=onnx.TensorProto.BFLOAT16))
    model.graph.node.insert(index + 2, onnx.helper.make_node("Cast", ["short"], [end], to=onnx.TensorProto.FLOAT))
    onnx.save(model, tmp_path / "short.onnx")
    found = pipeline.verify(tmp_path / "short.onnx", against=tmp_path / "m.onnx", inputs=inputs)
    export = next(edge for edge in found.edges if edge.edge == "export")
    assert export.status is Status.FAIL
    assert "times what rounding explains" in export.reason


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [pytest.param(m, marks=() if m is vit else pytest.mark.long) for m in TRANSFORMERS], ids=name
)
def test_a_correct_conversion_of_a_transformers_model_passes(make: Callable[[], Net], tmp_path: Path) -> None:
    module, inputs = make()
    done = pipeline.convert(module, tmp_path / "m.onnx", inputs=inputs)
    assert done.verification is not None
    assert done.verdict is Status.PASS, done.verification.edges
    assert pipeline.verify(tmp_path / "m.onnx").verdict is Status.PASS


@pytest.mark.parametrize("opset", [None, 23])
def test_bfloat16_that_onnx_runtime_lacks_is_inconclusive(opset: int | None, tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()).bfloat16()
    module, inputs = settled(net, image().bfloat16())
    done = pipeline.convert(module, tmp_path / "m.onnx", inputs=inputs, opset=opset)
    assert done.verification is not None
    assert done.verdict is Status.INCONCLUSIVE
    for edge in done.verification.edges:
        if edge.edge in ("export", "optimize"):
            assert edge.status is Status.INCONCLUSIVE
            assert edge.reason.startswith("ONNX Runtime does not load the file: ")
            assert "Could not find an implementation for Conv(22)" in edge.reason
        elif edge.edge != "device":
            assert edge.status is Status.PASS
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == (opset or 22)
    told = advice(done.verification)
    assert told is not None
    assert "does not run the file" in told.means


@pytest.mark.parametrize("options", [{"rank": 2}, {}])
def test_all_kinds_of_layers_in_bfloat16_have_factors(options: dict[str, int], tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 5)).bfloat16()
    module, inputs = settled(net, torch.randn(2, 3, 8, 8).bfloat16())
    done = pipeline.convert(module, tmp_path / "m.onnx", inputs=inputs, **options)
    assert done.verification is not None
    assert {e.edge: e.status for e in done.verification.edges}["capture"] is Status.PASS


def test_an_opset_without_bfloat16_convolutions_is_refused(tmp_path: Path) -> None:
    module, inputs = settled(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).bfloat16(), image().bfloat16())
    with pytest.raises(ExportError, match="Conv takes bfloat16 from opset 22 on") as caught:
        pipeline.convert(module, tmp_path / "m.onnx", inputs=inputs, opset=20)
    assert "where: --opset 20" in str(caught.value)
    assert "to do: Ask for opset 22 or more" in str(caught.value)


def test_inputs_that_overflow_float16_are_left_out_and_said(tmp_path: Path) -> None:
    module, _ = settled(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))
    with torch.no_grad():
        module[0].weight *= 500  # type: ignore[index,operator]
    done = pipeline.convert(module.half(), tmp_path / "m.onnx", inputs=image().half())
    assert done.verification is not None
    assert done.verdict is Status.PASS
    assert "left out, since the model overflows its own dtype: large, batch 1" in done.verification.notes
    alone = pipeline.verify(tmp_path / "m.onnx")
    assert alone.verdict is Status.PASS
    assert any("large, batch 1" in note for note in alone.notes)


def test_outputs_that_do_not_react_are_inconclusive(tmp_path: Path) -> None:
    class Still(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.clamp(self.conv(x), 1e6, 2e6)

    done = pipeline.convert(Still(), tmp_path / "m.onnx", inputs=image())
    assert done.verdict is Status.INCONCLUSIVE
    assert done.verification is not None
    found = next(e for e in done.verification.edges if e.edge == "export")
    assert found.reason == "no output reacts to the inputs, so that they agree shows nothing"


def test_outputs_near_100_are_near_100() -> None:
    module, inputs = near_100()
    with torch.no_grad():
        assert 30 < module(*inputs).abs().max() < 1000


@pytest.mark.long
def test_a_model_200_layers_deep_passes(tmp_path: Path) -> None:
    module, inputs = deep()
    done = pipeline.convert(module, tmp_path / "m.onnx", inputs=inputs, thorough=True)
    assert done.verification is not None
    assert done.verdict is Status.PASS, done.verification.edges
    assert len(done.verification.layers) == 200
    assert all(layer.status is Status.PASS for layer in done.verification.layers)
