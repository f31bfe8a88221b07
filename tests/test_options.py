"""What holds together what the user can ask for: the Python functions, the command line, and what a file keeps."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import onnx
import onnx_models
import pytest
from cli_command import spdexport

import spdexport as package
from spdexport.cli import main
from spdexport.cli_kinds import Keyword
from spdexport.options import CHOICES, NOT_RECORDED, RECORDED, Options, OptionsDict
from spdexport.report.formats import formats
from spdexport.verification.check import Check

FUNCTIONS = {"masks": "derive_masks"}
"""The function that a command calls, where it has another name."""

ARGUMENTS = {
    "convert": ["-o", "o.onnx"],
    "fold": ["-o", "o.onnx"],
    "masks": ["-o", "o"],
    "ablate": ["--data", "x"],
    "atlas": ["-o", "o.html", "--data", "x"],
    "compress": ["-o", "o.onnx", "--data", "x"],
    "lab": ["-o", "o", "--data", "x"],
}
"""What a command is not without, beside the file."""

OPTIONS = {field.name for field in fields(Options)}
CHECKS = set(inspect.signature(Check.of).parameters) - {"providers", "progress"}


def keywords_of(command: click.Command) -> set[str]:
    return {p.name for p in command.params if isinstance(p, Keyword) and p.name is not None}


def test_an_option_is_one_for_python_for_the_command_line_and_for_files() -> None:
    assert set(OptionsDict.__annotations__) - {"allow_pickle"} == OPTIONS
    assert sorted((*RECORDED, *NOT_RECORDED)) == sorted(OPTIONS)
    # --provider tells the target.
    assert keywords_of(main.commands["convert"]) == OPTIONS - {"target"} | CHECKS
    for command in main.commands.values():
        assert keywords_of(command) <= OPTIONS | CHECKS


@pytest.mark.parametrize("function", [package.convert, package.verify])
def test_both_functions_have_all_that_is_asked_of_a_check(function: Any) -> None:
    assert set(inspect.signature(function).parameters) >= {*CHECKS, "providers", "progress"}


@pytest.mark.parametrize("name", main.commands)
def test_defaults_are_told_as_they_are(name: str) -> None:
    """What was not given is not passed on: help must tell what is then taken."""
    command = main.commands[name]
    function = inspect.signature(getattr(package, FUNCTIONS.get(name, name))).parameters
    context = command.make_context(name, ["m", *ARGUMENTS.get(name, ())])
    for keyword in keywords_of(command) - {"inputs"}:
        shown = context.params[keyword]
        if keyword in function:
            assert shown == function[keyword].default or not (shown or function[keyword].default)
        else:
            assert getattr(Options.of({keyword: shown}), keyword) == getattr(Options(), keyword)  # type: ignore[misc]


PLAIN = """
from spdexport.report import formats

ROW = formats.ReportFormat(
    option="text", metavar="F.txt", help="Write it as plain text.",
    result="plain:told", failure="plain:untold", mark=b"spdexport says", tells=(formats.LISTS,),
)

def told(result):
    return f"spdexport says {len(result.plan.layers)} layers"

def untold(failure):
    return f"spdexport says {failure.code}"

if __name__ == "__main__":
    formats.FORMATS += (ROW,)
    from spdexport.cli import main

    main()
"""


def test_a_format_of_report_is_one_file_and_one_row(tmp_path: Path) -> None:
    """The option, the file while there is no result, the result, what went wrong, and what it must not overwrite."""
    (tmp_path / "plain.py").write_text(PLAIN)
    onnx_models.saved(onnx_models.network(), tmp_path / "m.onnx")

    def inspected(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "plain.py", "inspect", *words]
        path = os.pathsep.join(sys.path)
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
        )

    done = inspected("m.onnx", "--text", "d.txt")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "d.txt").read_text().endswith("layers")
    assert inspected("m.onnx", "--text", "m.onnx").returncode == 2
    assert onnx.load(tmp_path / "m.onnx").graph.node
    assert inspected("none.onnx", "--text", "d.txt").returncode == 4
    assert (tmp_path / "d.txt").read_text() == "spdexport says source"
    assert inspected("m.onnx", "--text", "d.txt", "--no-such").returncode == 2
    assert (tmp_path / "d.txt").read_text() == "spdexport says usage"


def test_an_option_that_no_command_takes_is_no_option_that_is_ignored(tmp_path: Path) -> None:
    """A report that is declared beside the table would write nothing, and exit with 0."""
    command = main.commands["inspect"]
    stray = click.Option(["--text"], type=click.Path(path_type=Path), help="Write it as plain text.")
    onnx_models.saved(onnx_models.network(), tmp_path / "m.onnx")
    command.params.append(stray)
    try:
        result = spdexport("inspect", tmp_path / "m.onnx", "--text", tmp_path / "d.txt")
    finally:
        command.params.remove(stray)
    assert result.exit_code == 70
    assert "unexpected keyword argument 'text'" in result.stderr


@pytest.mark.parametrize("command", main.commands.values(), ids=lambda command: command.name)
def test_every_option_is_passed_on_by_its_name(command: Any) -> None:
    """To the command, or with others to the one function that it calls: nothing is gathered to be left alone."""
    taken = dict(inspect.signature(command.callback.__wrapped__).parameters)
    gathered = {"verbose", "quiet", "log_file", "config", "limits", "repro", *formats()}
    exposed = [p for p in command.params if p.expose_value]
    named = {p.name for p in exposed if not isinstance(p, Keyword)} - gathered
    function = inspect.signature(getattr(package, FUNCTIONS.get(command.name, command.name)))
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        taken |= function.parameters
    assert named <= set(taken)
    keywords = {p.name for p in exposed if isinstance(p, Keyword)}
    known = {*function.parameters, *OptionsDict.__annotations__, "inputs"}
    assert keywords <= known


def test_the_words_of_an_option_are_those_of_its_enum() -> None:
    options = {p.name: p.type for p in main.commands["convert"].params if isinstance(p.type, click.Choice)}
    assert {name: tuple(options[name].choices) for name in CHOICES} == {n: tuple(kind) for n, kind in CHOICES.items()}
