"""Damaged files of every kind end in three lines and a documented status, and the judge of that sees what does not."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fuzz_case
import fuzz_workers
import pytest
from fuzz_case import Outcome
from fuzz_kinds import KINDS, Kind, damaged, plan
from fuzz_workers import run_jobs

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_damaged_files():
    command = [sys.executable, BENCHMARKS / "fuzz.py", "--cases", "160", "--fast", "--seed", "1000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


# --- the damage ---


@pytest.mark.parametrize("kind", [KINDS["json-masks-convert"], KINDS["sets-ablate"]], ids=lambda kind: kind.name)
def test_damage_depends_on_the_seed_alone(kind):
    content = b'{"conv": [1, 0.5], "fc": [0]}'
    other = (Path(__file__),)
    found = [damaged(content, plan(kind, seed), other) for seed in range(200)]
    assert found == [damaged(content, plan(kind, seed), other) for seed in range(200)]
    assert len(set(found)) > 150
    assert sum(content == one for one in found) < 20


def test_there_are_kinds_for_every_command():
    assert {kind.command[0] for kind in KINDS.values()} == {
        "convert", "verify", "inspect", "fold", "bench", "masks", "ablate", "atlas", "lab",
    }  # fmt: skip
    assert len(KINDS) > 100


# --- the judge ---


KIND = Kind(
    name="test", damaged="masks.json", needs=(), command=("convert", "masks.json", "-o", "out/m.onnx"), share=1.0
)
THREE_LINES = "error: no\n  where: here\n  to do: that\n"


@dataclasses.dataclass(frozen=True)
class _Job:
    """A case whose command is a function."""

    def run(self, material):
        return fuzz_case.run_case(KIND, 3, material, ())

    def ended(self, fault, seconds):
        return Outcome(kind="test", status=None, seconds=seconds, faults=(fault,))


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Judges a function that takes the place of the command line."""
    (tmp_path / "material").mkdir()
    (tmp_path / "material" / "masks.json").write_text("{}")

    def judge(command) -> Outcome:
        def main(_words):
            sys.exit(command())

        monkeypatch.setattr(fuzz_case, "main", main)
        (outcome,) = run_jobs([_Job()], tmp_path / "material", workers=1)
        return outcome

    return judge


def test_three_lines_of_error_are_right(judged):
    def refuses():
        print(THREE_LINES, end="", file=sys.stderr)
        return 4

    found = judged(refuses)
    assert (found.status, found.faults) == (4, ())


def _writes(path, status=4):
    def command():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("x")
        print(THREE_LINES, end="", file=sys.stderr)
        return status

    return command


def _says(text, status=4):
    def command():
        print(text, end="", file=sys.stderr)
        return status

    return command


def _natively():
    os.write(2, b"one\ntwo\nthree\nfour\n")
    return 1


def _raises():
    raise ValueError("no luck")


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (lambda: 70, "exit status 70"),
        (lambda: 4, "an error that is not what, where and what to do"),
        (_says("1\n2\n3\n4\n", 1), "4 lines on standard error"),
        (_natively, "4 lines on standard error"),
        (_says(f"{THREE_LINES}Traceback (most recent call last):\n"), "a traceback"),
        (_says("error: \x1b[31m\n  where: here\n  to do: that\n"), "control characters in the output"),
        (_raises, "raised ValueError: no luck"),
        (_writes("left"), "left behind: left"),
        (_writes("out/.m.0123.onnx"), "left behind: out/.m.0123.onnx"),
        (_writes("out/m.onnx"), "out/m.onnx was changed"),
        (_writes("masks.json"), "masks.json was changed"),
        (_writes("marker"), "the payload was executed"),
        (lambda: Path("masks.json").unlink() or 1, "masks.json is gone"),
        (lambda: 0, "no output out/m.onnx"),
        (_writes("out/m.onnx", 0), "the written model is not valid"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crashed: SIGSEGV"),
    ],
)
def test_what_must_not_be_is_seen(judged, command, fault):
    assert any(found.startswith(fault) for found in judged(command).faults), judged(command)


def test_a_hang_is_ended(judged, monkeypatch):
    def busy():
        while True:
            pass

    monkeypatch.setattr(fuzz_workers, "SECONDS", 0.2)
    assert judged(busy).faults == ("more than 0.2 s of processor time",)
    monkeypatch.setattr(fuzz_workers, "PATIENCE", 0.5)
    assert judged(lambda: time.sleep(60)).faults == ("no end after 0.5 s",)


def test_memory_is_bounded(judged, monkeypatch):
    def holds():
        held = bytearray(os.urandom(1)) * 200_000_000
        time.sleep(60)
        return len(held)

    monkeypatch.setattr(fuzz_workers, "MIB", 100)
    assert "100 MiB" in judged(holds).faults[0]


def test_a_damaged_file_that_is_accepted_is_seen(tmp_path):
    path = tmp_path / "masks.json"
    for text, said in (("{}", "valid"), ("{", "invalid"), ("null", "invalid")):
        path.write_text(text)
        assert fuzz_case.validity(KIND, path) == said
