from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import SmallNet
from torch.export import Dim

from spdexport.errors import SourceError
from spdexport.export import export_onnx
from spdexport.files.atomic import pending
from spdexport.model_files import load_onnx, read_metadata, save_program, write_metadata, write_onnx


@pytest.fixture(scope="module")
def small() -> torch.export.ExportedProgram:
    x = torch.randn(2, 3, 16, 16)
    return torch.export.export(SmallNet().eval(), (x,), dynamic_shapes=({0: Dim("n")},))


def test_metadata_goes_both_ways_and_survives_other_hands(small: torch.export.ExportedProgram) -> None:
    model = export_onnx(small).model
    write_metadata(model, {"b": [1, None], "a": {"y": 1, "x": 2}})
    model.metadata_props["spdexport.broken"] = "{"
    model.metadata_props["other"] = "1"
    assert read_metadata(model) == {"a": {"x": 2, "y": 1}, "b": [1, None]}
    assert model.metadata_props["spdexport.a"] == '{"x": 2, "y": 1}'


def test_large_weights_go_to_a_file_named_by_its_content(small: torch.export.ExportedProgram, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)

    def run(path: Path) -> np.ndarray:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]

    model = export_onnx(small).model
    for name, limit in (("whole", 10**9), ("split", 0)):
        with pending(tmp_path / f"{name}.onnx") as output:
            data = write_onnx(model, output, external_from=limit)
        assert len(data) == (name == "split")
    (data,) = tmp_path.glob("split.*.data")
    proto = onnx.load(tmp_path / "split.onnx", load_external_data=False)
    places = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
    assert places == {data.name}
    onnx.checker.check_model(tmp_path / "split.onnx")
    np.testing.assert_array_equal(run(tmp_path / "split.onnx"), run(tmp_path / "whole.onnx"))
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".data", ".onnx", ".onnx"]


def test_files_that_are_no_model(tmp_path: Path, small: torch.export.ExportedProgram) -> None:
    cases = {"missing.onnx": None, "empty.onnx": b"", "garbage.onnx": b"\x00\x01 no protobuf"}
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=r"no such file|file is empty|not a valid ONNX model"):
            load_onnx(tmp_path / name)
    with pending(tmp_path / "m.onnx") as output:
        write_onnx(export_onnx(small).model, output, external_from=0)
    (data,) = tmp_path.glob("*.data")
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(SourceError, match="is shorter than the model says"):
        load_onnx(tmp_path / "m.onnx")
    data.unlink()
    with pytest.raises(SourceError, match="is missing"):
        load_onnx(tmp_path / "m.onnx")


def test_a_saved_program_holds_no_paths_and_the_one_given_keeps_them(
    small: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    assert any("stack_trace" in node.meta for node in small.graph.nodes)
    save_program(small, tmp_path / "small.pt2")
    with zipfile.ZipFile(tmp_path / "small.pt2") as archive:
        assert not any(b".py" in archive.read(name) for name in archive.namelist())
    assert any("stack_trace" in node.meta for node in small.graph.nodes)
