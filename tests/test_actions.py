"""The composite action, the workflow to copy and the pre-commit hook: their scripts are run as runners run them."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import onnx_models
import pytest
import yaml

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
WORKFLOW = yaml.safe_load((ROOT / "examples/02_continuous_integration/verify.yml").read_text(encoding="utf-8"))
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def shell(tmp_path):
    """Run a script of bash with spdexport on the path, as a job of GitHub has it."""
    tools = tmp_path / "tools"
    tools.mkdir()
    script = tools / "spdexport"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m spdexport "$@"\n')
    script.chmod(0o755)

    def run(words, **variables):
        environment = {
            **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "GITHUB_ACTIONS": "true",
            "GITHUB_STEP_SUMMARY": str(tmp_path / "step"), "GITHUB_OUTPUT": str(tmp_path / "output"), **variables,
        }  # fmt: skip
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_the_action_checks_keeps_reports_and_gives_the_status(shell, tmp_path):
    onnx_models.saved(onnx_models.network(), tmp_path / "a model.onnx")
    given = {"FILE": "a model.onnx", "AGAINST": "", "FACTORY": "", "ARGUMENTS": "--provider\ncpu\n"} | {
        "REPORTS": "out dir"
    }
    script = STEPS["Verify"]["run"]
    done = shell(["bash", "-e", "-o", "pipefail", "-c", script], **given)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text() == "status=0\n"
    assert {path.name for path in (tmp_path / "out dir").iterdir()} >= {"report.html", "report.xml", "summary.md"}
    assert "spdexport: equivalent" in (tmp_path / "out dir" / "summary.md").read_text(encoding="utf-8")
    wrong = shell(["bash", "-e", "-o", "pipefail", "-c", script], **{**given, "FILE": "$(touch owned).onnx"})
    assert wrong.returncode == 4
    assert not (tmp_path / "owned").exists()
    assert (tmp_path / "output").read_text().endswith("status=4\n")


def test_no_input_of_the_action_is_part_of_a_script():
    for step in STEPS.values():
        assert "${{" not in step.get("run", "")
    taken = {word for step in STEPS.values() for word in str(step).split() if word.startswith("inputs.")}
    assert {word.partition(".")[2].strip("'}\",") for word in taken} == set(ACTION["inputs"])


def test_the_hook_checks_every_file_and_fails_with_the_first_that_does(shell, tmp_path):
    onnx_models.saved(onnx_models.network(), tmp_path / "a.onnx")
    (tmp_path / "b.onnx").write_bytes(b"\x08\x07\x12\x00")
    assert HOOK["id"] == "spdexport-verify"

    words = shlex.split(HOOK["entry"])
    assert shell([*words, "a.onnx"]).returncode == 0
    failed = shell([*words, "a.onnx", "b.onnx"])
    assert failed.returncode == 4
    assert "b.onnx" in failed.stderr


def test_the_workflow_has_what_a_project_needs():
    steps = WORKFLOW["jobs"]["model"]["steps"]
    assert steps[0]["with"]["lfs"] is True
    told = "".join(str(step) for step in steps)
    assert "report.html" in told
    assert "gh pr comment" in told
    assert WORKFLOW["permissions"] == {"contents": "read", "pull-requests": "write"}


def test_the_workflow_installs_from_the_repository_that_is_filled_in(shell, tmp_path):
    steps = {step.get("name"): step for step in WORKFLOW["jobs"]["model"]["steps"]}
    pip = tmp_path / "tools" / "pip"
    pip.write_text(f'#!/bin/sh\necho "$@" >> "{tmp_path}/pip"\n')
    pip.chmod(0o755)

    def installs(what):
        return shell(["bash", "-e", "-o", "pipefail", "-c", steps["Install"]["run"]], SPDEXPORT=what)

    blank = installs(WORKFLOW["env"]["SPDEXPORT"])
    assert (blank.returncode, "::error::Fill in SPDEXPORT" in blank.stdout) == (1, True)
    assert not (tmp_path / "pip").exists()
    assert installs("git+https://github.com/somebody/spdexport@v1").returncode == 0
    called = (tmp_path / "pip").read_text().splitlines()
    assert called[1] == "install git+https://github.com/somebody/spdexport@v1 pytest"
    assert called[0].startswith("install torch --index-url ")  # before what would bring CUDA


def test_the_table_of_exit_statuses_is_whole():
    text = (ROOT / "examples/02_continuous_integration/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \|", text, flags=re.MULTILINE)
    listed = {int(number) for row in rows for number in row.split(",")}
    assert listed == {0, 1, 2, 3, 4, 5, 70, 74, 130, 143}
