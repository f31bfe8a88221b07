"""No output overwrites what is read, nor another output: every command, every pair of options, however it is named."""

import os
import shutil
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
import torch
from cli_command import FACTORY, RUN, SHAPE, spdexport
from onnx_models import network, saved
from safetensors.numpy import save_file

import spdexport as package
from spdexport.cli import main
from spdexport.files import guard
from spdexport.overwriting import READS
from spdexport.overwriting import WRITES as OUTPUTS
from spdexport.report.formats import formats

WRITES = {**OUTPUTS, **formats()}

FILES = {
    "source": "model.pt",
    "file": "m.onnx",
    "against": "against.onnx",
    "components": "components.safetensors",
    "factory": "factory.py",
    "inputs": "inputs.npz",
    "masks": "masks.safetensors",
    "plan": "plan.json",
    "sets": "sets.json",
    "baseline": "baseline.safetensors",
    "edit": "edit.json",
    "harvest": "harvest.db",
    "names": "names.json",
    "labels": "labels.csv",
    "data": "data.npz",
    "selection": "selection.npz",
    "test": "test.npz",
    "metric": "metric.py",
    "cache": "cache",
    "config": "settings.toml",
    "classes": "classes.txt",
    "dense": "dense.onnx",
    "runtime": "package.tgz",
}
"""A file for each argument that is read. Nothing has to be valid: all is told before the first byte is read, but
for the settings, of which the command line is made."""

NEEDED = {
    "convert": ["output"],
    "fold": ["output"],
    "masks": ["output", "data"],
    "ablate": ["data"],
    "atlas": ["output", "data"],
    "compress": ["output", "data"],
    "lab": ["output", "data"],
}
"""What a command does not begin without."""


def _parameters(command, table):
    return [p for p in main.commands[command].params if p.name in table and _names_files(p)]


def _names_files(parameter):
    return isinstance(parameter.type, click.Path) or parameter.name in ("factory", "metric", "baseline")


def _slips():
    for command in main.commands:
        for written in _parameters(command, WRITES):
            for read in _parameters(command, READS):
                yield pytest.param(command, written, read, id=f"{command} {written.name} {read.name}")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that is the working directory, with every file of FILES."""
    monkeypatch.chdir(tmp_path)
    for name in FILES.values():
        Path(name).write_bytes(f"# the bytes of {name}".encode())
    return tmp_path


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def untouched(folder, before):
    """Whether every file is there as it was. That a report was asked for in vain, new files may tell."""
    after = content(folder)
    return all(after.get(name) == data for name, data in before.items())


def words(parameter, value):
    value = f"{value}:make" if parameter.name in ("factory", "metric") else value
    return [value] if isinstance(parameter, click.Argument) else [parameter.opts[0], value]


def line(command, **values):
    """A command line with these values, and those without which the command does not begin."""
    parameters = {p.name: p for p in main.commands[command].params}
    needed = {p.name: FILES[p.name] for p in main.commands[command].params if isinstance(p, click.Argument)}
    needed |= {name: "new.onnx" if name == "output" else FILES[name] for name in NEEDED.get(command, ())}
    return [command, *(word for name, value in {**needed, **values}.items() for word in words(parameters[name], value))]


def refused(result):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    what, where, hint = result.stderr.splitlines()
    assert "would overwrite" in what
    assert hint.startswith("  to do: Name another file" if "--in-place" in hint else "  to do: Name the output")
    return where


@pytest.mark.parametrize(("command", "written", "read"), list(_slips()))
def test_no_output_overwrites_what_is_read(folder, command, written, read):
    before = content(folder)
    name = FILES[read.name]
    where = refused(spdexport(*line(command, **{read.name: name, written.name: name})))
    for parameter in (written, read):
        label = parameter.name.upper() if isinstance(parameter, click.Argument) else parameter.opts[0]
        assert f"{label} {name}" in where
    assert content(folder) == before


def test_every_option_that_names_a_file_is_known():
    for command in main.commands.values():
        for parameter in command.params:
            if isinstance(parameter.type, click.Path):
                assert parameter.name in {**READS, **WRITES}, f"{command.name} {parameter.name}"


@pytest.mark.parametrize("command", main.commands)
def test_no_output_overwrites_another(folder, command):
    before = content(folder)
    written = _parameters(command, WRITES)
    for i, one in enumerate(written):
        for other in written[:i]:
            where = refused(spdexport(*line(command, **{one.name: "new.x", other.name: "./new.x"})))
            assert one.opts[0] in where
            assert other.opts[0] in where
            assert untouched(folder, before)


@pytest.mark.parametrize(
    ("output", "other"),
    [
        (["-o", "masks.safetensors"], ["--report", "masks.importances.safetensors"]),
        (["-o", "data.safetensors"], ["--report", "r.json"]),
    ],
)
def test_nor_what_is_written_beside_one(folder, output, other):
    Path("data.importances.safetensors").write_bytes(b"data")
    before = content(folder)
    data = "data.importances.safetensors" if "data" in output[1] else "inputs.npz"
    where = refused(spdexport("masks", "model.pt", "--data", data, *output, *other))
    assert ".importances.safetensors" in where
    assert untouched(folder, before)


@pytest.mark.parametrize("command", ["convert", "fold"])
def test_nor_does_a_file_that_fails_its_check(folder, command):
    shutil.copy("m.onnx", "out.failed.onnx")
    before = content(folder)
    where = refused(spdexport(command, "out.failed.onnx", "-o", "out.onnx"))
    assert "out.failed.onnx" in where
    assert content(folder) == before


def test_an_output_given_twice(folder):
    refused(spdexport("convert", "model.pt", "-o", "a.onnx", "-o", "x/../a.onnx"))


# Other names of a file


def _symbolic(folder, name):
    (folder / "link").symlink_to(name)
    return "link"


def _hard(folder, name):
    os.link(folder / name, folder / "link")
    return "link"


def _linked_folder(folder, name):
    (folder / "there").symlink_to(folder)
    return f"there/{name}"


NAMES = {
    "absolute": lambda folder, name: folder / name,
    "dots": lambda folder, name: f"../{folder.name}/./{name}",
    "symbolic link": _symbolic,
    "hard link": _hard,
    "linked folder": _linked_folder,
}


@pytest.mark.parametrize("how", NAMES)
def test_a_file_is_known_by_whatever_name(folder, how):
    other = NAMES[how](folder, "masks.safetensors")
    before = content(folder)
    refused(spdexport("convert", "model.pt", "-o", "m2.onnx", "--masks", "masks.safetensors", "--save-plan", other))
    refused(spdexport("convert", "model.pt", "-o", "m2.onnx", "--masks", other, "--save-plan", "masks.safetensors"))
    assert content(folder) == before


def test_files_that_are_not_there_yet_are_known_too(folder):
    (folder / "there").symlink_to(folder)
    (folder / "dangling").symlink_to("new.json")
    for other in ("there/new.json", "dangling", folder / "new.json"):
        refused(spdexport("convert", "model.pt", "-o", "m2.onnx", "--save-plan", "new.json", "--report", other))


def test_where_the_file_system_ignores_case(folder, monkeypatch):
    real = Path.samefile

    def samefile(path, other):
        return real(Path(str(path).lower()), Path(str(other).lower()))

    (folder / "lower").mkdir()
    report, plan = Path("lower") / "é.json", Path("lower") / "É.json"
    assert guard.identity(report) != guard.identity(plan)
    monkeypatch.setattr(guard, "_ignores_case", lambda _: True)
    assert guard.identity(report) == guard.identity(plan)
    assert guard.identity(Path("lower/a")) != guard.identity(Path("lower/b"))
    monkeypatch.undo()
    (folder / "lower" / "name").touch()
    monkeypatch.setattr(Path, "samefile", samefile)
    assert guard._ignores_case(folder / "lower") is True


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/null", "/dev/../dev/null", "/proc/self/fd/1", "pipe"])
def test_devices_and_pipes_are_no_outputs(folder, path):
    os.mkfifo("pipe")
    for option in ("--report", "--save-plan", "-o"):
        rest = [] if option == "-o" else ["-o", "m2.onnx"]
        result = spdexport("convert", "model.pt", *rest, option, path)
        assert result.exit_code == 2
        assert "The output is a device or a pipe" in result.stderr
        assert f"{option} {path}" in result.stderr


@pytest.mark.parametrize(
    "variable", ["GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_PATH", "GITHUB_STATE"]
)
def test_the_files_of_the_runner(folder, monkeypatch, variable):
    Path("summary").write_text("before")
    monkeypatch.setenv(variable, str(folder / "summary"))
    where = refused(spdexport("verify", "m.onnx", "--html", "summary"))
    assert f"${variable}" in where
    assert Path("summary").read_text() == "before"


# Folders


def test_the_files_of_a_run(folder):
    shutil.copytree(RUN, "run")
    before = content(folder)
    for name in ("model_4000.pth", "final_config.yaml", "model_9000.pth"):
        refused(spdexport("convert", "run", "--factory", FACTORY, "-o", "m2.onnx", "--report", f"run/{name}"))
        refused(spdexport("convert", "m.onnx", "--components", "run", "-o", "m2.onnx", "--save-plan", f"run/{name}"))
    for name in ("final_config.yaml", "model_4000.pth"):
        refused(spdexport("inspect", "run/model_4000.pth", "--factory", FACTORY, "--report", f"run/{name}"))
    assert content(folder) == before


def test_other_names_in_the_folder_of_a_run_are_free(folder):
    shutil.copytree(RUN, "run")
    result = spdexport("inspect", "run", "--factory", FACTORY, "--input-shape", SHAPE, "--report", "run/r.json")
    assert result.exit_code == 0, result.output


def test_a_folder_of_data(folder):
    Path("data").mkdir()
    Path("data/one.npz").write_bytes(b"one")
    before = content(folder)
    for name in ("one.npz", "new.json"):  # the latter would be read as data the next time
        refused(spdexport("ablate", "m.onnx", "--data", "data", "--report", f"data/{name}"))
    refused(spdexport("masks", "model.pt", "--data", "data", "-o", "data/masks.safetensors"))
    assert content(folder) == before


def test_the_weights_beside_an_onnx_file(tmp_path):
    onnx.save(network(), tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = content(tmp_path)
    weights = tmp_path / "weights.bin"
    for command in (
        ["convert", tmp_path / "m.onnx", "-o", tmp_path / "out.onnx", "--report", weights],
        ["fold", tmp_path / "m.onnx", "-o", tmp_path / "out.onnx", "--junit", weights],
        ["verify", tmp_path / "m.onnx", "--repro", weights],
        ["bench", tmp_path / "m.onnx", "--report", weights],
    ):
        assert "weights of" in refused(spdexport(*command))
    assert content(tmp_path) == before


def test_a_module_of_the_working_directory(folder):
    Path("nets.py").write_text("def make(): ...")
    refused(spdexport("inspect", "--factory", "nets:make", "--report", "nets.py"))


# The Python functions


def test_the_functions_refuse_too(folder):
    before = content(folder)
    with pytest.raises(package.UsageError, match="would overwrite"):
        package.convert("model.pt", "out.onnx", save_plan="model.pt")
    with pytest.raises(package.UsageError, match="would overwrite"):
        package.convert("model.pt", "out.onnx", masks="masks.safetensors", save_plan=Path("masks.safetensors"))
    with pytest.raises(package.UsageError, match="would overwrite"):
        package.convert(torch.nn.Linear(2, 2), ["a.onnx", "b.pt2"], save_plan="a.onnx")
    save_file({"x": np.zeros((2, 2), np.float32)}, "d.safetensors")
    with pytest.raises(package.UsageError, match="would overwrite"):
        package.derive_masks("model.pt", "d.safetensors", data="d.safetensors")
    assert untouched(folder, before)


@pytest.mark.parametrize("function", [package.convert, package.fold])
def test_the_source_is_replaced_where_that_is_asked_for(tmp_path, function):
    file = tmp_path / "m.onnx"
    saved(network(), file)
    before = file.read_bytes()
    with pytest.raises(package.UsageError, match="would overwrite the model that it is made of") as error:
        function(file, file, providers="cpu")
    assert "--in-place" in error.value.hint
    assert file.read_bytes() == before
    assert function(file, file, providers="cpu", in_place=True).verdict is package.Status.PASS
    assert file.read_bytes() != before
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("command", ["convert", "fold"])
def test_in_place_on_the_command_line(tmp_path, command):
    file = tmp_path / "m.onnx"
    saved(network(), file)
    before = file.read_bytes()
    assert "SOURCE" in refused(spdexport("convert", file, "-o", file))
    assert file.read_bytes() == before
    result = spdexport(command, file, "-o", file, "--in-place", "--no-verify")
    assert result.exit_code == 0, result.output
    assert file.read_bytes() != before
    result = spdexport(command, file, "-o", tmp_path / "other.onnx", "--in-place")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[1] == "  where: --in-place"


def test_in_place_allows_nothing_else(folder):
    before = content(folder)
    refused(spdexport("convert", "m.onnx", "-o", "m.onnx", "--in-place", "--report", "m.onnx"))
    refused(spdexport("convert", "m.onnx", "-o", "m.onnx", "--in-place", "--masks", "m.onnx"))
    assert content(folder) == before
