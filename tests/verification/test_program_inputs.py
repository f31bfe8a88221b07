"""The inputs that a program is checked on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from spdexport import Status, convert
from spdexport.loading.model import ExampleInputs
from spdexport.verification.inputs import cases

if TYPE_CHECKING:
    from pathlib import Path


class Pooled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def exported(axes: dict[int, object], module: torch.nn.Module | None = None) -> torch.export.ExportedProgram:
    x = torch.rand(2, 2, 8, 10)
    return torch.export.export((module or Pooled()).eval(), (x,), dynamic_shapes=(axes,))


def test_further_dynamic_axes_have_the_sizes_at_the_ends_of_what_the_trace_holds_for() -> None:
    program = exported({0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO})
    example = ExampleInputs(args=(torch.rand(2, 2, 8, 10),))
    made = list(cases(program, example, own=True, seed=0))
    shapes = [tuple(case.inputs.args[0].shape) for case in made]
    assert [s[0] for s in shapes] == [2, 2, 1, 3, 1, 1, 2]
    assert [s[2:] for s in shapes] == [(8, 10), (9, 11), (3, 3), *[(8, 10)] * 4]
    assert made[1].name == "normal, batch 2, size 9 in the place of 8 and size 11 in the place of 10"
    assert made[2].name == "uniform, batch 1, size 3 in the place of 8 and size 3 in the place of 10"
    assert made[3].name == "sparse, batch 3"


def test_a_size_at_its_largest_becomes_the_smallest_and_one_tied_to_another_stays() -> None:
    most = torch.export.Dim("most", min=4, max=8)
    example = ExampleInputs(args=(torch.rand(2, 2, 8, 10),))
    made = list(cases(exported({2: most}), example, own=False, seed=0))
    assert [tuple(case.inputs.args[0].shape)[2] for case in made] == [8, 4, 8, 8, 8, 8]
    even = 2 * torch.export.Dim("half", min=2, max=50)
    made = list(cases(exported({3: even}), example, own=False, seed=0))
    assert {tuple(case.inputs.args[0].shape) for case in made} == {(2, 2, 8, 10)}


class TracedForOneSize(Pooled):
    """What a trace holds fast: at the size of the example nothing is wrong."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        places = 48 if torch.compiler.is_compiling() else y.shape[2] * y.shape[3]
        return y.sum((2, 3)) / places


def test_a_program_that_holds_for_one_size_alone_fails(tmp_path: Path) -> None:
    shape = {"inputs": torch.rand(2, 2, 8, 10), "dynamic": ["x:2=height"]}
    right = convert(Pooled(), tmp_path / "right.onnx", **shape)  # type: ignore[arg-type]
    wrong = convert(TracedForOneSize(), tmp_path / "wrong.onnx", **shape)  # type: ignore[arg-type]
    assert right.verdict is Status.PASS
    assert wrong.verdict is Status.FAIL
    assert wrong.verification is not None
    capture = wrong.verification.edges[0]
    assert (capture.edge, capture.status) == ("capture", Status.FAIL)
    assert capture.reason.endswith("on input uniform, batch 1, size 3 in the place of 8")
