"""Whatever an ONNX file holds, every command that reads one ends soon, and says what is wrong in three lines."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cli_command import spdexport
from hostile_onnx import DAMAGED, EXHAUSTING, before, chain, network, write

from spdexport.files.onnx_reading import load_onnx
from spdexport.files.sniff import FileKind, sniff
from spdexport.model_files import read_metadata

COMMANDS = {
    "inspect": ["inspect", "FILE"],
    "convert": ["convert", "FILE", "--no-verify", "-o", "OUT"],
    "fold": ["fold", "FILE", "--no-verify", "-o", "OUT"],
    "verify": ["verify", "FILE"],
    "verify --against": ["verify", "GOOD", "--against", "FILE"],
    "bench": ["bench", "FILE", "--rounds", "1"],
    "bench --against": ["bench", "GOOD", "--against", "FILE", "--rounds", "1"],
    "ablate": ["ablate", "FILE", "--data", "DATA"],
}
"""The commands that read ONNX files."""

LOOK = ("inspect", "convert", "fold")
"""Those of them that run nothing, and so need not mind what a graph would do."""


MUCH = ("loop_that_collects",)
"""Kinds that need a gibibyte before they are stopped."""


@pytest.fixture
def run(tmp_path):
    """Runs a command on a file beside a good one."""
    good, data, out = tmp_path / "good.onnx", tmp_path / "data.npz", tmp_path / "out.onnx"
    good.write_bytes(network().SerializeToString())
    np.savez(data, x=np.ones((2, 3, 8, 8), np.float32))

    def invoke(command, file, *further):
        named = {"FILE": file, "GOOD": good, "DATA": data, "OUT": out}
        result = spdexport(*(named.get(word, word) for word in COMMANDS[command]), *further)
        assert result.exit_code in (0, 3) or not out.exists()
        out.unlink(missing_ok=True)
        return result

    return invoke


def refused(result, command):
    """The three lines of an error about the file."""
    lines = result.stderr.splitlines()
    assert result.exit_code == 4, f"{command}: {result.output}"
    assert [line[:9] for line in lines] == [lines[0][:9], "  where: ", "  to do: "], f"{command}: {result.stderr}"
    assert lines[0].startswith("error: ")
    return lines


def folder(tmp_path):
    made = tmp_path / "hostile"
    made.mkdir()
    return made


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_are_refused_by_every_command_in_the_same_words(kind, run, tmp_path):
    file = write(kind, folder(tmp_path))
    told = {command: refused(run(command, file), command) for command in COMMANDS}
    if sniff(file) is FileKind.ONNX:
        assert len({lines[0] for lines in told.values()}) == 1, told
    assert all(str(file) in lines[1] for lines in told.values())


@pytest.mark.parametrize("kind", [kind for kind in EXHAUSTING if kind not in MUCH])
def test_files_that_exhaust_are_refused_or_cannot_be_judged(kind, run, tmp_path):
    file = write(kind, folder(tmp_path))
    # So that loops end after few trips; what is too large is too large in any case.
    further = ("--limit", "trips=1000")
    for command in COMMANDS:
        result = run(command, file, *further)
        if result.exit_code == 0:
            assert command in LOOK, f"{command}: {result.output}"
        elif result.exit_code == 3:
            assert "--limit" in " ".join(result.output.split()), f"{command}: {result.output}"
        else:
            refused(result, command)


def test_what_a_loop_collects_is_bounded(run, tmp_path):
    result = run("verify", write("loop_that_collects", folder(tmp_path)), "--limit", "value=1")
    assert result.exit_code == 3, result.output
    assert "what it collects takes more than 1 GiB" in " ".join(result.output.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_good_file_is_read_by_all(command, run, tmp_path):
    file = tmp_path / "fine.onnx"
    file.write_bytes(network().SerializeToString())
    result = run(command, file)
    # The network has no masks at run time.
    assert result.exit_code == (4 if command == "ablate" else 0), result.output


def test_files_that_were_cut_off_are_refused_wherever_that_was(run, tmp_path):
    whole = network().SerializeToString()
    file = tmp_path / "cut.onnx"
    for end in range(1, len(whole), 29):
        file.write_bytes(whole[:end])
        refused(run("verify", file), f"verify, {end} bytes")


def test_single_wrong_bytes_are_never_a_fault_of_the_program(run, tmp_path):
    whole, random = network().SerializeToString(), np.random.default_rng(0)
    file = tmp_path / "wrong.onnx"
    for _ in range(60):
        content = bytearray(whole)
        content[random.integers(len(whole))] = random.integers(256)
        file.write_bytes(content)
        result = run("inspect", file)
        assert result.exit_code in (0, 4), result.output


@pytest.mark.parametrize(
    ("name", "number", "content"),
    [
        ("nodes", 20, before(chain(30), end="v30")),
        ("tensors", 3, network().SerializeToString()),
    ],
)
def test_limits_are_told_and_can_be_raised(name, number, content, run, tmp_path):
    file = tmp_path / "long.onnx"
    file.write_bytes(content)
    what, _, hint = refused(run("inspect", file, "--limit", f"{name}={number}"), "inspect")
    assert f"the limit is {number}" in what
    option = hint.partition("raise the limit: ")[2].rstrip(".").split()
    assert run("inspect", file, *option).exit_code == 0


def test_the_nodes_of_functions_count_as_often_as_they_are_called(run, tmp_path):
    file = write("functions_that_double", folder(tmp_path))
    assert "100663302 nodes" in refused(run("inspect", file), "inspect")[0]


@pytest.mark.parametrize("size", [-1, None])
def test_axes_of_no_positive_size_are_dynamic(size, run, tmp_path):
    model = network()
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.ClearField("dim_param")
    if size is not None:
        dim.dim_value = size
    file = tmp_path / "dynamic.onnx"
    onnx.save(model, file)
    assert run("verify", file).exit_code == 0
    assert run("convert", file).exit_code == 0


def test_a_loop_may_state_more_trips_than_it_makes(tmp_path, run):
    # What exporters write for a loop that ends by its condition.
    model = onnx.ModelProto.FromString(write("loop_of_initialized_trips", folder(tmp_path)).read_bytes())
    body = next(node for node in model.graph.node if node.op_type == "Loop").attribute[0].g
    body.node[0].CopyFrom(onnx.helper.make_node("Less", ["h_in", "ten"], ["cond_out"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(10, np.float32), "ten"))
    file = tmp_path / "ends.onnx"
    onnx.save(model, file)
    assert run("verify", file).exit_code == 0


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 10_000, "NaN", '{"form": Infinity}', "no JSON", "", "[]", "7"])
@pytest.mark.parametrize("entry", ["options", "content", "sha256", "plan"])
def test_odd_metadata_of_our_own_are_left_out(entry, text, run, tmp_path):
    model = network()
    model.metadata_props.add(key=f"spdexport.{entry}", value=text)
    file = tmp_path / "odd.onnx"
    onnx.save(model, file)
    assert run("inspect", file).exit_code == 0
    assert run("fold", file).exit_code == 0
    if not text.isdigit() and text != "[]":
        assert entry not in read_metadata(load_onnx(file))


@pytest.mark.parametrize("rank", [1, 2])
def test_sparse_weights_are_read_as_dense_ones(rank, run, tmp_path):
    model = network()
    weight = model.graph.initializer[0]
    dense = onnx.numpy_helper.to_array(weight).copy()
    dense[:, 1:] = 0
    places = np.argwhere(dense) if rank == 2 else np.flatnonzero(dense)
    sparse = onnx.SparseTensorProto(dims=dense.shape)
    sparse.values.CopyFrom(onnx.numpy_helper.from_array(dense[dense != 0], weight.name))
    sparse.indices.CopyFrom(onnx.numpy_helper.from_array(places.astype(np.int64), "indices"))
    del model.graph.initializer[0]
    model.graph.sparse_initializer.append(sparse)
    file = tmp_path / "sparse.onnx"
    onnx.save(model, file)
    np.testing.assert_array_equal(load_onnx(file).graph.initializers["conv.weight"].const_value.numpy(), dense)
    assert run("verify", file).exit_code == 0


@pytest.mark.parametrize("command", LOOK)
def test_types_that_do_not_go_together_are_no_fault_of_the_program(command, run, tmp_path):
    values = {"q": np.ones(3, np.int8), "scale": np.array(2, np.int8)}
    file = tmp_path / "types.onnx"
    file.write_bytes(before([onnx.helper.make_node("DequantizeLinear", ["q", "scale"], ["v"])], values))
    assert run(command, file).exit_code in (0, 4)
