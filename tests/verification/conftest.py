from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import small_nets
from subjects import DIGITS, make_subject

from spdexport.verification import recipes
from spdexport.verification.check import Check
from spdexport.verification.torch_source import Subject, verify_subject

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from spdexport.verification.result import Verification


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The digits run with its fixed masks: all layers V and U, the delta dropped."""
    return make_subject(
        tmp_path_factory.mktemp("digits"),
        DIGITS / "run",
        {
            "factory": f"{DIGITS / 'digits_cnn.py'}:DigitsCNN",
            "masks": DIGITS / "run" / "fixed_masks.safetensors",
            "input_shape": ["2x1x16x16"],
        },
    )


@pytest.fixture(scope="session")
def conv_bn(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    module, inputs = small_nets.conv_bn()
    return make_subject(tmp_path_factory.mktemp("conv_bn"), module, {"inputs": inputs})


@pytest.fixture(scope="session")
def five_convs(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    module, inputs = small_nets.five_convs()
    return make_subject(tmp_path_factory.mktemp("five_convs"), module, {"inputs": inputs})


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Callable[[Subject, Path], Verification]:
    """Verifies another file in a subject's place, on the first two kinds of generated input alone."""
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:2])
    return lambda subject, file: verify_subject(replace(subject, file=file), Check())
