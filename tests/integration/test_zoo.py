"""Whole architectures: with exact SVD factors and no mask, convert then fold is the dense model to rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from spdexport.folding import fold
from spdexport.pipeline import convert
from spdexport.verification.result import Status

ZOO: dict[str, Callable[[], tuple[torch.nn.Module, tuple[int, ...]]]] = {
    "resnet": lambda: (
        transformers.ResNetForImageClassification(
            transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 64], depths=[1, 2, 1])
        ),
        (2, 3, 64, 64),
    ),
    "mobilenet_v2": lambda: (
        transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(depth_multiplier=0.35)),
        (2, 3, 64, 64),
    ),
    "convnext": lambda: (
        transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(hidden_sizes=[16, 32, 48], depths=[1, 2, 1], num_stages=3)
        ),
        (2, 3, 64, 64),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "resnet" else pytest.mark.long) for name in ZOO]
)
def test_convert_then_fold_is_the_dense_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, shape = ZOO[name]()
    module.eval()
    for layer in module.modules():
        # Statistics of a trained network: with those of a fresh one, batch norm is nearly the identity.
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.1)  # type: ignore[union-attr,operator]
            layer.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr,operator]
    conversion = convert(module, tmp_path / "factorized.onnx", inputs=torch.randn(shape))
    assert conversion.verdict is Status.PASS
    folding = fold(tmp_path / "factorized.onnx", tmp_path / "folded.onnx")
    assert folding.verdict is Status.PASS
    factorized = [layer.name for layer in conversion.plan.layers if layer.form == "factorized"]
    # MobileNetV2 has linear layers that follow each other, and those merge further.
    assert len(folding.folded) <= len(factorized)
    assert name == "mobilenet_v2" or len(folding.folded) == len(factorized)
    x = torch.randn(3, *shape[1:])
    with torch.no_grad():
        dense = module.double()(x.double()).logits.numpy()
        dtype_error = np.abs(module.float()(x).logits.numpy() - dense).max()
    for file in ("factorized.onnx", "folded.onnx"):
        session = onnxruntime.InferenceSession(tmp_path / file, providers=["CPUExecutionProvider"])
        (logits,) = session.run(None, {"pixel_values": x.numpy()})
        assert np.abs(logits - dense).max() < 10 * dtype_error + 1e-6 * np.abs(dense).max()


def test_a_program_alone_is_checked_without_onnx(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    result = convert(module, tmp_path / "m.pt2", inputs=torch.randn(2, 3, 8, 8))
    edges: dict[str, Any] = {e.edge: (e.status, e.reason) for e in result.verification.edges}  # type: ignore[union-attr]
    assert result.verdict is Status.PASS
    assert edges["capture"][0] is edges["rewrite"][0] is Status.PASS
    assert {edges[e] for e in ("weights", "export", "optimize", "device")} == {
        (Status.NOT_RUN, "no ONNX file was written")
    }
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt2"]
