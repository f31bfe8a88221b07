import re

import onnx_models
from cli_command import spdexport

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} ")


def test_a_log_has_every_step_and_the_whole_report_even_of_a_quiet_run(tmp_path):
    model, log = onnx_models.saved(onnx_models.network(), tmp_path / "m.onnx"), tmp_path / "run.log"
    log.write_text("of an older run")
    result = spdexport("convert", model, "-o", tmp_path / "o.onnx", "-q", "--log-file", log)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    lines = log.read_text().splitlines()
    begun = [STAMP.sub("", line) for line in lines if STAMP.match(line)]
    assert begun[0] == "loading"
    assert begun[-1] == "result"
    assert all(line.startswith("    ") or not line for line in lines if not STAMP.match(line))
    assert any("equivalent: " in line for line in lines)
    assert any("SHA-256" in line for line in lines)


def test_a_log_tells_what_went_wrong(tmp_path):
    log = tmp_path / "run.log"
    assert spdexport("convert", tmp_path / "none.onnx", "-o", tmp_path / "o.onnx", "--log-file", log).exit_code == 4
    text = log.read_text()
    assert "error: " in text
    assert f"    where: {tmp_path / 'none.onnx'}" in text


def test_a_log_overwrites_nothing_that_is_read_and_has_to_have_a_folder(tmp_path):
    model = onnx_models.saved(onnx_models.network(), tmp_path / "m.onnx")
    before = model.read_bytes()
    assert spdexport("inspect", model, "--log-file", model).exit_code == 2
    assert model.read_bytes() == before
    result = spdexport("inspect", model, "--log-file", tmp_path / "none" / "run.log")
    assert result.exit_code == 74
    assert "none/run.log" in result.stderr
