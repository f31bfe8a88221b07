import subprocess
import sys

import pytest

from spdexport.report.workflow_commands import annotation
from spdexport.speech import on_github


def test_an_annotation_is_one_line():
    assert annotation("error", "a: b, c", "50%\r\n::x") == "::error title=a%3A b%2C c::50%25%0A::x"


def test_control_characters_are_shown():
    assert annotation("error", "t", "a\x1b[31m") == "::error title=t::a\\x1b[31m"


@pytest.mark.parametrize(("value", "there"), [("true", True), ("false", False), ("", False), (None, False)])
def test_on_github(monkeypatch, value, there):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    if value is not None:
        monkeypatch.setenv("GITHUB_ACTIONS", value)
    assert on_github() is there


def test_errors_on_github_need_no_torch():
    script = (
        "import sys, spdexport.report.workflow_commands, spdexport.speech\n"
        "print(*({'torch', 'rich', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
