"""A few of the faults that benchmarks/faults.py lets happen by the hundred."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[1] / "benchmarks" / "faults.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="signals, limits and disks are those of Linux")
def test_nothing_is_lost_and_nothing_is_left() -> None:
    command = [sys.executable, str(HARNESS), "--kills", "4", "--steps", "1", "--only", "fold .onnx"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" trials, 0 faults.\n")
