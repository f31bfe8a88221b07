import io

import pytest
from rich.console import Console

from spdexport.report.progress import ProgressLine, minutes, progress_on
from spdexport.steps import Remark, name_of, step


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def told(*steps, verbose=False, quiet=False, terminal=False):
    """What is written while these are told, a second apart."""
    file, clock = io.StringIO(), Clock()
    with progress_on(Console(file=file, force_terminal=terminal), verbose=verbose, quiet=quiet, clock=clock) as tell:
        for one in steps:
            tell(one)
            clock.now += 1
    return file.getvalue()


def layers(done):
    return step("planning", done=done, total=3, detail=f"conv[{done}]")


def test_off_a_terminal_each_step_is_a_line_however_often_it_is_told():
    said = told("tracing", layers(0), layers(1), "comparing outputs: normal", "comparing outputs: large", "over[bold]")
    assert said.splitlines() == [
        "[0:00] tracing",
        "[0:01] planning: 0 of 3 layers, conv[0]",
        "[0:03] comparing outputs: normal",
        "[0:05] over[bold]",
    ]


def test_verbose_has_a_line_for_all_that_is_told_on_a_terminal_too():
    for terminal in (False, True):
        said = told(layers(0), layers(1), verbose=True, terminal=terminal)
        assert said.splitlines() == [
            "[0:00] planning: 0 of 3 layers, conv[0]",
            "[0:01] planning: 1 of 3 layers, conv[1]",
        ]


def test_quiet_says_nothing_and_no_remark():
    assert told("tracing", Remark("this costs more"), quiet=True) == ""
    assert told("tracing", Remark("this costs more"), quiet=True, terminal=True) == ""


def test_a_remark_stays_to_be_read_and_is_no_step():
    assert told("planning", Remark("this costs\nmore"), layers(1)).splitlines() == [
        "[0:00] planning",
        r"note: this costs\nmore",
    ]
    said = told("planning", Remark("this costs more"), terminal=True)
    assert said.count("note: this costs more") == 1


def test_on_a_terminal_one_line_changes_and_is_gone_at_the_end():
    said = told("comparing layer[bold]", terminal=True)
    assert "0:00 comparing layer[bold]" in said
    assert said.endswith("\x1b[2K")


def test_the_time_that_is_left_is_that_of_the_step_alone():
    clock = Clock()
    line = ProgressLine(clock)
    clock.now += 60
    assert line.text() == "1:00 starting"
    line.tell(step("refitting", done=4, total=10))
    assert line.left() is None  # nothing of the step was seen yet
    clock.now += 8
    line.tell(step("refitting", done=6, total=10))
    assert line.left() == pytest.approx(16)
    assert line.text() == "1:08 refitting: 6 of 10 layers, about 0:16 left"
    line.tell("exporting")
    assert line.text() == "1:08 exporting"
    line.tell(step("importances", done=5, unit="sample"))
    assert line.text() == "1:08 importances: 5 samples"


def test_what_a_step_is_called():
    assert name_of("comparing outputs: normal, batch 2") == name_of("comparing outputs") == "comparing outputs"
    assert name_of(step("a: b", done=1)) == "a: b"
    assert step("planning", done=1, total=1) == "planning: 1 of 1 layer"


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.9, "0:59"), (754, "12:34"), (3723, "1:02:03")])
def test_times(seconds, shown):
    assert minutes(seconds) == shown
