"""``spdexport lab`` and ``spdexport.lab``: what is in the folder, what is told, and what is refused."""

import hashlib
import json
import re
from pathlib import Path

import lab_files
import numpy as np
import onnx
import pytest
from cli_command import spdexport
from onnx import TensorProto, helper

import spdexport as package
from spdexport import lab_folder
from spdexport.errors import ExportError, InputError, OutputError, SourceError, UsageError
from spdexport.laboratory import answers
from spdexport.report.lab_page import POLICY, SCRIPTS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lab_files.small(tmp_path / "m.onnx")
    lab_files.numbers(tmp_path / "x.npz", labels=np.array([0, 1, 1]))
    lab_files.package(tmp_path / "package")
    return tmp_path


def made(folder, **options):
    return package.lab(folder / "m.onnx", folder / "lab", **{"data": "x.npz", "runtime": "package", **options})


def described(folder):
    return json.loads((folder / "lab" / "lab.json").read_text())


def test_the_folder_has_all_that_the_page_needs(folder):
    result = made(folder)
    present = {p.relative_to(folder / "lab").as_posix() for p in (folder / "lab").rglob("*") if p.is_file()}
    runtime = {f"runtime/{name}" for name in lab_files.FILES}
    assert present == {"index.html", "lab.json", "model.onnx", "samples.bin", *SCRIPTS, *runtime} == set(result.sizes)
    assert {*described(folder)["files"], "lab.json"} == present
    assert result.size == sum((folder / "lab" / name).stat().st_size for name in present)
    assert (result.components, result.samples, result.runtime) == (3, 3, "0.0.1")
    assert (folder / "lab/runtime" / lab_files.FILES[0]).read_text() == f"// {lab_files.FILES[0]}"
    imported = {name for s in SCRIPTS for name in re.findall(r'from "\./(.*?)"', (folder / "lab" / s).read_text())}
    assert imported <= present


def test_the_description_and_the_samples(folder):
    result = made(folder)
    found = described(folder)
    assert found["file"] == {"name": "m.onnx", "sha256": hashlib.sha256(Path("m.onnx").read_bytes()).hexdigest()}
    assert found["file"]["sha256"] == result.hashes["m.onnx"]
    (layer,) = found["layers"]
    assert (layer["name"], layer["components"]) == ("fc", 3)
    assert layer["mask"] == {"input": "mask/fc", "shape": [1, 3]}
    assert found["samples"] == {"number": 3, "labels": [0, 1, 1]}
    (place,) = found["inputs"]
    with np.load("x.npz") as archive:
        stored = np.frombuffer((folder / "lab/samples.bin").read_bytes(), "<f4", 12, place["offset"])
        np.testing.assert_array_equal(stored.reshape(3, 4), archive["x"])


def test_dense_answers_are_those_of_the_dense_file(folder):
    model = onnx.load("m.onnx")
    model.graph.node[1].op_type = "Add"  # another model with the same ends
    onnx.save(model, "dense.onnx")
    result = made(folder, dense="dense.onnx")
    dense = described(folder)["dense"]
    (place,) = dense["outputs"]
    assert place["offset"] % 8 == 0
    stored = np.frombuffer((folder / "lab/samples.bin").read_bytes(), "<f4", 6, place["offset"]).reshape(3, 2)
    session = answers.opened_file(Path("dense.onnx"), answers.SessionSettings())
    with np.load("x.npz") as archive:
        np.testing.assert_allclose(stored, session.run({"x": archive["x"]})["y"], rtol=1e-5, atol=1e-6)
    assert dense["is_dense"]
    assert result.beside == dense["told"] == "the dense model, dense.onnx"


def test_without_a_dense_file_it_is_said_what_the_answer_stands_beside(folder):
    made(folder)
    dense = described(folder)["dense"]
    assert dense == {
        "told": "all components on; the file has no record of its weight delta, so that this is not the dense model",
        "is_dense": False, "is_routed": False, "outputs": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("delta", "options", "told"),
    [
        ("kept", {}, "all components on: the dense model"),
        ("none", {}, "all components on: the dense model"),
        ("dropped", {}, "all components on; the weight delta is left out, so that this is not the dense model"),
        ("kept", {"spdexport.sha256": '{"masks": "0"}'},
         ("all components on; fixed masks, edits or ranks changed the model before it became this file, so that this "
          "is not the dense model")),
        ("kept", {"spdexport.options": '{"gates": "exact"}'},
         "all components on; gates are at work that cannot be switched off, so that this is not the dense model"),
    ],
)  # fmt: skip
def test_what_the_record_says_of_the_delta(folder, delta, options, told):
    model = onnx.load("m.onnx")
    plan = json.dumps({"layers": [{"name": "fc", "delta": delta}]})
    helper.set_model_props(model, {"spdexport.plan": plan, **options})
    onnx.save(model, "m.onnx")
    assert made(folder).beside == told


@pytest.mark.parametrize("text", ["no\nyes\n", '["no", "yes"]', "\ufeffno\r\n\r\n yes"])
def test_names_of_classes(folder, text):
    Path("names").write_bytes(text.encode())
    made(folder, classes="names")
    assert described(folder)["classes"] == ["no", "yes"]


@pytest.mark.parametrize("text", ['{"no": 1}', "[1, 2]", "[", b"\xff\xfe", "\x00\x00no", "no\x1b[31m"])
def test_names_of_classes_that_are_none(folder, text):
    Path("names").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match="names of the classes cannot be read") as caught:
        made(folder, classes="names")
    assert caught.value.where == "names"
    assert not (folder / "lab").exists()


def test_a_json_file_of_names_that_lost_its_beginning_is_no_text(folder):
    Path("names.json").write_text('ro", "one"]')
    with pytest.raises(InputError, match="names of the classes cannot be read"):
        made(folder, classes="names.json")


def test_weights_beside_the_file_are_in_the_copy(folder):
    model = onnx.load("m.onnx")
    onnx.save(model, "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    made(folder)
    copy = onnx.load(folder / "lab/model.onnx", load_external_data=False)
    assert not any(tensor.external_data for tensor in copy.graph.initializer)
    assert len(copy.graph.initializer) == 2


def test_a_required_mask_is_taken_too(folder):
    lab_files.small(folder / "m.onnx", required=True)
    assert made(folder).components == 3


def test_the_page_lets_nothing_else_run(folder):
    made(folder)
    page = (folder / "lab/index.html").read_text()
    assert POLICY in page
    assert "'self' 'wasm-unsafe-eval'" in POLICY
    assert "unsafe-inline" not in POLICY.partition("style-src")[0]
    assert re.findall(r"<script[^>]*>(.*?)</script>", page) == [""]
    assert "innerHTML" not in "".join((folder / "lab" / name).read_text() for name in SCRIPTS)


def test_a_name_is_only_text_in_the_page(folder):
    name = "<img src=x onerror=alert(1)>.onnx"
    (folder / "m.onnx").rename(folder / name)
    package.lab(name, "lab", data="x.npz", runtime="package")
    page = (folder / "lab/index.html").read_text()
    assert "<img" not in page
    assert "&lt;img src=x" in page


# What is refused


def test_the_copy_is_held_against_the_file(folder, monkeypatch):
    real = lab_folder.copied

    def wrong(model, path):
        copy = real(model, path)
        copy.model.graph.node(0).inputs[1].const_value = package_weights(copy.model.graph.node(0).inputs[1])
        return copy

    def package_weights(value):
        return lab_folder.ir.tensor(value.const_value.numpy() * np.float32(1.0001), name=value.name)

    monkeypatch.setattr(lab_folder, "copied", wrong)
    with pytest.raises(ExportError, match="y differs on sample 0"):
        made(folder)
    assert not (folder / "lab").exists()


def test_large_files_are_refused_and_told(folder, monkeypatch):
    monkeypatch.setattr(lab_folder, "_LARGE", 100)
    assert any(re.match(r"model\.onnx has .*B, which a browser loads", note) for note in made(folder).notes)
    monkeypatch.setattr(lab_folder, "LARGEST", 100)
    with pytest.raises(SourceError, match="a browser loads 100 B at most"):
        made(folder)


def test_a_lab_is_replaced_and_nothing_else_is(folder):
    made(folder, samples=1)
    made(folder, samples=2)
    assert described(folder)["samples"]["number"] == 2
    (folder / "lab/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"did not write there: notes\.txt"):
        made(folder)
    assert (folder / "lab/notes.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="which is read"):
        package.lab("lab/model.onnx", "lab", data="x.npz", runtime="package")


def test_a_full_disk_leaves_the_lab_that_was_there(folder, monkeypatch):
    made(folder, samples=1)
    before = (folder / "lab/lab.json").read_bytes()

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="disk is full"):
        made(folder)
    monkeypatch.undo()
    assert (folder / "lab/lab.json").read_bytes() == before
    assert not list(folder.glob("spdexport-run*"))


def dense(folder, *, inputs=("x",), outputs=("y",), width=4):
    nodes = [helper.make_node("Sum", list(inputs), [name]) for name in outputs]
    declared = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", width]) for n in names]
        for names in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "dense", *declared)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "dense.onnx"
    )


def test_dense_files_that_are_of_another_model(folder):
    dense(folder, inputs=("a", "b"))
    with pytest.raises(SourceError, match="takes a, b, and the data are x") as caught:
        made(folder, dense="dense.onnx")
    assert caught.value.where == "--dense dense.onnx"
    dense(folder, outputs=("p", "q"))
    with pytest.raises(SourceError, match="gives p, q, and the lab shows y"):
        made(folder, dense="dense.onnx")
    dense(folder, width=5)
    with pytest.raises(InputError, match=r"does not run dense\.onnx"):
        made(folder, dense="dense.onnx")


def test_other_names_of_a_single_input_and_output_are_no_matter(folder):
    dense(folder, inputs=("image",), outputs=("logits",))
    assert made(folder, dense="dense.onnx").beside == "the dense model, dense.onnx"
    assert described(folder)["dense"]["outputs"][0]["name"] == "y"


# The command line


def line(*more):
    return spdexport("lab", "m.onnx", "--data", "x.npz", "-o", "lab", "--runtime", "package", *more)


def test_the_command_tells_what_was_written_and_how_to_see_it(folder):
    result = line("--report", "r.json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("3 components of 1 layer to switch, 3 samples, ")
    assert "python -m http.server -b 127.0.0.1 -d lab" in result.stdout
    assert "onnxruntime-web 0.0.1 is not a version that spdexport knows" in " ".join(result.stdout.split())
    report = json.loads(Path("r.json").read_text())
    assert (report["schema_version"], report["folder"], report["components"]) == (1, "lab", 3)
    assert report["sizes"]["model.onnx"] == (folder / "lab/model.onnx").stat().st_size
    assert set(report["artifacts"]) == {"m.onnx", "data x.npz"}


def test_quiet_and_verbose(folder):
    quiet = line("-q").stdout.splitlines()
    assert len(quiet) == 2
    assert "m.onnx" in line("-v").stdout


@pytest.mark.parametrize(
    ("more", "status", "told"),
    [
        (["--samples", "0"], 2, "A lab of 0 samples shows nothing."),
        (["--runtime", "none"], 2, "npm pack onnxruntime-web@"),
        (["--runtime", "m.onnx"], 4, "The archive cannot be read"),
        (["--data", "none.npz"], 4, "There is no such file."),
        (["--dense", "none.onnx"], 4, "There is no such file."),
        (["--classes", "none.txt"], 4, "There is no such file."),
        (["-o", "package"], 2, "which is read"),
        (["-o", "none/lab"], 2, "does not exist"),
        (["-o", "m.onnx"], 2, "would overwrite"),
    ],
)
def test_refusals_in_three_lines(folder, more, status, told):
    before = sorted(p.name for p in folder.iterdir())
    result = line(*more)
    assert result.exit_code == status, result.stderr
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 3
    assert sorted(p.name for p in folder.iterdir()) == before
