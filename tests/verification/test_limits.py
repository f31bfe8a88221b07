"""The user's limits to an approximation, apart from equivalence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from cli_command import spdexport as command
from report.results import verification
from torch import nn

import spdexport
from spdexport.errors import ExampleInputError, UsageError
from spdexport.report import github
from spdexport.verification.approximation import Change, approximation
from spdexport.verification.result import Approximation, Status


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Images, with the dense model's own classes as labels but for the first, which is wrong."""
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = net()(x).argmax(1).numpy()
    labels[0] = (labels[0] + 1) % 4
    np.savez(tmp_path / "inputs.npz", x=x.numpy(), labels=labels)
    return tmp_path / "inputs.npz"


def test_labels_are_counted() -> None:
    dense = {"y": np.eye(4)}
    masked = {"y": np.eye(4)[[0, 1, 2, 2]]}
    found = approximation([Change.between(dense, masked, labels=np.array([0, 1, 2, 3]))])
    assert found is not None
    assert (found.top1_before, found.top1_after, found.top1_drop, found.top1_agreement) == (1.0, 0.75, 0.25, 0.75)
    without = approximation([Change.between(dense, masked)])
    assert without is not None
    assert (without.top1_before, without.top1_drop) == (None, 0.25)


def test_within_the_limits(tmp_path: Path, inputs: Path) -> None:
    result = spdexport.convert(
        net(), tmp_path / "m.onnx", inputs=inputs, rank="0=4", max_relative_l2=10, max_top1_drop=1
    )
    assert result.verdict is Status.PASS
    found = result.verification.approximation
    assert found is not None
    assert (found.max_relative_l2, found.max_top1_drop, found.exceeded) == (10, 1, ())
    assert found.top1_before == 7 / 8
    assert result.outputs == (tmp_path / "m.onnx",)


@pytest.mark.parametrize("onnx", [False, True], ids=["torch", "onnx"])
def test_an_exceeded_limit_is_not_a_verdict(tmp_path: Path, inputs: Path, *, onnx: bool) -> None:
    source: Any = net()
    if onnx:
        spdexport.convert(net(), tmp_path / "dense.onnx", inputs=torch.randn(2, 3, 8, 8), form="dense")
        source = tmp_path / "dense.onnx"
    result = spdexport.convert(
        source, tmp_path / "m.onnx", inputs=inputs, layers=["0"], rank=1, max_relative_l2=1e-6, max_top1_drop=0
    )
    verification = result.verification
    assert verification.verdict is Status.PASS, "the file is what was meant"
    assert verification.exceeds
    (first, *_) = verification.approximation.exceeded
    assert first.startswith("outputs differ by ")
    assert first.endswith(" in relative norm, and 1e-06 is allowed")
    assert result.outputs == (tmp_path / "m.failed.onnx",)
    assert not (tmp_path / "m.onnx").exists()


def test_the_command_line_says_it_plainly(tmp_path: Path, inputs: Path) -> None:
    torch.export.save(torch.export.export(net(), (torch.randn(8, 3, 8, 8),)), tmp_path / "net.pt2")
    out, report = tmp_path / "m.onnx", tmp_path / "r.json"
    arguments = ("convert", tmp_path / "net.pt2", "--inputs", inputs, "--max-error", "0.9", "--max-relative-l2", "1e-6")
    files = ("--report", report, "--junit", tmp_path / "j.xml", "--save-plan", tmp_path / "plan.json")
    done = command(*arguments, "-o", out, *files)
    assert done.exit_code == 1, done.output
    text = " ".join(done.output.split())
    assert "A limit that you set is exceeded: outputs differ by" in text
    assert "The file is equivalent to the intended model; it is the intended change that is too large." in text
    assert "accuracy on the labels: 87.5% -> " in text
    assert "A limit is exceeded: the file has this name instead of the one asked for" in text
    found = json.loads(report.read_text())
    assert found["verdict"] == "pass"
    assert found["approximation"]["max_relative_l2"] == 1e-6
    assert len(found["approximation"]["exceeded"]) == 1
    assert (tmp_path / "plan.json").exists(), "the plan is what it is"
    suite = ET.parse(tmp_path / "j.xml").find("testsuite[@name='spdexport.limits']")
    assert suite is not None
    assert suite.get("failures") == "1"
    quiet = command(*arguments, "-o", out, "-q")
    assert quiet.exit_code == 1
    assert "A limit that you set is exceeded" in quiet.output
    # The same file, set aside, is verified with the same limit.
    against = ("--against", tmp_path / "net.pt2", "--inputs", inputs, "--max-relative-l2")
    assert command("verify", tmp_path / "m.failed.onnx", *against, "1e-6").exit_code == 1
    assert command("verify", tmp_path / "m.failed.onnx", *against, "100").exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_relative_l2": 0.1}, "A limit is judged on inputs of yours, and there are none."),
        ({"max_top1_drop": float("nan")}, "nan is no limit."),
        ({"max_relative_l2": -1.0}, "-1.0 is no limit."),
        ({"max_relative_l2": 0.1, "verify": False, "inputs": torch.zeros(2, 3, 8, 8)}, "judged by the check"),
    ],
)
def test_limits_that_nothing_could_be_judged_on(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    shapes = {} if "inputs" in options else {"input_shape": "2x3x8x8"}
    with pytest.raises(UsageError, match=message):
        spdexport.convert(net(), tmp_path / "m.onnx", **shapes, **options)


def test_the_other_reports_show_an_exceeded_limit() -> None:
    change = Approximation(
        max_abs=1.0, relative_l2=0.5, top1_agreement=None, max_relative_l2=0.1, exceeded=("outputs differ too much",)
    )
    (told,) = github.commands(verification(approximation=change))
    assert told.startswith("::error title=spdexport")
    assert "outputs differ too much" in told
    assert "**limit exceeded**: outputs differ too much" in github.summary(verification(approximation=change))


def test_a_file_alone_has_no_approximation(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    spdexport.convert(net(), tmp_path / "m.onnx", inputs=x, verify=False)
    with pytest.raises(UsageError, match="A file alone does not tell what it approximates"):
        spdexport.verify(tmp_path / "m.onnx", inputs=x, max_relative_l2=0.1)


def test_outputs_without_classes(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 8, 3).eval()
    with pytest.raises(UsageError, match="The model has no top class"):
        spdexport.convert(model, tmp_path / "m.onnx", inputs=torch.randn(2, 3, 8, 8), rank=1, max_top1_drop=0.1)


@pytest.mark.parametrize("labels", [np.zeros((8, 2), np.int64), np.zeros(8, np.float32), np.zeros(3, np.int64)])
def test_labels_that_are_none(tmp_path: Path, labels: np.ndarray) -> None:
    np.savez(tmp_path / "bad.npz", x=np.zeros((8, 3, 8, 8), np.float32), labels=labels)
    with pytest.raises(ExampleInputError, match="The labels are ") as caught:
        spdexport.convert(net(), tmp_path / "m.onnx", inputs=tmp_path / "bad.npz")
    assert "one whole number for each sample, of 8 samples" in caught.value.hint


class TakesLabels(nn.Module):
    """A model with an input of that name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) * labels[:, None]


def test_labels_that_the_model_takes_are_an_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((2, 3, 8, 8), np.float32), labels=np.ones(2, np.float32))
    result = spdexport.convert(TakesLabels(), tmp_path / "m.onnx", inputs=tmp_path / "in.npz")
    assert result.verdict is Status.PASS
    assert spdexport.verify(tmp_path / "m.onnx", inputs=tmp_path / "in.npz").verdict is Status.PASS
