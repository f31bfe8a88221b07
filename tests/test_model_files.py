from __future__ import annotations

import contextlib
import hashlib
import resource
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from networks import SmallNet
from stored_weights import sum_of, weights_of
from torch.export import Dim

from spdexport.errors import OutputError, SourceError
from spdexport.export import export_onnx
from spdexport.files.atomic import Pending, RejectedError, pending, replacing
from spdexport.files.onnx_reading import load_onnx
from spdexport.model_files import read_metadata, save_program, write_metadata, write_onnx

if TYPE_CHECKING:
    from collections.abc import Iterator


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


# --- a model and its data ---


def save(folder: Path, seed: int = 0, name: str = "m.onnx") -> Path:
    with pending(folder / name) as output:
        (data,) = write_onnx(sum_of(weights_of(seed)), output, external_from=0)
    return data


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("weight", "dtype"),
    [
        (weights_of(), ir.DataType.FLOAT),
        (weights_of().T, ir.DataType.FLOAT),
        (weights_of().astype(ml_dtypes.bfloat16), ir.DataType.BFLOAT16),
        ((weights_of() > 0).repeat(2, 1), ir.DataType.BOOL),
        (np.arange(4000).astype(ml_dtypes.int4), ir.DataType.INT4),
    ],
)
def test_data_hold_every_weight_and_their_name_their_content(
    weight: np.ndarray, dtype: ir.DataType, tmp_path: Path
) -> None:
    model = sum_of(weight, np.zeros(3, weight.dtype), weight, dtype=dtype)
    before = ir.to_proto(model).SerializeToString()
    with pending(tmp_path / "m.onnx") as output:
        (data,) = write_onnx(model, output, external_from=0)
    assert ir.to_proto(model).SerializeToString() == before
    assert data.name == f"m.{hashlib.sha256(data.read_bytes()).hexdigest()[:16]}.data"
    found = ir.load(tmp_path / "m.onnx").graph.initializers
    np.testing.assert_array_equal(found["w0"].const_value.numpy(), weight)
    np.testing.assert_array_equal(found["w2"].const_value.numpy(), weight)
    assert not isinstance(found["w1"].const_value, ir.ExternalTensor)


def test_a_small_model_takes_the_data_of_its_source_in(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    ir.save(sum_of(np.arange(9, dtype=np.float32)), source / "m.onnx", external_data="m.bin", size_threshold_bytes=0)
    with pending(target / "m.onnx") as output:
        write_onnx(ir.load(source / "m.onnx"), output, external_from=0)
    (source / "m.bin").unlink()
    tensor = ir.load(target / "m.onnx").graph.initializers["w0"].const_value
    np.testing.assert_array_equal(tensor.numpy(), np.arange(9))


def test_data_of_a_model_that_is_not_finished_go(tmp_path: Path) -> None:
    data = save(tmp_path)
    for seed in (0, 1):
        with contextlib.suppress(KeyboardInterrupt), pending(tmp_path / "m.onnx") as output:
            write_onnx(sum_of(weights_of(seed)), output, external_from=0)
            raise KeyboardInterrupt
        # Those of the finished one stay, although the model that was not had the same.
        assert names(tmp_path) == sorted(["m.onnx", data.name])


def test_data_of_an_earlier_model_outlast_an_unfinished_one_that_has_the_same(tmp_path: Path) -> None:
    older = save(tmp_path, seed=0)
    newer = save(tmp_path, seed=1)
    with contextlib.suppress(KeyboardInterrupt), pending(tmp_path / "m.onnx") as output:
        write_onnx(sum_of(weights_of(0)), output, external_from=0)
        raise KeyboardInterrupt
    assert names(tmp_path) == sorted(["m.onnx", older.name, newer.name])


def test_data_of_a_rejected_model_stay_with_it(tmp_path: Path) -> None:
    with contextlib.suppress(RejectedError), pending(tmp_path / "m.onnx") as output:
        (data,) = write_onnx(sum_of(weights_of()), output, external_from=0)
        output.set_aside()
    assert names(tmp_path) == sorted(["m.failed.onnx", data.name])


@pytest.mark.parametrize("first_fails", [True, False])
def test_two_at_once_with_the_same_data(tmp_path: Path, first_fails: bool) -> None:
    def write(output: Pending) -> None:
        write_onnx(sum_of(weights_of()), output, external_from=0)

    with contextlib.suppress(KeyboardInterrupt), pending(tmp_path / "m.onnx") as outer:
        write(outer)
        with contextlib.suppress(KeyboardInterrupt), pending(tmp_path / "m.onnx") as inner:
            write(inner)
            if first_fails:
                raise KeyboardInterrupt
        if not first_fails:
            raise KeyboardInterrupt
    onnx.checker.check_model(tmp_path / "m.onnx")
    assert len(names(tmp_path)) == 2
    np.testing.assert_array_equal(
        ir.load(tmp_path / "m.onnx").graph.initializers["w0"].const_value.numpy(), weights_of()
    )


KILLED = """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from spdexport.files import atomic
    from spdexport.files.atomic import pending
    from spdexport.model_files import write_onnx
    from stored_weights import sum_of, weights_of

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    if sys.argv[3] == "between":  # the model has its first name, its data have not
        atomic.Pending._take = kill
    with pending(Path(sys.argv[2]) / "m.onnx") as output:
        write_onnx(sum_of(weights_of(1)), output, external_from=0)
        kill()
"""


@pytest.mark.parametrize("moment", ["between", "after"])
def test_a_killed_run_leaves_the_old_pair_and_the_next_run_nothing_else(tmp_path: Path, moment: str) -> None:
    data = save(tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(Path(__file__).parent), str(tmp_path), moment]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == (3 if moment == "between" else 4)
    onnx.checker.check_model(tmp_path / "m.onnx")
    with replacing(tmp_path / "report.json") as report:
        report.write_text("{}")
    assert names(tmp_path) == sorted(["m.onnx", data.name, "report.json"])


def test_data_that_a_model_names_outlast_the_run_that_was_killed(tmp_path: Path) -> None:
    """It may have been finished by another run since."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(Path(__file__).parent), str(tmp_path), "after"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".m.*.onnx")
    (data,) = tmp_path.glob("m.*.data")
    (tmp_path / "copy.onnx").write_bytes(left.read_bytes())
    save(tmp_path, seed=0)
    assert not left.exists()
    assert data.exists()
    onnx.checker.check_model(tmp_path / "copy.onnx")


@contextlib.contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file be longer: a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("external", [0, 10**9])
def test_no_room_for_a_model(tmp_path: Path, external: int) -> None:
    data = save(tmp_path)
    before = (tmp_path / "m.onnx").read_bytes()

    def write() -> None:
        with pending(tmp_path / "m.onnx") as output, files_up_to(2000):
            write_onnx(sum_of(weights_of(1)), output, external_from=external)

    with pytest.raises(OutputError, match="larger than the system allows"):
        write()
    assert names(tmp_path) == sorted(["m.onnx", data.name])
    assert (tmp_path / "m.onnx").read_bytes() == before


def test_no_room_for_a_program(small: torch.export.ExportedProgram, tmp_path: Path) -> None:
    """torch's own writer ends the process on a full disk."""
    target = tmp_path / "m.pt2"
    target.write_text("old")

    def write() -> None:
        with replacing(target) as temporary, files_up_to(5000):
            save_program(small, temporary, target)

    with pytest.raises(OutputError, match="larger than the system allows") as caught:
        write()
    assert caught.value.where == str(target)
    assert names(tmp_path) == ["m.pt2"]
    assert target.read_text() == "old"
