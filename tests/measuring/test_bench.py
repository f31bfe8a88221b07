"""Measuring files: what is reported and refused. No time is judged."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from spdexport import UsageError, bench
from spdexport.cli import main
from spdexport.errors import ExampleInputError, SourceError
from spdexport.files.hashing import sha256_file

CPU = "CPUExecutionProvider"


def net(path, *, channels=4, inputs=("x",), shape=("batch", 3, 8, 8), external=False):
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((channels, 3, 3, 3)).astype(np.float32), "w")
    ports = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in inputs]
    nodes = [helper.make_node("Conv", [name, "w"], [f"y{name}"], name=f"conv {name}") for name in inputs]
    outs = [helper.make_tensor_value_info(f"y{name}", onnx.TensorProto.FLOAT, None) for name in inputs]
    graph = helper.make_graph(nodes, "g", ports, outs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path, save_as_external_data=external, location=f"{path.stem}.data", size_threshold=0)
    return path


def command(*arguments):
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_one_file(tmp_path):
    file = net(tmp_path / "a.onnx")
    found = bench(file, rounds=3, batch=5, threads=1)
    (timed,) = found.files
    assert (timed.name, timed.sha256, timed.size) == ("a.onnx", sha256_file(file), file.stat().st_size)
    assert timed.placement == {CPU: 1}
    assert timed.time.runs == 3
    assert 0 < timed.time.low <= timed.time.median <= timed.time.high
    assert timed.peak_memory >= timed.base_memory > 2**20
    assert found.ratio is None
    assert found.inputs == ("x float32 (5, 3, 8, 8)",)
    assert (found.provider, found.threads) == ("cpu", 1)


def test_two_files_and_the_size_of_data_beside_them(tmp_path):
    file, other = net(tmp_path / "a.onnx", channels=64, external=True), net(tmp_path / "b.onnx")
    found = bench(file, against=other, rounds=5)
    assert [f.name for f in found.files] == ["a.onnx", "b.onnx"]
    assert found.files[0].size == file.stat().st_size + (tmp_path / "a.data").stat().st_size
    assert found.ratio.low <= found.ratio.median <= found.ratio.high


def test_the_report(tmp_path):
    net(tmp_path / "a.onnx")
    net(tmp_path / "b.onnx")
    done = command(
        tmp_path / "a.onnx", "--against", tmp_path / "b.onnx", "--rounds", "4", "--report", tmp_path / "r.json"
    )
    assert done.exit_code == 0, done.output
    assert "ONNX Runtime on cpu, x float32 (1, 3, 8, 8)" in done.stdout
    assert "a.onnx takes " in done.stdout
    assert f"a.onnx ran on {CPU} (1 node)" in done.stdout
    assert "in turn, with spinning threads off" in " ".join(done.stdout.split())
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema_version"] == 1
    assert [file["time"]["runs"] for file in report["files"]] == [4, 4]
    assert set(report["ratio"]) == {"median", "low", "high", "confidence"}
    assert report["versions"]["onnxruntime"].startswith("onnxruntime")


def test_inputs_of_the_user_and_sizes_that_the_file_leaves_open(tmp_path):
    file = net(tmp_path / "a.onnx", shape=("batch", 3, "height", "width"))
    guessed = bench(file, rounds=1)
    assert guessed.notes == ("32 was taken as the size of height, width: --input-shape tells other sizes",)
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3, 5, 6), np.float32))
    assert bench(file, rounds=1, inputs=tmp_path / "x.npz").inputs == ("x float32 (2, 3, 5, 6)",)
    assert bench(file, rounds=1, input_shape=["4x3x7x7"]).inputs == ("x float32 (4, 3, 7, 7)",)


def test_a_file_that_fails_on_its_inputs(tmp_path):
    file = net(tmp_path / "a.onnx", shape=("batch", 3, "height", "width"))
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3, 2, 2), np.float32))
    with pytest.raises(SourceError, match="ONNX Runtime cannot run the file"):
        bench(file, inputs=tmp_path / "x.npz")


REFUSED = [
    ({"batch": 0}, UsageError, "0 is too small"),
    ({"threads": 0}, UsageError, "0 is too small"),
    ({"rounds": 0}, UsageError, "0 is too small"),
    ({"batch": 2, "input_shape": ["1x3x8x8"]}, UsageError, "told in more than one way"),
    ({"provider": "rocm"}, UsageError, "no provider 'rocm'"),
    ({"input_shape": ["1x4x8x8"]}, ExampleInputError, r"The inputs have x float32 \(1, 4, 8, 8\)"),
]


@pytest.mark.parametrize(("options", "error", "what"), REFUSED, ids=[what for *_, what in REFUSED])
def test_refusals(tmp_path, options, error, what):
    with pytest.raises(error, match=what):
        bench(net(tmp_path / "a.onnx"), **options)


def test_a_batch_that_cannot_change(tmp_path):
    file = net(tmp_path / "a.onnx", shape=(2, 3, 8, 8))
    assert bench(file, rounds=1).inputs == ("x float32 (2, 3, 8, 8)",)
    with pytest.raises(UsageError, match="The batch of the file cannot change"):
        bench(file, batch=4)


def test_files_of_other_models(tmp_path):
    file, other = net(tmp_path / "a.onnx"), net(tmp_path / "b.onnx", inputs=("x", "z"))
    done = command(file, "--against", other)
    assert done.exit_code == 2
    assert "error: The files have other inputs: x float32 (batch, 3, 8, 8), and x float32" in done.stderr


def test_what_is_no_model(tmp_path):
    Path(tmp_path / "a.onnx").write_text("{}")
    done = command(tmp_path / "a.onnx")
    assert done.exit_code == 4
    assert "this is a JSON file" in done.stderr
    assert command(tmp_path / "missing.onnx").exit_code == 4
