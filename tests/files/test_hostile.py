"""Files that nobody vouches for, given to the command line: an error with status 4, and nothing is run."""

import io
import json
import os
import pickle
import re
import socket
import struct
import sys
import time

import numpy as np
import pytest
import torch
from cli_command import DIGITS, FACTORY, MODEL, RUN, SHAPE, spdexport
from hostile import (
    changed,
    claiming,
    flipped,
    float8,
    header,
    legacy_claim,
    members,
    npy,
    npz,
    packed_pickle,
    saved,
    two_readers,
)  # fmt: skip

from spdexport.errors import ExampleInputError, MaskError
from spdexport.files.batches import open_data
from spdexport.files.sniff import FileKind, sniff
from spdexport.files.tensors import read_tensors
from spdexport.sources.run_config import read_config

SECONDS = 20
"""What reading a small file may take."""


class Payload:
    """Shows whether its pickle was executed: that makes a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture(scope="module")
def program():
    """A program with a dynamic batch."""
    model, buffer = torch.nn.Conv2d(1, 4, 3), io.BytesIO()
    shapes = {"input": {0: torch.export.Dim("batch")}}
    torch.export.save(torch.export.export(model, (torch.ones(2, 1, 16, 16),), dynamic_shapes=shapes), buffer)
    return buffer.getvalue()


@pytest.fixture
def refused(tmp_path):
    """Run a command that must fail because of a file, and give the first line of its error."""

    def run(*arguments, status=4):
        start = time.monotonic()
        result = spdexport(*arguments)
        lines = result.stderr.splitlines()
        assert result.exit_code == status, result.output
        assert len(lines) == 3, result.stderr
        assert lines[0].startswith("error: ")
        assert lines[1].startswith("  where: ")
        assert lines[2].startswith("  to do: ")
        assert time.monotonic() - start < SECONDS
        assert not (tmp_path / "out.onnx").exists()
        return lines[0] + " " + lines[2]

    return run


# --- The check and the loader read the same bytes ---


def planted(text, marker):
    """The JSON of a program whose sizes make a folder when torch evaluates them."""
    evil, number = re.subn(rb"Symbol\('s\d+'[^)]*\)", f"__import__('os').mkdir('{marker}')".encode(), text)
    assert number
    return evil


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory, program):
    folder = tmp_path_factory.mktemp("good")
    (folder / "m.pt2").write_bytes(program)
    assert spdexport("convert", folder / "m.pt2", "-o", folder / "m.onnx", "--no-verify").exit_code == 0
    return folder / "m.onnx"


@pytest.mark.parametrize("mode", ["offset", "zip64", "orphan"])
def test_a_program_that_two_readers_see_differently_is_refused(tmp_path, refused, program, onnx_file, mode):
    good = members(program)
    name = next(key for key in good if key.endswith("models/model.json"))
    marker = tmp_path / "executed"
    evil = planted(good[name], marker)
    path = tmp_path / "m.pt2"
    path.write_bytes(two_readers(good, name, evil, mode))
    for command in (
        ("convert", path, "-o", tmp_path / "out.onnx"),
        ("inspect", path),
        ("verify", onnx_file, "--against", path),
        ("fold", path, "-o", tmp_path / "out.onnx"),
    ):
        assert "The archive is cut off or damaged, or not a plain one" in refused(*command)
        assert not marker.exists()


def test_that_program_is_harmful_to_torch_alone(tmp_path, program):
    good = members(program)
    name = next(key for key in good if key.endswith("models/model.json"))
    evil = planted(good[name], tmp_path / "executed")
    (tmp_path / "m.pt2").write_bytes(two_readers(good, name, evil, "zip64"))
    with pytest.raises(Exception, match=r"\w"):
        torch.export.load(tmp_path / "m.pt2")
    assert (tmp_path / "executed").exists()


# --- Bits rot ---


def test_a_flipped_bit_of_a_weight_is_told(tmp_path, refused, program):
    weight = members(program)[next(key for key in members(program) if key.endswith("weights/weight_0"))]
    (tmp_path / "m.pt2").write_bytes(flipped(program, program.index(weight) + 6))
    assert "damaged: Bad CRC-32" in refused("inspect", tmp_path / "m.pt2")
    state = torch.load(RUN / "target_model.pth", weights_only=True)
    content, first = saved(state), next(iter(state.values())).numpy().tobytes()
    (tmp_path / "s.pt").write_bytes(flipped(content, content.index(first) + 6))
    assert "damaged: Bad CRC-32" in refused("inspect", tmp_path / "s.pt", "--factory", FACTORY, "--input-shape", SHAPE)


def test_a_file_without_checksums_is_taken_and_said_to_be_one(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.load(RUN / "target_model.pth", weights_only=True), tmp_path / "s.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    result = spdexport(
        "convert",
        tmp_path / "s.pt",
        "--factory",
        FACTORY,
        "--input-shape",
        SHAPE,
        "-o",
        tmp_path / "m.onnx",
        "--no-verify",
    )
    assert result.exit_code == 0, result.output
    assert "carries no checksums" in result.output


# --- What is no file ---

PLACES = {
    "source": (),
    "masks": (*DIGITS, "--masks"),
    "inputs": (RUN, "--factory", FACTORY, "--inputs"),
    "plan": (*DIGITS, "--plan"),
    "components": (*MODEL, "--components"),
}
"""What a file may be given as, by the arguments in front of it."""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes and devices in folders")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("place", PLACES)
def test_pipes_sockets_and_devices_are_not_opened(tmp_path, refused, monkeypatch, kind, place):
    path = tmp_path / "x"
    monkeypatch.chdir(tmp_path)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        socket.socket(socket.AF_UNIX).bind("x")
    else:
        path.symlink_to("/dev/zero")
    arguments = (*PLACES[place], path)
    assert "a pipe, a socket or a device, not a file" in refused("convert", *arguments, "-o", tmp_path / "out.onnx")


@pytest.mark.parametrize("place", PLACES)
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, refused, place):
    path = tmp_path / "x"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    arguments = (*PLACES[place], path)
    said = refused("convert", *arguments, "-o", tmp_path / "out.onnx")
    assert "The file is a Git LFS pointer" in said
    assert "git lfs pull" in said


# --- Damaged, absurd or exhausting files, as what they could be given as ---

MASKS = {
    "an archive that unpacks to 3 GB": (claiming("a.npy", 3_000_000_000), "--limit unpacked="),
    "nested JSON": (b'{"a":' + b"[" * 100_000, "recursion"),
    "an integer of 5000 digits": (b'{"a": [' + b"9" * 5000 + b"]}", "digits"),
    "an integer of 400 digits": (b'{"a": [' + b"9" * 400 + b"]}", "'a' is not a tensor"),
    "JSON that is no UTF-8": (b'{"a\xff": [1]}', "The file is damaged"),
    "100,001 tensors of a safetensors file": (
        header({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}),
        "--limit tensors=100001"),
    "a header longer than the file": (struct.pack("<Q", 1 << 31) + b"{", "its header is longer than the file"),
    "a header of nested JSON": (header(b'{"a":' * 50_000), "The file is damaged"),
    "a tensor of 2^64 numbers": (
        header({"a": {"dtype": "F32", "shape": [1 << 62, 4], "data_offsets": [0, 0]}}), "The file is damaged"),
    "a dtype that is not known": (
        header({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "The file is damaged"),
    "a legacy checkpoint of 100 GB": (legacy_claim(25_000_000_000), "The pickle is damaged"),
    "a packed pickle": (packed_pickle(b"\x80\x02" + b"]" * 50_000_000 + b"."), "unpacks to 50000003 bytes"),
    "a number repeated 10^12 times": (saved({"a": torch.zeros(1).expand(10**12)}), "--limit unpacked="),
    "a tensor without values": (saved({"a": torch.zeros(4, device="meta")}), "without values"),
    "a tensor on no list": (saved([1, [2]]), "not tensors by name"),
    "a deep pickle": (packed_pickle(b"\x80\x02N" + b"\x85" * 200_000 + b"."), "not tensors by name"),
    "objects": (npz(a=np.array([{}], dtype=object)), "'a' is not a tensor: it holds Python objects"),
    "another pickle": (pickle.dumps({"a": [1.0]}, protocol=2), "torch.save did not write it"),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks_that_are_damaged_or_exhausting(tmp_path, refused, name):
    content, said = MASKS[name]
    (tmp_path / "x").write_bytes(content)
    assert said in refused("inspect", *DIGITS, "--masks", tmp_path / "x")


INPUTS = {
    "an array of 100 GB": (npy("(25000000000,)"), "it needs 100000000000 bytes"),
    "a negative size": (npy("(-1,)"), "cannot be read"),
    "a size that is no integer": (npy("(2.5,)"), "shape is not valid"),
    "an empty array of 10^30 rows": (npy(f"({10**30}, 0)"), "cannot be read"),
    "texts without a letter": (npy("(99,)", "|S0"), "cannot be read"),
    "texts": (npy("(2,)", "<U4"), "not a tensor"),
    "a header of another version": (npy("(2,)", version=9), "version"),
    "a header that is cut off": (npy("(2,)")[:20], "cannot be read"),
    "an archive with a bent header": (
        npz(a=np.ones(3)).replace(b"'shape': (3,)", b"'shape': (9,)"), "'a' is not a tensor"),
}  # fmt: skip


@pytest.mark.parametrize("name", INPUTS)
def test_inputs_that_are_damaged_or_exhausting(tmp_path, refused, name):
    content, said = INPUTS[name]
    (tmp_path / "x").write_bytes(content)
    model = ("--factory", FACTORY, "--inputs", tmp_path / "x")
    assert said in refused("convert", *model, "-o", tmp_path / "out.onnx")
    if name != "texts":  # which are refused where they meet the model
        with pytest.raises(ExampleInputError):
            open_data(tmp_path / "x")


def _node(**entries):
    return lambda value: value["graph_module"]["graph"]["nodes"][0].update(entries)


def _expression(text):
    def change(value):
        sizes = value["graph_module"]["graph"]["tensor_values"]["input"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = text

    return change


def _meta(sizes):
    return lambda value: value["graph_module"]["graph"]["tensor_values"]["input"].update(sizes=sizes)


MODEL, WEIGHTS = "models/model.json", "model_weights_config.json"
PROGRAMS = {
    "a power of powers": (MODEL, _expression("10**10**10"), "text that torch would run as code"),
    "a deep expression": (MODEL, _expression("(" * 150 + "s77" + ")" * 150 + "**2**9**9"), "run as code"),
    "many deep expressions": (
        MODEL,
        lambda v: v.update(more=[{"expr_str": f"{'Mod(' * 60}s{i}{', 7)' * 60}"} for i in range(99)]),
        "take too long to evaluate"),
    "a symbol that is counted to": (
        MODEL, lambda v: v.update(range_constraints={"u9999999999": {"min_val": 0, "max_val": 3}}), "the symbol u99"),
    "a range beyond any integer": (
        MODEL, lambda v: v.update(range_constraints={"s77": {"min_val": 0, "max_val": 10**30}}), "the number 1000"),
    "a tensor of 2^248 numbers": (MODEL, _meta([{"as_int": 1 << 62}] * 4), "--limit value="),
    "an operator that makes 2^62 numbers": (
        MODEL,
        _node(target="torch.ops.aten.arange.default", inputs=[{"name": "end", "arg": {"as_int": 1 << 62}, "kind": 1}]),
        "--limit value="),
    "50,001 nodes": (MODEL, lambda v: v["graph_module"]["graph"].update(nodes=[{}] * 50_001), "--limit nodes=50001"),
    "no nodes": (MODEL, lambda v: v["graph_module"]["graph"].pop("nodes"), "cannot load the program"),
    "a weight that repeats a number": (
        WEIGHTS,
        lambda v: v["config"]["weight"]["tensor_meta"].update(sizes=[{"as_int": 1 << 40}], strides=[{"as_int": 0}]),
        "--limit unpacked="),
    "a weight beyond its bytes": (
        WEIGHTS,
        lambda v: v["config"]["weight"]["tensor_meta"].update(sizes=[{"as_int": 1 << 40}], strides=[{"as_int": 1}]),
        "cannot load the program"),
    "a list of weights that is none": (WEIGHTS, lambda v: v.update(config=[1]), "list of the program's weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_are_damaged_or_exhausting(tmp_path, refused, program, name):
    member, change, said = PROGRAMS[name]
    (tmp_path / "m.pt2").write_bytes(changed(program, member, change))
    assert said in refused("inspect", tmp_path / "m.pt2")


def test_a_limit_lets_more_pass(tmp_path, refused):
    state = {str(i): torch.ones(1) for i in range(30)}
    torch.save(state, tmp_path / "x.pt")
    command = ("inspect", *DIGITS, "--masks", tmp_path / "x.pt", "--limit")
    assert "--limit tensors=" in refused(*command, "tensors=20")
    assert "the limit is" not in refused(*command, "tensors=99")


def test_a_planted_pickle_is_not_run(tmp_path):
    torch.save({"conv1": Payload(tmp_path / "executed")}, tmp_path / "masks.pt")
    result = spdexport("inspect", *DIGITS, "--masks", tmp_path / "masks.pt")
    assert result.exit_code == 4
    assert "would run code" in result.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}", b"\xff\xfe", b"null", b"{}"])
def test_plans_that_are_damaged(tmp_path, refused, content):
    (tmp_path / "plan.json").write_bytes(content)
    said = refused("convert", *DIGITS, "--plan", tmp_path / "plan.json", "-o", tmp_path / "out.onnx")
    assert "The plan is not" in said or "no plan that can be used" in said


def test_a_plan_with_a_cost_beyond_any_number(tmp_path, refused):
    plan = tmp_path / "plan.json"
    assert spdexport("convert", *DIGITS, "--save-plan", plan, "-o", tmp_path / "m.onnx", "--no-verify").exit_code == 0
    content = json.loads(plan.read_text())
    content["layers"][0]["weighed"] = [{"form": "dense", "components": None, "cost": 10**400}]
    plan.write_text(json.dumps(content))
    assert "no plan that can be used" in refused("convert", *DIGITS, "--plan", plan, "-o", tmp_path / "out.onnx")


YAML = {
    "aliases of aliases": "a0: &a0 [1, 2, 3]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)),
    "merges of merges": "a0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
    "nested lists": "[" * 5000,
    "a list that holds itself": "a: &a [*a]\n",
    "a large file": "# " + "x" * 300_000,
    "an integer of 5000 digits": "a: " + "9" * 5000,
    "an object": "a: !!python/object/apply:os.mkdir [executed]\n",
    "a pointer": "version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("name", YAML)
def test_configurations_of_runs_that_are_damaged(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "final_config.yaml").write_text(YAML[name])
    start = time.monotonic()
    with pytest.raises(Exception, match=r"no YAML|Git LFS") as caught:
        read_config(tmp_path)
    assert caught.type.__name__ == "ComponentsError"
    assert time.monotonic() - start < SECONDS
    assert not (tmp_path / "executed").exists()


# --- Odd and valid ---


def test_float8_weights_load_and_float8_masks_are_told(tmp_path, refused):
    float8(tmp_path / "m.safetensors")
    assert read_tensors(tmp_path / "m.safetensors", error=MaskError)["fc"].dtype is torch.float8_e4m3fn
    assert "is of dtype float8_e4m3fn" in refused("inspect", *DIGITS, "--masks", tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", [">f4", "<f4", ">i8", ">c8"])
def test_arrays_of_other_machines_are_taken(tmp_path, dtype):
    values = np.arange(6, dtype=dtype).reshape(3, 2)
    np.savez(tmp_path / "x.npz", a=values)
    np.save(tmp_path / "x.npy", values)
    assert read_tensors(tmp_path / "x.npz", error=MaskError)["a"].tolist() == values.tolist()
    for name in ("x.npz", "x.npy"):
        parts = [next(iter(batch.values())) for batch in open_data(tmp_path / name).batches(2)]
        assert np.concatenate(parts).tolist() == values.tolist()
        assert all(part.dtype.isnative for part in parts)


def test_arrays_in_column_order_are_taken_whole(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert read_tensors(tmp_path / "x.npz", error=MaskError)["a"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_link_to_a_file_is_a_file(tmp_path):
    (tmp_path / "x").write_bytes(npz(a=np.ones(2)))
    (tmp_path / "y").symlink_to(tmp_path / "x")
    assert sniff(tmp_path / "y") is FileKind.NPZ
