"""What the commands do when all is well, and their exit statuses."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import onnx
import pytest
from cli_command import DIGITS, EXAMPLE, MASKS, MODEL, RUN, spdexport, subprocess_of, without_steps
from click.testing import CliRunner
from onnx import numpy_helper

import spdexport as package
from spdexport import cli_kinds, cli_options
from spdexport.cli import main
from spdexport.options import Options
from spdexport.ort.providers import CUDA, PROVIDERS
from spdexport.ort.sessions import provider_status
from spdexport.planning import Delta, FormChoice

COMMANDS = ("convert", "verify", "fold", "inspect")


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The digits run converted with its masks, and verified; with what the command printed."""
    folder = tmp_path_factory.mktemp("converted")
    result = spdexport(
        "convert", *DIGITS, "--masks", MASKS, "-o", folder / "digits.onnx", "--report", folder / "report.json"
    )
    assert result.exit_code == 0, result.output
    return folder / "digits.onnx", result, json.loads((folder / "report.json").read_text())


def test_convert_writes_the_file_and_says_what_it_did(converted):
    file, result, _ = converted
    assert sorted(p.name for p in file.parent.iterdir()) == ["digits.onnx", "report.json"]
    assert "5 layers decomposed (factorized), components from the SPD run" in result.stdout
    assert "equivalent: the file computes the intended model" in result.stdout
    assert "approximation, intended" in result.stdout
    assert f"spdexport fold {file} -o OUT.onnx" in result.stdout  # for V and U cost more on this run
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.splitlines())


def test_the_report_of_convert(converted):
    _, _, report = converted
    assert report["schema_version"] == 1
    assert report["verdict"] == "pass"
    assert [layer["name"] for layer in report["layers"]] == ["conv1", "conv2", "conv3", "fc1", "fc2"]
    assert {edge["edge"] for edge in report["edges"]} >= {
        "capture",
        "weights",
        "rewrite",
        "export",
        "optimize",
        "device",
    }
    assert report["approximation"]["relative_l2"] > 0
    assert set(report["artifacts"]) == {"source", "components", "masks", "digits.onnx"}


def test_verify_needs_only_what_the_file_does_not_record(converted):
    file, _, _ = converted
    result = spdexport("verify", file, "--against", *DIGITS, "--masks", MASKS)
    assert result.exit_code == 0, result.output
    assert "equivalent" in result.stdout


def test_verify_by_itself_claims_no_more_than_it_compared(converted):
    result = spdexport("verify", converted[0])
    assert result.exit_code == 0, result.output
    assert "equivalent to rounding, on the edges that ran" in result.stdout
    assert "intended model" not in result.stdout


def test_a_changed_weight_is_not_equivalent(converted, tmp_path):
    file, _, _ = converted
    model = onnx.load(file)
    weight = next(t for t in model.graph.initializer if t.name == "conv2.U")
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.01
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    result = spdexport(
        "verify", tmp_path / "changed.onnx", "--against", *DIGITS, "--masks", MASKS, "--report", tmp_path / "r.json"
    )
    assert result.exit_code == 1
    assert "not equivalent" in result.stdout
    assert "conv2" in result.stdout
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == "fail"


@pytest.mark.skipif(provider_status(CUDA) is None, reason="CUDA runs here")
def test_cuda_where_it_cannot_run_is_inconclusive_and_says_what_is_missing(tmp_path):
    result = spdexport("convert", *DIGITS, "-o", tmp_path / "m.onnx", "--provider", "cuda", "--quiet")
    assert result.exit_code == 3
    assert "inconclusive" in result.stdout
    said = " ".join(result.stdout.split())
    assert provider_status(CUDA)[:20] in said
    assert (tmp_path / "m.onnx").exists()


def test_without_verification_nothing_is_claimed(tmp_path):
    result = spdexport("convert", *DIGITS, "-o", tmp_path / "m.onnx", "--no-verify")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "not verified"
    assert "equivalent" not in result.stdout


def test_two_outputs(tmp_path):
    result = spdexport("convert", *DIGITS, "-o", tmp_path / "m.onnx", "-o", tmp_path / "m.pt2", "--no-verify", "-q")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.pt2"]


def test_fold_gives_dense_layers_back(converted, tmp_path):
    file, _, _ = converted
    result = spdexport("fold", file, "-o", tmp_path / "dense.onnx", "--report", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "5 layers folded" in result.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["verdict"] == "pass"
    assert len(report["layers"]) == 5
    assert all(x["macs_after_per_location"] < x["macs_before_per_location"] for x in report["layers"])
    operators = [node.op_type for node in onnx.load(tmp_path / "dense.onnx").graph.node]
    assert operators.count("Conv") == 3


def test_inspect_shows_the_table_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = spdexport("inspect", *DIGITS, "--masks", MASKS, "--report", "r.json")
    assert result.exit_code == 0, result.output
    row = next(line for line in result.stdout.splitlines() if line.startswith("conv2"))
    assert row.split() == ["conv2", "16>32", "3x3", "s2", "p1", "64", "41", "26", "0.121", "295", "k", "462", "k"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json"]
    assert json.loads(Path("r.json").read_text())["verdict"] == "not_run"


def test_quiet_says_the_verdict_alone(tmp_path):
    result = spdexport("convert", *DIGITS, "-o", tmp_path / "m.onnx", "-q")
    assert result.stdout.splitlines() == ["equivalent: the file computes the intended model, to rounding"]
    assert result.stderr == ""


def test_verbose_writes_its_steps_to_standard_error(tmp_path):
    done = CliRunner().invoke(main, ["inspect", *map(str, DIGITS), "-v"])
    said = [line.partition("] ")[2] for line in done.stderr.splitlines()]
    assert said[:2] == ["loading", "tracing"]
    assert said[-1] == "planning: 4 of 5 layers, fc2"
    assert "loading" not in done.stdout.splitlines()
    assert "SHA-256" in done.stdout


def test_what_the_users_model_prints_does_not_reach_standard_output(tmp_path):
    (tmp_path / "loud.py").write_text(
        "import sys\nsys.path.insert(0, " + repr(str(EXAMPLE)) + ")\nfrom digits_cnn import DigitsCNN\n"
        "def make():\n    print('HELLO')\n    return DigitsCNN()\n"
    )
    loud = ("--factory", f"{tmp_path / 'loud.py'}:make", "--input-shape", "2x1x16x16")
    assert "HELLO" not in spdexport("inspect", *loud).output
    assert "HELLO" in spdexport("inspect", *loud, "-v").output


def test_only_options_that_were_given_reach_the_pipeline(monkeypatch, tmp_path):
    seen = {}

    def verify(file, **keywords):
        seen.update(keywords)
        raise package.SourceError("stop", where="here", hint="none")

    monkeypatch.setattr(package, "verify", verify)
    spdexport("verify", "m.onnx", "--form", "dense", "--static-batch", "--seed", "0")
    assert {k: v for k, v in seen.items() if k != "progress"} == {
        "against": None, "providers": None, "form": "dense", "dynamic_batch": False, "seed": 0,
    }  # fmt: skip


def test_every_option_of_the_python_api_is_one_of_the_command_line():
    offered = {p.name for p in main.commands["convert"].params if isinstance(p, cli_kinds.Keyword)}
    # --provider tells the target.
    assert set(Options.__dataclass_fields__) - {"target"} <= offered


def test_choices_are_those_of_the_enums():
    assert tuple(Delta) == cli_options.DELTAS
    assert tuple(FormChoice) == cli_options.FORMS
    assert tuple(PROVIDERS) == cli_options.PROVIDERS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(command):
    for parameter in main.commands[command].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name


def test_help_and_version_load_nothing_heavy():
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom spdexport.cli import main\n"
        "for a in [['--help'], ['--version'], *([c, '--help'] for c in main.commands)]:\n"
        "    r = CliRunner().invoke(main, a)\n"
        "    assert r.exit_code == 0 and r.output, (a, r.output)\n"
        "print(*({'torch', 'onnx', 'onnx_ir', 'numpy', 'onnxruntime', 'rich', 'safetensors'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_module_and_version():
    done = subprocess_of("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"spdexport, version {package.__version__}")


def test_a_pipe_gets_plain_text_with_whole_names():
    done = subprocess_of("inspect", RUN.name, *MODEL, cwd=EXAMPLE)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert {"conv1", "conv2", "conv3", "fc1", "fc2"} <= {line.split(" ")[0] for line in done.stdout.splitlines()}


def begun(process, folder):
    """Return whether a process has a file in a folder: one with a name, or an open one that has none yet."""
    opened = []
    for descriptor in Path(f"/proc/{process}/fd").glob("*"):
        with contextlib.suppress(OSError):  # it is closed meanwhile
            opened.append(descriptor.readlink())
    return any(folder.iterdir()) or any(path.parent == folder for path in opened)


@pytest.mark.parametrize(
    ("number", "status", "told"),
    [(signal.SIGINT, 130, "Interrupted."), (signal.SIGTERM, 143, "")],
    ids=["ctrl-c", "kill"],
)
def test_an_end_from_outside_leaves_nothing_behind(tmp_path, number, status, told):
    command = [sys.executable, "-m", "spdexport", "convert", *map(str, DIGITS), "-o", str(tmp_path / "m.onnx")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not begun(process.pid, tmp_path) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert begun(process.pid, tmp_path), "the work never began"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert without_steps(stderr).strip() == told
    assert list(tmp_path.iterdir()) == []


def test_a_missing_home_is_not_made(tmp_path):
    home = tmp_path / "nobody"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))} | {"HOME": str(home)}
    done = subprocess_of("convert", *DIGITS, "-o", tmp_path / "m.onnx", "-q", env=environment)
    assert done.returncode == 0, done.stderr
    assert not home.exists()


OLDER = (
    ("ablate", ("m.onnx",), "--data", "--inputs"),
    ("ablate", ("m.onnx", "--data", "x.npz"), "--output-name", "--output"),
    ("masks", ("run", "-o", "m.safetensors"), "--data", "--inputs"),
    ("lab", ("m.onnx", "--data", "x.npz", "-o", "lab"), "--classes", "--labels"),
    ("convert", ("m.pt",), "--trust", "--allow-pickle"),
)


@pytest.mark.parametrize(("command", "words", "name", "older"), OLDER)
def test_an_older_name_of_an_option_means_the_same_and_is_not_shown(command, words, name, older):
    value = () if name == "--trust" else ("value",)
    parent = click.Context(main, info_name="spdexport")
    made = [main.commands[command].make_context(command, [*words, n, *value], parent=parent) for n in (name, older)]
    assert made[0].params == made[1].params
    text = main.commands[command].get_help(made[0])
    assert re.search(rf"^  {name} ", text, flags=re.MULTILINE)
    assert not re.search(rf"(^|, ){older}\b", text, flags=re.MULTILINE)


COMPRESS = ("m.onnx", "-o", "s.onnx", "--data", "x.npz")


@pytest.mark.parametrize(("text", "share"), [("0.01", 0.01), ("1%", 0.01), (" 2.5 % ", 0.025), ("0", 0.0)])
def test_shares_are_numbers_or_percentages_in_every_command(text, share):
    for command, words in (("convert", ("m.onnx",)), ("verify", ("m.onnx",)), ("compress", COMPRESS)):
        context = click.Context(main, info_name="spdexport")
        made = main.commands[command].make_context(command, [*words, "--max-top1-drop", text], parent=context)
        assert made.params["max_top1_drop"] == pytest.approx(share)


@pytest.mark.parametrize("text", ["-0.1", "one", "nan%", "%"])
def test_what_is_no_share_is_refused(text):
    result = spdexport("convert", "m.onnx", "--max-top1-drop", text, "--dry-run")
    assert result.exit_code in (2, 4)
    assert "Traceback" not in result.output
