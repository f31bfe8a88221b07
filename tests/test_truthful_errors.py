"""Errors about inputs and factories through the command line: three lines, true, and to be followed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from cli_command import spdexport as run
from torch import nn

import spdexport
from spdexport.loading.factory import call_factory

CODE = '''
import os
import torch
from torch import nn


def make():
    return nn.Linear(4, 3)


def folder():
    os.chdir("/")
    return nn.Linear(4, 3)


def meta():
    with torch.device("meta"):
        return nn.Linear(4, 3)


def lazy():
    return nn.LazyLinear(3), torch.ones(1, 4)


class Own(BaseException):
    pass


def own():
    raise Own("stop")


def interrupt():
    raise KeyboardInterrupt


class Ended(BaseException):
    """As the command line raises it on a signal."""

    __module__ = "spdexport.cli"


def ended():
    raise Ended("signal")
'''


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    (tmp_path / "zoo.py").write_text(CODE)
    return tmp_path / "zoo.py"


def fails(status: int, *command: object) -> tuple[str, str, str]:
    """The three parts of the error that a command ends with."""
    result = run(*command)
    assert result.exit_code == status, result.output
    what, where, hint = result.stderr.strip().splitlines()
    return what.removeprefix("error: "), where.removeprefix("  where: "), hint.removeprefix("  to do: ")


def test_inputs_and_shapes_that_agree(zoo: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((5, 4), np.float32))
    made = ("--factory", f"{zoo}:make", "--inputs", tmp_path / "x.npz")
    command = ("inspect", *made)
    for shape in ("5x4", "x=5x4", "5x4:float32", "input=5x4"):
        result = run(*command, "--input-shape", shape)
        assert result.exit_code == 0, result.output
    result = run("convert", "-o", tmp_path / "m.onnx", *made, "--input-shape", "5x4")
    assert result.exit_code == 0, result.output
    assert "x.npz" in result.output, "the values are the file's"
    for shape in ("2x4", "5x4:float64"):
        what, where, hint = fails(2, *command, "--input-shape", shape)
        assert what == f"The inputs hold a tensor of 5x4:float32, and --input-shape says {shape}."
        assert where == "--inputs and --input-shape"
        assert "--input-shape" in hint
    what, *_ = fails(2, *command, "--input-shape", "5x4", "--input-shape", "5x4")
    assert what == "The inputs have 1 input only, and --input-shape says 5x4."
    # Of a file alone, it is the same.
    file = (tmp_path / "m.onnx", "--inputs", tmp_path / "x.npz")
    assert run("verify", *file, "--input-shape", "5x4").exit_code == 0
    assert "5x4:float32" in fails(2, "verify", *file, "--input-shape", "2x4")[0]


def test_classes_under_another_name(zoo: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones((5, 4), np.float32), y=np.ones(5, np.int64))
    command = ("convert", "-o", tmp_path / "m.onnx", "--factory", f"{zoo}:make")
    *_, hint = fails(4, *command, "--inputs", tmp_path / "d.npz")
    assert "The right classes are called 'labels'" in hint
    assert run(*command, "--input-shape", "2x4", "--no-verify").exit_code == 0
    *_, hint = fails(4, "verify", tmp_path / "m.onnx", "--inputs", tmp_path / "d.npz")
    assert "The right classes are called 'labels'" in hint
    np.savez(tmp_path / "d.npz", x=np.ones((5, 4), np.float32), labels=np.ones(4, np.int64))
    what, _, hint = fails(4, *command, "--inputs", tmp_path / "d.npz")
    assert what == "The labels are int64 of shape (4,)."
    assert "of 5 samples" in hint


@pytest.mark.parametrize(("name", "text"), [("dir.py", "is a folder"), ("gone.py", "does not exist")])
def test_a_factory_file_that_is_none(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "dir.py").mkdir()
    what, where, _ = fails(4, "inspect", "--factory", f"{tmp_path / name}:make")
    assert text in what
    assert name in where


@pytest.mark.parametrize("code", [b'x = "\xff"\n', b"x = 1\n\x00", b"def make(:\n"])
def test_a_factory_file_that_is_not_python(tmp_path: Path, code: bytes) -> None:
    (tmp_path / "zoo.py").write_bytes(code)
    what, where, hint = fails(4, "inspect", "--factory", f"{tmp_path / 'zoo.py'}:make")
    assert "SyntaxError" in what
    assert "zoo.py" in where
    assert "Correct the factory" in hint


def test_weights_without_values(zoo: Path) -> None:
    what, _, hint = fails(4, "inspect", "--factory", f"{zoo}:meta", "--input-shape", "1x4")
    assert "weight is on the meta device" in what
    assert "torch.device('meta')" in hint
    assert call_factory(f"{zoo}:lazy", seed=0).inputs is not None, "what gets its values later is another thing"


def test_exceptions_that_are_no_errors(zoo: Path) -> None:
    what, where, _ = fails(4, "inspect", "--factory", f"{zoo}:own")
    assert what == "The factory raised Own: stop"
    assert where.endswith("in own")
    assert run("inspect", "--factory", f"{zoo}:interrupt").exit_code == 130


def test_a_factory_leaves_the_working_folder(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    call_factory(f"{zoo}:folder", seed=0)
    assert Path.cwd() == tmp_path


def test_a_signal_ends_a_factory_as_it_ends_all_else(zoo: Path) -> None:
    with pytest.raises(BaseException, match="signal"):
        call_factory(f"{zoo}:ended", seed=0)


def test_seeds_opsets_and_lanes_out_of_range(zoo: Path, tmp_path: Path) -> None:
    command = ("convert", "-o", tmp_path / "m.onnx", "--factory", f"{zoo}:make", "--input-shape", "2x4")
    for option, value in (("--seed", 2**63), ("--opset", 10**30), ("--lane-width", 10**9), ("--rank", "9" * 5000)):
        _, where, _ = fails(2, *command, option, value)
        assert option in where


@pytest.mark.parametrize("shape", ["9" * 5000, "99999999999x99999999", "x".join(["9999"] * 9)])
def test_shapes_that_nothing_can_have(zoo: Path, shape: str) -> None:
    _, where, _ = fails(2, "inspect", "--factory", f"{zoo}:make", "--input-shape", shape)
    assert where.startswith("--input-shape")


def test_inputs_of_code_and_shapes(tmp_path: Path) -> None:
    found = spdexport.inspect(nn.Linear(4, 3), inputs=torch.ones(2, 4), input_shape=["2x4"])
    assert len(found.plan.layers) == 1
