"""A trace may hold for a range of sizes alone: it is found, recorded, told, checked at its ends, and not exceeded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from cli_command import spdexport as run
from planting import planted
from torch import nn

import spdexport
from spdexport.errors import ExampleInputError, SourceError, UsageError
from spdexport.ranges import SizeRange, ends, outside, ranges_json, read_ranges
from spdexport.report.json_report import to_json
from spdexport.report.terminal import as_text
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from pathlib import Path

FACTORY = '''
import torch
from torch import nn

class Positions(nn.Module):
    """It has 40 positions, and a wider image gets none."""
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.positions = nn.Parameter(torch.randn(1, 8, 1, 40))
    def forward(self, x):
        y = self.conv(x)
        return y + self.positions[..., : y.shape[-1]]

def make():
    torch.manual_seed(0)
    return Positions().eval(), (torch.randn(2, 3, 8, 16),)
'''


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranges")
    (folder / "net.py").write_text(FACTORY)
    found = convert(folder)
    assert found.verdict is Status.PASS
    (folder / "report.json").write_text(json.dumps(to_json(found)))
    (folder / "report.txt").write_text(as_text(found, width=200))
    return folder


def convert(folder: Path, dynamic: str = "x:3=width", **options: Any) -> spdexport.Conversion:
    return spdexport.convert(
        None, folder / "net.onnx", factory=f"{folder / 'net.py'}:make", dynamic=(dynamic,), **options
    )


def edge(found: spdexport.Verification, name: str) -> Any:
    return next(e for e in found.edges if e.edge == name)


def test_the_range_is_recorded_told_and_checked_at_both_ends(made: Path) -> None:
    entries = {p.key: p.value for p in onnx.load(made / "net.onnx").metadata_props}
    assert json.loads(entries["spdexport.ranges"]) == {"x": {"3": [2, 40]}}
    told = "x may have sizes 2 to 40 on axis 3, for the trace holds for no others"
    report = json.loads((made / "report.json").read_text())
    assert report["ranges"] == {"x": {"3": [2, 40]}}
    assert told in report["notes"]
    assert told in (made / "report.txt").read_text()
    assert [name for name in report["inputs"] if "size 40" in name]
    assert [name for name in report["inputs"] if "size 2 " in name]


def test_a_file_alone_is_checked_within_the_range(made: Path) -> None:
    found = spdexport.verify(made / "net.onnx")
    assert found.verdict is Status.PASS
    assert found.inputs[:2] == ("normal, batch 2, width 40", "uniform, batch 1, width 2")
    assert "x may have sizes 2 to 40 on axis 3, for the trace holds for no others" in found.notes


def test_more_than_the_trace_holds_for_is_an_error(made: Path) -> None:
    with pytest.raises(UsageError) as asked:
        convert(made, "x:3=width:2..48", verify=False)
    assert asked.value.what == "The trace holds for sizes 2 to 40 of axis 3 of x, and 2 to 48 are asked for."
    with pytest.raises(ExampleInputError) as given:
        spdexport.verify(made / "net.onnx", inputs=(torch.zeros(2, 3, 8, 48),))
    assert given.value.what == "The input x has size 48 on axis 3, and the model was traced for 2 to 40."
    result = run("verify", made / "net.onnx", "--input-shape", "2x3x8x48")
    assert result.exit_code == 4
    assert "x has size 48 on axis 3" in result.stderr
    assert convert(made, "x:3=width:4..40", verify=False).ranges == {"x": {3: SizeRange(least=2, most=40)}}


def test_a_file_that_claims_other_sizes_fails(made: Path, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        entry = next(p for p in model.metadata_props if p.key == "spdexport.ranges")
        entry.value = '{"x": {"3": [2, 400]}}'

    wrong = planted(made / "net.onnx", edit, tmp_path / "wrong.onnx")
    found = spdexport.verify(wrong, factory=f"{made / 'net.py'}:make")
    assert found.verdict is Status.FAIL
    assert edge(found, "weights").first_divergence == "x"
    assert (
        edge(found, "weights").reason == "the file says that x takes sizes 2 to 400 on axis 3, where 2 to 40 is right"
    )


@pytest.mark.parametrize(
    "text", ["[]", '{"x": 3}', '{"x": {"3": [2]}}', '{"x": {"a": [1, 2]}}', '{"x": {"3": [5, 2]}}']
)
def test_ranges_that_are_none_are_an_error_about_the_file(made: Path, tmp_path: Path, text: str) -> None:
    def edit(model: onnx.ModelProto) -> None:
        next(p for p in model.metadata_props if p.key == "spdexport.ranges").value = text

    wrong = planted(made / "net.onnx", edit, tmp_path / "wrong.onnx")
    with pytest.raises(SourceError) as error:
        spdexport.verify(wrong)
    assert "The entry 'ranges' of the file's metadata tells no sizes" in error.value.what


@pytest.mark.parametrize("axis", [0, 3])
def test_ranges_of_huge_sizes_take_no_memory(made: Path, tmp_path: Path, axis: int) -> None:
    def edit(model: onnx.ModelProto) -> None:
        entry = next(p for p in model.metadata_props if p.key == "spdexport.ranges")
        entry.value = json.dumps({"x": {str(axis): [10**12, None]}})

    wrong = planted(made / "net.onnx", edit, tmp_path / "wrong.onnx")
    with pytest.raises(ExampleInputError) as error:
        spdexport.verify(wrong)
    assert "more than the limit of values in memory" in error.value.what


def test_an_onnx_source_keeps_its_ranges(made: Path, tmp_path: Path) -> None:
    found = spdexport.convert(made / "net.onnx", tmp_path / "again.onnx", verify=False)
    assert ranges_json(found.ranges) == {"x": {"3": [2, 40]}}


def test_a_model_without_a_limit_has_no_ranges(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    found = spdexport.convert(net, tmp_path / "net.onnx", inputs=(torch.zeros(2, 3, 8, 8),), verify=False)
    assert found.ranges == {}
    assert "spdexport.ranges" not in {p.key for p in onnx.load(tmp_path / "net.onnx").metadata_props}


def test_ranges_as_values() -> None:
    held = SizeRange(least=4, most=None)
    assert 4 in held
    assert 3 not in held
    assert str(held) == "4 and more"
    assert ends(held, 10) == (11, 4)
    assert ends(SizeRange(least=2, most=4000), 16) == (64, 2)
    assert ends(SizeRange(least=2, most=40), 16) == (40, 2)
    ranges = {"x": {2: held}}
    assert read_ranges(ranges_json(ranges)) == ranges
    assert (
        outside(ranges, "x", np.zeros((1, 1, 3)).shape)
        == "x has size 3 on axis 2, and the model was traced for 4 and more"
    )
    assert outside(ranges, "x", (1, 1, 4)) is None
    assert outside(ranges, "y", (1, 1, 3)) is None
