"""Files that are made to harm: nothing of them runs, nothing is written, and each is told in three lines."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_hostile_files():
    command = [sys.executable, BENCHMARKS / "hostile.py", "--fast"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
