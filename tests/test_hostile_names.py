"""Nothing that a model, a file or an option is called reaches a terminal or a runner as more than text."""

import json
import os
import re

import numpy as np
import onnx
import pytest
from cli_command import spdexport, subprocess_of
from onnx import TensorProto, helper, numpy_helper

HOSTILE = "\x1b]0;t\x07\x9b31m\x08\x7f\u202e\u2066\u200f\u061c\u2028\u2029\n::error::x\r::add-mask::y\n##[command]z"
"""Escape sequences, characters that turn text around, and lines that are commands to a runner."""

HARMLESS = "schicht.é漢字😀"

NO_UNICODE = os.fsdecode(b"\xff\xfe")
"""Bytes that a file name may have and that are no UTF-8."""

RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
COMMAND = re.compile(r"^\s*::(?!(error|warning) title=spdexport)|##\[", re.MULTILINE)


def is_safe(result):
    for said in (result.stdout, result.stderr):
        assert not RAW.search(said), ascii(said)
        assert not COMMAND.search(said), ascii(said)
        assert "\ufffd" not in said
    return result


@pytest.fixture(autouse=True)
def _on_github(monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def hostile_model(path, *, mask=False, wrong=False):
    """A model all of whose names are hostile: layers, inputs, outputs, nodes, and metadata."""
    rng = np.random.default_rng(0)
    name = f"{HARMLESS}{HOSTILE}"
    weights = {
        f"{name}1.weight": rng.standard_normal((6, 4)).astype(np.float32),
        f"{name}2.weight": rng.standard_normal((3, 6)).astype(np.float32),
    }
    first, second = weights
    x, y = f"{name}x", f"{name}y"
    nodes = [
        helper.make_node("Gemm", [x, first], ["h"], name=f"{name}1", transB=1),
        helper.make_node("Mul", ["h", f"mask/{name}"], ["m"], name=f"{name}m") if mask else
        helper.make_node("Relu", ["h"], ["m"], name=f"{name}m"),
        helper.make_node("Gemm", ["m", second], [y], name=f"{name}2", transB=1),
    ]  # fmt: skip
    inputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 4])]
    if mask:
        inputs.append(helper.make_tensor_value_info(f"mask/{name}", TensorProto.FLOAT, ["N", 6]))
    outputs = [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 3])]
    held = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    proto = helper.make_model(helper.make_graph(nodes, name, inputs, outputs, held), ir_version=8,
                              opset_imports=[helper.make_opsetid("", 18)])  # fmt: skip
    entries = {"version": name, "content": "0" * 64 if wrong else None, "source": name, "folded": {"layers": [name]}}
    for key, value in entries.items():
        if value is not None:
            proto.metadata_props.add(key=f"spdexport.{key}", value=json.dumps(value))
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hostile_model(tmp_path_factory.mktemp("hostile") / "m.onnx")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("inspect", []),
        ("inspect", ["-v"]),
        ("verify", ["--provider", "cpu", "-v"]),
        ("fold", ["--explain", "-v", "--provider", "cpu", "-o", "out.onnx"]),
        ("convert", ["-v", "--provider", "cpu", "-o", "out.onnx"]),
        ("convert", ["--debug", "--layers", "none", "-o", "out.onnx"]),
        ("bench", ["-v", "--rounds", "2"]),
    ],
)
def test_names_in_a_model(model, tmp_path, monkeypatch, command, options):
    monkeypatch.chdir(tmp_path)
    result = is_safe(spdexport(command, model, *options))
    if "none" in options:
        assert result.exit_code == 2
    else:
        assert result.exit_code in (0, 3), result.output
    if command in ("inspect", "convert", "bench"):  # the others name no layer where all is well
        assert rf"{HARMLESS}\x1b]0" in result.output


def test_a_failing_model(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    path = hostile_model(tmp_path / "m.onnx", wrong=True)
    result = is_safe(spdexport("verify", path, "--provider", "cpu", "-v", "--report", tmp_path / "r.json",
                               "--junit", tmp_path / "r.xml", "--html", tmp_path / "r.html"))  # fmt: skip
    assert result.exit_code == 1, result.output
    for name in ("summary.md", "r.json", "r.xml", "r.html"):
        written = (tmp_path / name).read_text(encoding="utf-8")
        assert not RAW.search(written), name


def test_names_of_files(model, tmp_path):
    folder = tmp_path / HOSTILE
    folder.mkdir()
    path = folder / f"{HOSTILE}.onnx"
    path.write_bytes(model.read_bytes())
    assert (
        is_safe(
            spdexport("verify", path, "--provider", "cpu", "-v", "--report", folder / f"r{NO_UNICODE}.json")
        ).exit_code
        == 0
    )
    assert is_safe(spdexport("convert", path, "-o", folder / f"{HOSTILE}2.onnx", "-v", "--provider", "cpu",
                             "--repro", folder / "r.npz", "--html", folder / "r.html")).exit_code == 0  # fmt: skip
    assert is_safe(spdexport("verify", folder / f"no{HOSTILE}{NO_UNICODE}")).exit_code == 4
    assert is_safe(spdexport("verify", path, "--report", path)).exit_code == 2
    assert is_safe(spdexport("convert", path, "-o", folder / "none" / "m.onnx")).exit_code == 2


def test_names_of_sets(tmp_path):
    path = hostile_model(tmp_path / "m.onnx", mask=True)
    np.savez(tmp_path / "d.npz", **{f"{HARMLESS}{HOSTILE}x": np.ones((3, 4), np.float32)})
    layer = f"{HARMLESS}{HOSTILE}"
    (tmp_path / "sets.json").write_text(json.dumps({f"set {HOSTILE}": [f"{layer}:0"]}))
    (tmp_path / "wrong.json").write_text(json.dumps({f"set {HOSTILE}": [f"other {HOSTILE}:0"]}))
    good = is_safe(spdexport("ablate", path, "--data", tmp_path / "d.npz", "--sets", tmp_path / "sets.json", "-v"))
    assert good.exit_code == 0, good.output
    assert good.output.count(r"\x1b]0") == 2  # the output, and the set
    wrong = is_safe(spdexport("ablate", path, "--data", tmp_path / "d.npz", "--sets", tmp_path / "wrong.json"))
    assert wrong.exit_code in (2, 4)


@pytest.mark.parametrize(
    "words",
    [
        [HOSTILE],
        [f"--{HOSTILE}"],
        ["verify", "m.onnx", f"--{HOSTILE}", "x"],
        ["verify", "m.onnx", "--provider", HOSTILE],
        ["verify", "m.onnx", "--seed", HOSTILE],
        ["verify", "m.onnx", "--limit", f"{HOSTILE}=3"],
        ["convert", HOSTILE, "-o", "m.onnx"],
        ["convert", "--factory", f"{HOSTILE}.py:make", "-o", "m.onnx"],
        ["convert", "--factory", f"{HOSTILE}:make", "-o", "m.onnx"],
        ["inspect", "m.onnx", "--dynamic", HOSTILE],
    ],
)
@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_words_of_the_command_line(words, debug, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = is_safe(spdexport(*words, *debug))
    assert result.exit_code in (2, 4)


HOSTILE_FACTORY = f"""
import logging, sys, warnings
TEXT = {HOSTILE!r}
def raises():
    raise ValueError(TEXT)
class Strange(Exception):
    pass
Strange.__name__ = Strange.__qualname__ = TEXT
def raises_strange():
    raise Strange(TEXT)
def prints():
    print(TEXT, end="")
    print(":", end="")
    print(":error::in pieces")
    print(TEXT, file=sys.stderr)
    warnings.warn(TEXT)
    logging.getLogger().warning(TEXT)
    raise SystemExit(TEXT)
"""


@pytest.mark.filterwarnings("ignore")  # pytest would show them on the terminal as they are
@pytest.mark.parametrize("how", ["raises", "raises_strange", "prints"])
@pytest.mark.parametrize("options", [[], ["-v"], ["--debug"]])
def test_what_a_factory_says(tmp_path, how, options):
    (tmp_path / "nets.py").write_text(HOSTILE_FACTORY)
    result = is_safe(spdexport("inspect", "--factory", f"{tmp_path / 'nets.py'}:{how}", *options))
    assert result.exit_code == 4
    assert r"\x1b]0;t" in result.stderr


def test_the_streams_themselves(model, tmp_path):
    """As users run it: with the interpreter's own streams, and whatever the libraries write past them."""
    environment = {**os.environ, "GITHUB_ACTIONS": "true"}
    verified = is_safe(subprocess_of("verify", model, "-v", "--provider", "cpu", env=environment))
    assert verified.returncode == 0, verified.stderr
    (tmp_path / "nets.py").write_text(HOSTILE_FACTORY)
    failed = is_safe(subprocess_of("inspect", "--factory", "nets.py:prints", "--debug", cwd=tmp_path, env=environment))
    assert failed.returncode == 4
    assert "Traceback" in failed.stderr


def test_an_encoding_without_these_letters(tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    done = subprocess_of("verify", tmp_path / f"{HARMLESS}.onnx", env=environment)
    assert done.returncode == 4
    assert r"schicht.\xe9\u6f22\u5b57\U0001f600.onnx" in done.stderr


def test_harmless_paths_can_be_copied(tmp_path):
    path = tmp_path / f"{HARMLESS} $x's.onnx"
    assert f"  where: {path}" in spdexport("verify", path).stderr.splitlines()
