"""A file alone is verified and folded in an environment that has no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_nets import conv_bn

from spdexport import pipeline

BLOCK = "import sys; sys.modules['torch'] = None\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module, inputs = conv_bn()
    path = tmp_path_factory.mktemp("alone") / "m.onnx"
    pipeline.convert(module, path, inputs=inputs, verify=False)
    return path


def run(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], env=environment, capture_output=True, text=True, check=False
    )


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    arguments = ["spdexport", *map(str, words)]
    return run(f"sys.argv = {arguments!r}\nfrom spdexport.cli import main\nmain()")


def test_verify(file: Path) -> None:
    done = run(f"import spdexport; print(spdexport.verify({str(file)!r}, providers=['cpu'], thorough=True).verdict)")
    assert done.stdout == "pass\n", done.stderr


def test_verify_on_the_command_line(file: Path, tmp_path: Path) -> None:
    done = command("verify", file, "--provider", "cpu", "--report", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    assert "equivalent" in done.stdout
    assert (tmp_path / "r.json").exists()


def test_fold_on_the_command_line(file: Path, tmp_path: Path) -> None:
    done = command("fold", file, "-o", tmp_path / "f.onnx", "--provider", "cpu")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f.onnx").exists()


def test_inputs_from_npz(file: Path, tmp_path: Path) -> None:
    import numpy as np

    np.savez(tmp_path / "x.npz", input=np.zeros((3, 3, 12, 12), np.float32))
    done = command("verify", file, "--provider", "cpu", "--inputs", tmp_path / "x.npz")
    assert done.returncode == 0, done.stderr
    assert "given by" in done.stdout


def test_what_needs_torch_says_so(file: Path, tmp_path: Path) -> None:
    done = command("convert", "--factory", "nothing.py:make", "-o", tmp_path / "m.onnx")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-3] == "error: This needs PyTorch, which is not installed."
    assert "pip install torch" in done.stderr
