"""Running the command line in a test, on the digits run of the first example."""

import re
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


_STEP = re.compile(r"^(\[\d+:\d\d(:\d\d)?\]|note:) .*\n", flags=re.MULTILINE)


def without_steps(text: str) -> str:
    """What was said on standard error beside the steps of the work and remarks on them: errors and warnings."""
    return _STEP.sub("", text)


def spdexport(*arguments: object) -> Result:
    """Run the command line in this process; the steps of the work are left out of what it said."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    result.stderr_bytes = without_steps(result.stderr).encode()
    result.output_bytes = without_steps(result.output).encode()
    return result


def subprocess_of(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run the command line as users do; the steps of the work are left out of what it said."""
    command = [sys.executable, "-m", "spdexport", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    done.stderr = without_steps(done.stderr)
    return done  # type: ignore[no-any-return]
