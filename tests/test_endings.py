"""However a run ends, its reports tell of this run, what was found is told, and the exit status is no other's."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import onnx
import pytest
from cli_command import spdexport, without_steps
from onnx import numpy_helper
from onnx_models import network, saved

import spdexport as package

NAMES = {"report": "r.json", "junit": "r.xml", "html": "r.html"}

ASKED = [word for option, name in NAMES.items() for word in (f"--{option}", name)]

COMMAND = [sys.executable, "-m", "spdexport"]


@pytest.fixture(scope="module")
def green(tmp_path_factory):
    """The reports of a run in which all was well, by name; and its model."""
    folder = tmp_path_factory.mktemp("green")
    saved(network(), folder / "m.onnx")
    reports = [word for option, name in NAMES.items() for word in (f"--{option}", folder / name)]
    assert spdexport("verify", folder / "m.onnx", "--provider", "cpu", *reports).exit_code == 0
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(green, tmp_path, monkeypatch):
    """The working directory, with the reports of yesterday in it."""
    monkeypatch.chdir(tmp_path)
    for name, content in green.items():
        Path(name).write_bytes(content)
    return tmp_path


def errors(folder):
    """What the three reports tell as the error of the run; None for one that has a result."""
    report = json.loads((folder / "r.json").read_text(encoding="utf-8"))
    suites = ET.parse(folder / "r.xml").getroot()
    case = suites.find("testsuite[@name='spdexport.run']/testcase/error")
    page = (folder / "r.html").read_text(encoding="utf-8")
    found = (
        report.get("error", {}).get("what"),
        None if case is None else case.get("message"),
        page.partition("<p><strong>no result</strong></p>\n<p>")[2].partition("</p>")[0] or None,
    )
    if report.get("error"):
        assert (report["schema_version"], report["verdict"]) == (1, None)
        assert suites.get("errors") == "1"
    return found


def error(folder):
    """The same error in all three."""
    first, second, third = errors(folder)
    assert first is not None
    assert second == first
    assert third.replace("&#39;", "'") == first
    return first


def ended(result, folder):
    """The status of a command line, whose error is in every report and on the terminal."""
    assert result.stderr.splitlines()[0] == f"error: {' '.join(error(folder).split())}"
    assert json.loads((folder / "r.json").read_text())["error"]["exit_status"] == result.exit_code
    return result.exit_code


# What click cannot read


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "m.onnx", *ASKED, "--bogus"],
        ["verify", "m.onnx", *ASKED, "--bogus", "x", "y", "z"],
        ["verify", *(f"--{option}={name}" for option, name in NAMES.items()), "m.onnx", "--seed", "none"],
        ["verify", "m.onnx", *ASKED, "--seed"],
        ["verify", *ASKED],
        ["vrfy", "m.onnx", *ASKED],
        ["--bogus", "verify", "m.onnx", *ASKED],
        ["verify", "m.onnx", *ASKED, "-v", "-q"],
        ["verify", "m.onnx", *ASKED, "--limit", "bananas=3"],
        ["verify", "m.onnx", "--junit", "older.xml", *ASKED, "--bogus"],
        ["verify", "m.onnx", *ASKED, "--repro", "m.onnx"],
        ["verify", "m.onnx", *ASKED, "--repro", "no/r.npz"],
    ],
)
def test_wrong_usage(folder, words):
    assert ended(spdexport(*words), folder) == 2


def test_errors_of_the_work(folder):
    assert ended(spdexport("verify", "none.onnx", *ASKED), folder) == 4


def test_an_error_where_no_report_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ended(spdexport("verify", "none.onnx", *ASKED), tmp_path) == 4


def test_a_fault_of_its_own(folder, monkeypatch):
    monkeypatch.setattr(package, "verify", lambda *_, **__: 1 // 0)
    assert ended(spdexport("verify", "m.onnx", *ASKED), folder) == 70


def test_a_broken_pipe_inside_of_the_work_is_no_verdict(folder, monkeypatch):
    def verify(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(package, "verify", verify)
    assert ended(spdexport("verify", "m.onnx", *ASKED), folder) == 70


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "r.json", "--report", "r.json", "--bogus"],
        ["verify", "m.onnx", "--masks=r.json", "--report", "sub/../r.json", "--bogus"],
        ["verify", "m.onnx", "--factory", "r.xml:make", "--junit", "r.xml", "--bogus"],
        ["verify", "--junit", "m.onnx", "--bogus"],
        ["verify", "--report", "m.onnx", "--bogus"],
        ["verify", "--report", "plan.json", "--bogus"],
        ["convert", "x", "-o", "r.html", "--html", "r.html", "--bogus"],
        ["verify", "m.onnx", "--report", "sub", "--bogus"],
        ["ablate", "m.onnx", "--data", "sub", "--report", "sub/new.json", "--bogus"],
        ["verify", "m.onnx", "--report", "no/r.json", "--bogus"],
        ["verify", "m.onnx", "--bogus", "--report"],
    ],
)
def test_what_is_no_report_of_this_command_stays(folder, words):
    Path("sub").mkdir()
    Path("plan.json").write_text('["not a report"]')
    before = {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert spdexport(*words).exit_code == 2
    assert {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


# Ends from outside


SLEEPS = """
import pathlib, time
def make():
    pathlib.Path("began").touch()
    time.sleep(120)
"""


def test_signals(green, tmp_path):
    """All at once, for they take long to begin: the number that is sent, the exit status, and what the reports say."""
    told = {signal.SIGTERM: (143, "was ended before"), signal.SIGHUP: (129, "was ended before"),
            signal.SIGINT: (130, "was ended before"), signal.SIGKILL: (-9, "no result yet")}  # fmt: skip
    running = {}
    for number in told:
        folder = tmp_path / number.name
        folder.mkdir()
        for name, content in green.items():
            (folder / name).write_bytes(content)
        (folder / "nets.py").write_text(SLEEPS)
        words = ["convert", "--factory", "nets.py:make", "-o", "out.onnx", "--save-plan", "p.json", *ASKED]
        # As under nohup: that it does not end by SIGHUP is seen by that it ends by SIGTERM.
        ignored = (lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) if number is signal.SIGTERM else None
        running[number] = subprocess.Popen(
            [*COMMAND, *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=ignored,
        )
    for number, process in running.items():
        folder = tmp_path / number.name
        deadline = time.monotonic() + 120
        while not (folder / "began").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (folder / "began").exists(), process.communicate()
        assert "no result yet" in error(folder)
        if number is signal.SIGTERM:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.2)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
        status, what = told[number]
        assert process.returncode == status
        assert what in error(folder)
        assert stdout == ""
        assert without_steps(stderr) == ("Interrupted.\n" if number is signal.SIGINT else "")
        if number is not signal.SIGKILL:
            assert json.loads((folder / "r.json").read_text())["error"]["exit_status"] == status
            left = {path.name for path in folder.iterdir()} - {"__pycache__"}
            assert left == {*green, "nets.py", "began"}


# Results that cannot be written


REMOVES = """
import shutil, torch
def make():
    shutil.rmtree("reports")
    return torch.nn.Linear(3, 2), torch.rand(2, 3)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_a_library_makes_an_exception_of_its_own_of(folder, monkeypatch, number, status):
    def wraps(*_args, **_options):
        try:
            signal.raise_signal(number)
        except BaseException as error:
            raise RuntimeError("could not run the node") from error

    monkeypatch.setattr(package, "verify", wraps)
    assert spdexport("verify", "m.onnx", *ASKED).exit_code == status
    assert "was ended before" in error(folder)


def test_a_verdict_is_told_whatever_becomes_of_the_reports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    Path("nets.py").write_text(REMOVES)
    result = spdexport("convert", "--factory", "nets.py:make", "-o", "m.onnx", "--provider", "cpu",
                       "--report", "reports/r.json", "--junit", "r.xml", "--html", "reports/r.html")  # fmt: skip
    assert result.exit_code == 74
    assert "equivalent: the file computes the intended model" in result.stdout
    assert len(result.stderr.splitlines()) == 5
    assert result.stderr.splitlines()[1] == "  where: reports/r.json"
    for line, name in zip(result.stderr.splitlines()[3:], ("r.json", "r.html"), strict=True):
        assert line.startswith(f"warning: reports/{name} does not tell of this error")
    assert ET.parse("r.xml").getroot().get("errors") == "0"
    assert Path("m.onnx").exists()


def test_the_summary_of_a_job_is_no_verdict(folder, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(folder / "no" / "summary.md"))
    result = spdexport("verify", "m.onnx", "--provider", "cpu", *ASKED)
    assert result.exit_code == 0
    assert errors(folder) == (None, None, None)
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("warning: The summary of the job cannot be written: No such file or directory.")


# Standard output and standard error that are gone


@pytest.fixture
def wrong(folder):
    """A model that is not what its metadata say: not equivalent."""
    assert spdexport("convert", "m.onnx", "-o", "out.onnx", "--no-verify").exit_code == 0
    model = onnx.load("out.onnx")
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 1, weight.name))
    onnx.save(model, "out.onnx")
    return folder


def run(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options):
    done = subprocess.run([*COMMAND, *words], stdout=stdout, stderr=stderr, text=True, check=False, **options)
    done.stderr = done.stderr and without_steps(done.stderr)
    return done


def broken_pipe():
    """The writing end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["verify", "--help"]])
def test_help_into_a_broken_pipe(words, buffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    done = run(*words, stdout=broken_pipe(), env=environment)
    assert (done.returncode, done.stderr) == (74, "")


def test_help_on_a_full_disk_and_on_nothing():
    with Path("/dev/full").open("w") as full:
        done = run("--help", stdout=full)
    assert done.returncode == 74
    assert done.stderr.splitlines()[0] == "error: Standard output cannot be written: No space left on device."
    done = run("--version", stdout=None, preexec_fn=lambda: os.close(1))
    assert done.returncode == 74
    assert done.stderr.splitlines()[0] == "error: Standard output cannot be written: it is closed."


def test_a_verdict_that_standard_output_has_no_room_for(wrong):
    with Path("/dev/full").open("w") as full:
        done = run("verify", "out.onnx", "--provider", "cpu", stdout=full)
    assert done.returncode == 74
    assert done.stderr.startswith("not equivalent: ")
    assert "error: Standard output cannot be written: No space left on device." in done.stderr


def test_a_verdict_that_nobody_reads(wrong):
    """The reports have it; the exit status is neither 0 nor 1."""
    done = run("verify", "out.onnx", "--provider", "cpu", *ASKED, stdout=broken_pipe())
    assert (done.returncode, done.stderr) == (74, "")
    assert errors(wrong) == (None, None, None)
    assert json.loads(Path("r.json").read_text())["verdict"] == "fail"


def test_errors_that_nobody_reads(tmp_path):
    for options in ({"stderr": broken_pipe()}, {"stderr": None, "preexec_fn": lambda: os.close(2)}):
        done = run("verify", tmp_path / "none.onnx", "--report", tmp_path / "r.json", **options)
        assert (done.returncode, done.stdout) == (4, "")
        assert json.loads((tmp_path / "r.json").read_text())["error"]["exit_status"] == 4


def test_with_all_three_closed_nothing_ends_up_in_a_file(folder):
    """The numbers of closed files are not given to those that are written."""

    def close():
        for number in range(3):
            os.close(number)

    done = run("fold", "m.onnx", "-o", "out.onnx", "--no-verify", "-v", stdout=None, stderr=None, preexec_fn=close)
    assert done.returncode == 74
    onnx.checker.check_model("out.onnx")
