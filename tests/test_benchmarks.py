"""Benchmarks are run by hand: that they still fit the code they measure is tested by starting each."""

from __future__ import annotations

import os
import runpy
import sys
from multiprocessing import get_context
from pathlib import Path

import pytest
import transformers  # noqa: F401 - what takes long to load is loaded once, for all copies of the process

import spdexport.pipeline  # noqa: F401

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
COMMANDS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_starts(name: str, tmp_path: Path) -> None:
    # A copy of this process has the libraries already, which take longer than all else.
    process = get_context("fork").Process(target=_ask_for_help, args=(name, tmp_path))
    process.start()
    process.join()
    assert (process.exitcode, (tmp_path / "stderr").read_text(encoding="utf-8")) == (0, "")
    assert (tmp_path / "stdout").read_text(encoding="utf-8").startswith(f"usage: {name}")


def _ask_for_help(name: str, folder: Path) -> None:
    os.chdir(folder)
    for number, kind in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(kind, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    sys.argv, sys.path[:0] = [name, "--help"], [str(BENCHMARKS)]
    try:
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
