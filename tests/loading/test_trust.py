"""``--trust``: without it no command runs code that a file brings, under whatever name the option is not given."""

import os
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cli_command import spdexport
from torch import Tensor, nn

import spdexport as package
from spdexport.errors import CaptureError, PickleRefusedError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")

SHAPE = "2x3x8x8"


class Scripted(nn.Module):
    def __init__(self, out: str):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, self.out)
        return self.conv(x)


class Payload:
    def __init__(self, out: Path) -> None:
        self.out = str(out)

    def __reduce__(self):
        return os.mkdir, (self.out,)


def scripted(path, out):
    """An archive that writes a file when it runs."""
    torch.jit.script(Scripted(str(out))).save(str(path))


def pickled(path, out):
    """A pickle that makes a folder when it is read."""
    torch.save(Payload(out), path)


def program(path, out):
    """A program with such a pickle in it."""
    plain = path.with_suffix(".plain")
    torch.export.save(torch.export.export(nn.Conv2d(3, 4, 3), (torch.ones(2, 3, 8, 8),)), plain)
    torch.save(((torch.ones(2, 3, 8, 8), Payload(out)), {}), path)
    payload = path.read_bytes()
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            bad = "/data/sample_inputs/" in name
            target.writestr(name, payload if bad else source.read(name))
    plain.unlink()


KINDS = {"scripted": scripted, "pickled": pickled, "program": program}


@pytest.fixture(params=KINDS)
def hostile(request, tmp_path):
    """A source that would make ``out``, which is not there, and ``out``."""
    path, out = tmp_path / "hostile.pt2", tmp_path / "out"
    KINDS[request.param](path, out)
    return path, out


@pytest.fixture
def commands(tmp_path):
    """Every command that takes a source, by its name, with the source left to be put into its place."""
    np.savez(tmp_path / "data.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[2,3] x) => (float[2,3] y) { y = Relu(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    shape = ("--input-shape", SHAPE)
    return {
        "inspect": ("inspect", None, *shape),
        "convert": ("convert", None, *shape, "-o", tmp_path / "new.onnx"),
        "verify": ("verify", tmp_path / "m.onnx", "--against", None, *shape),
        "masks": ("masks", None, "--data", tmp_path / "data.npz", "-o", tmp_path / "new.safetensors"),
        "fold": ("fold", None, "-o", tmp_path / "new.pt2"),
    }


@pytest.mark.parametrize("command", ["inspect", "convert", "verify", "masks", "fold"])
def test_no_command_runs_what_a_file_brings(hostile, commands, tmp_path, command):
    path, out = hostile
    before = set(tmp_path.iterdir())
    result = spdexport(*(path if argument is None else argument for argument in commands[command]))
    assert result.exit_code == 4, result.output
    assert set(tmp_path.iterdir()) == before
    assert not out.exists()
    what, where, hint = result.stderr.splitlines()
    assert str(path) in where
    if "cannot be folded" not in what:  # what is no program is never read by fold
        assert "--trust" in hint


@pytest.mark.parametrize("flag", ["--trust", "--allow-pickle"])
def test_both_names_of_the_option_let_it_run(hostile, tmp_path, flag):
    path, out = hostile
    result = spdexport("inspect", path, "--input-shape", SHAPE, flag)
    assert out.exists(), result.output


@pytest.mark.parametrize("keyword", ["trust", "allow_pickle"])
def test_both_names_in_python(tmp_path, keyword):
    path, out = tmp_path / "m.pt", tmp_path / "out"
    scripted(path, out)
    for given in ({}, {keyword: False}):
        with pytest.raises(PickleRefusedError, match="aten::save"):
            package.inspect(path, input_shape=[SHAPE], **given)
    assert not out.exists()
    with pytest.raises(CaptureError, match="aten::save"):  # which has no place in a program
        package.inspect(path, input_shape=[SHAPE], **{keyword: True})
    assert out.exists()


@pytest.mark.parametrize("keyword", ["trust", "allow_pickle"])
def test_both_names_of_fold(tmp_path, keyword):
    path, out = tmp_path / "m.pt2", tmp_path / "out"
    program(path, out)
    with pytest.raises(PickleRefusedError):
        package.fold(path, tmp_path / "new.pt2", verify=False, **{keyword: False})
    assert not out.exists()
    package.fold(path, tmp_path / "new.pt2", verify=False, **{keyword: True})
    assert out.exists()


@pytest.mark.parametrize("command", ["inspect", "convert", "verify", "masks", "fold"])
def test_help_shows_the_name_that_is_true(command):
    shown = spdexport(command, "--help").output
    assert "--trust" in shown
    assert "allow-pickle" not in shown


def test_trust_is_no_option_that_a_file_records():
    assert not {"trust", "allow_pickle"} & set(package.Options(trust=True).recorded())
