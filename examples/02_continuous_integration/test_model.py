"""The same check as a test of the project's own: the fixture ``assert_equivalent`` comes with spdexport."""

from pathlib import Path

import torch
from model import SmallCNN
from safetensors.torch import load_file

HERE = Path(__file__).parent


def test_the_file_is_the_model(assert_equivalent):
    model = SmallCNN()
    model.load_state_dict(load_file(HERE / "weights.safetensors"))
    torch.manual_seed(0)
    assert_equivalent(HERE / "model.onnx", model, torch.randn(4, 1, 16, 16), providers=["cpu"])
