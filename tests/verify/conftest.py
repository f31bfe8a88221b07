from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import small_nets

import spdexport.pipeline as pipeline
from spdexport.export import export_onnx, write_onnx
from spdexport.options import Options
from spdexport.prepare import prepare
from spdexport.verify import recipes
from spdexport.verify.run import Subject, verify_subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from spdexport.verify.result import Verification

DIGITS = Path(__file__).parents[2] / "examples" / "01_digits"


def make_subject(folder: Path, source: Any, options: dict[str, Any]) -> Subject:
    """A converted file with all that verification of it needs, exported once."""
    chosen = Options.of(options)  # type: ignore[arg-type]
    prepared = prepare(source, chosen)
    intended = prepared.factorized()
    exported = export_onnx(intended, axes=prepared.captured.axes)
    file = folder / "model.onnx"
    write_onnx(exported.model, file, file)
    subject = pipeline._subject(file, file.name, prepared, intended, chosen, lambda: exported)
    return replace(subject, plain=cache(subject.plain))


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
    return lambda subject, file: verify_subject(replace(subject, file=file), providers=(), seed=0)
