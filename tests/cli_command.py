"""Running the command line in a test, on the digits run of the first example."""

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from spdexport.cli import main

EXAMPLE = Path(__file__).parents[1] / "examples" / "01_digits"
RUN = EXAMPLE / "run"
FACTORY = f"{EXAMPLE / 'digits_cnn.py'}:DigitsCNN"
MASKS = RUN / "fixed_masks.safetensors"
SHAPE = "2x1x16x16"

MODEL = ("--factory", FACTORY, "--input-shape", SHAPE)
DIGITS = (RUN, *MODEL)


def spdexport(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def subprocess_of(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run the command line as users do."""
    command = [sys.executable, "-m", "spdexport", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload,no-any-return]
