import io

import pytest
from rich.console import Console

from spdexport.report.progress import progress_on


@pytest.mark.parametrize(
    ("verbose", "quiet", "written"), [(False, False, ""), (True, False, "layer[0]\ntracing\n"), (False, True, "")]
)
def test_off_a_terminal(verbose, quiet, written):
    file = io.StringIO()
    with progress_on(Console(file=file), verbose=verbose, quiet=quiet) as told:
        told("layer[0]")
        told("tracing")
    assert file.getvalue() == written


def test_on_a_terminal_one_line_changes_and_is_gone_at_the_end():
    file = io.StringIO()
    with progress_on(Console(file=file, force_terminal=True), verbose=False, quiet=False) as told:
        told("comparing layer[bold]")
    assert "comparing layer[bold]" in file.getvalue()
    assert file.getvalue().endswith("\x1b[2K")
