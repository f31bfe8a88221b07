"""The reports that the commands write, on a file whose weight was changed after conversion."""

import json
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from cli_command import DIGITS, MASKS, spdexport
from onnx import numpy_helper

AGAINST = ("--against", *DIGITS, "--masks", MASKS)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """The digits run as ONNX, with the reports of its conversion beside it."""
    folder = tmp_path_factory.mktemp("converted")
    result = spdexport(
        "convert", *DIGITS, "--masks", MASKS, "-o", folder / "digits.onnx", "--provider", "cpu",
        "--junit", folder / "r.xml", "--html", folder / "r.html", "--repro", folder / "r.npz",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return folder


@pytest.fixture(scope="module")
def tampered(converted, tmp_path_factory):
    """The same file with one weight of conv2 off, and what verify finds and writes."""
    folder = tmp_path_factory.mktemp("tampered")
    model = onnx.load(converted / "digits.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "conv2.U")
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += 0.5
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, folder / "digits.onnx")
    result = spdexport(
        "verify", folder / "digits.onnx", *AGAINST, "--provider", "cpu", "--report", folder / "r.json",
        "--junit", folder / "r.xml", "--html", folder / "r.html", "--repro", folder / "r.npz",
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    return folder, result


def cases(path):
    """The test cases of a report, each with its outcome."""
    return {
        f"{case.get('classname')} {case.get('name')}": next((x.tag for x in case if x.tag != "system-out"), "pass")
        for case in ET.parse(path).getroot().iter("testcase")
    }


def test_reports_of_a_conversion(converted):
    found = cases(converted / "r.xml")
    assert set(found.values()) == {"pass", "skipped"}
    assert {"spdexport.edges weights", "spdexport.edges export (cpu)", "spdexport.layers conv2"} <= set(found)
    assert "equivalent: the file computes the intended model, to rounding" in (converted / "r.html").read_text()
    with np.load(converted / "r.npz") as archive:
        assert any(name.startswith("output:") for name in archive)


def test_names_of_test_cases_do_not_depend_on_the_verdict(converted, tampered):
    assert list(cases(converted / "r.xml")) == list(cases(tampered[0] / "r.xml"))


def test_the_fault_is_in_every_report(tampered):
    folder, result = tampered
    found = cases(folder / "r.xml")
    assert found["spdexport.edges weights"] == "failure"
    assert found["spdexport.layers conv2"] == "failure"
    assert found["spdexport.edges capture"] == "pass"
    page = (folder / "r.html").read_text(encoding="utf-8")
    assert "not equivalent" in page
    assert "<svg" in page
    report = json.loads((folder / "r.json").read_text())
    layer = next(x for x in report["layers"] if x["name"] == "conv2")
    assert layer["weights_ratio"] is None or layer["weights_ratio"] > 8
    assert next(x for x in report["layer_checks"] if x["name"] == "conv2")["status"] == "fail"
    assert "weights: what this means" in result.stdout
    assert "convert again" in result.stdout


def ratio_of(report, edge):
    return next(e["noise_ratio"] for e in json.loads(report.read_text())["edges"] if e["edge"] == edge)


def test_the_worst_input_shows_the_fault_again(tampered, tmp_path):
    folder, _ = tampered
    model = [x for x in AGAINST if x not in ("--input-shape", "2x1x16x16")]
    result = spdexport("verify", folder / "digits.onnx", *model, "--inputs", folder / "r.npz", "--provider", "cpu",
                       "--report", tmp_path / "again.json")  # fmt: skip
    assert result.exit_code == 1, result.output
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["inputs"][0] == f"given by {folder / 'r.npz'}"
    assert max(ratio_of(tmp_path / "again.json", e) for e in ("export", "optimize")) == pytest.approx(
        max(ratio_of(folder / "r.json", e) for e in ("export", "optimize")), rel=0.5
    )


def test_the_worst_input_of_a_file_alone(converted, tmp_path):
    result = spdexport("verify", converted / "digits.onnx", "--inputs", converted / "r.npz", "--provider", "cpu")
    assert result.exit_code == 0, result.output
    assert "given by" in result.stdout


def test_on_github(tampered, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    result = spdexport("verify", tampered[0] / "digits.onnx", "--provider", "cpu")
    assert result.exit_code == 1
    *lines, error = result.stdout.splitlines()
    assert any("not equivalent" in line for line in lines)
    assert not [line for line in lines if "::" in line]
    assert error.startswith("::error title=spdexport%2C digits.onnx%3A weights fail::the weights or the graph changed")
    assert (tmp_path / "summary.md").read_text(encoding="utf-8").startswith("### ❌ spdexport: not equivalent")


def test_elsewhere_no_commands_are_printed(tampered):
    assert "::" not in tampered[1].stdout


def test_fold_writes_them_too(converted, tmp_path):
    result = spdexport("fold", converted / "digits.onnx", "-o", tmp_path / "dense.onnx", "--provider", "cpu",
                       "--junit", tmp_path / "r.xml", "--html", tmp_path / "r.html")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert set(cases(tmp_path / "r.xml").values()) == {"pass", "skipped"}
    assert "equivalent to rounding" in (tmp_path / "r.html").read_text()


def test_a_tolerance_of_the_users_own_is_called_theirs(converted):
    result = spdexport("verify", converted / "digits.onnx", "--provider", "cpu", "--atol", "1e-3", "--thorough")
    assert result.exit_code == 0, result.output
    assert "set by the user" in result.stdout
