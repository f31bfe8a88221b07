"""The digits run, and the layers of its model as a rewriter would list them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from source_layers import conv_spec, site

from spdexport.conv import ConvSite, ConvSpec

RUN = Path(__file__).parents[2] / "examples" / "01_digits" / "run"


@pytest.fixture(scope="session")
def run() -> Path:
    return RUN


@pytest.fixture(scope="session")
def state() -> dict[str, torch.Tensor]:
    """The checkpoint of the run; tests copy before they change it."""
    return torch.load(RUN / "model_4000.pth", weights_only=True)


@pytest.fixture(scope="session")
def sites() -> list[ConvSite]:
    dense = torch.load(RUN / "target_model.pth", weights_only=True)
    specs = {
        "conv1": conv_spec(1, 16),
        "conv2": conv_spec(16, 32),
        "conv3": conv_spec(32, 32),
        "fc1": ConvSpec.pointwise(512, 64, axes=0),
        "fc2": ConvSpec.pointwise(64, 10, axes=0),
    }
    return [site(name, spec, dense[f"{name}.weight"]) for name, spec in specs.items()]
