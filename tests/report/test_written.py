import json
from xml.etree import ElementTree as ET

import pytest
from results import WEIGHTS_FAIL, conversion, inspection, layer, verification, worst

from spdexport.errors import UsageError
from spdexport.report.written import report_files

NAMES = {"report": "r.json", "junit": "r.xml", "html": "r.html", "repro": "r.npz"}


def paths(folder):
    return {option: folder / name for option, name in NAMES.items()}


def test_all_are_written_whatever_the_verdict_is(tmp_path):
    with report_files(paths(tmp_path), []) as write:
        assert write(conversion(found=verification(WEIGHTS_FAIL, worst=worst()))) is None
        assert {p.name for p in tmp_path.iterdir()} & set(NAMES.values()) == {"r.npz"}  # the others move at the end
    assert {p.name for p in tmp_path.iterdir()} == set(NAMES.values())
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == "fail"
    assert ET.parse(tmp_path / "r.xml").getroot().get("failures") == "1"
    assert "not equivalent" in (tmp_path / "r.html").read_text()


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "r.xml").write_text("before")
    with pytest.raises(RuntimeError), report_files(paths(tmp_path), []):
        raise RuntimeError
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"r.xml": "before"}


def test_nothing_asked_for(tmp_path):
    with report_files(dict.fromkeys(NAMES), []) as write:
        assert write(inspection(layer())) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", NAMES)
def test_no_report_overwrites_another_file(tmp_path, option):
    path = tmp_path / "m.onnx"
    with pytest.raises(UsageError, match="would overwrite another file") as error, report_files({option: path}, [path]):
        pass
    assert error.value.where == f"--{option} {path}"


def test_no_report_overwrites_another_report(tmp_path):
    path = tmp_path / "r"
    with pytest.raises(UsageError, match="would overwrite"), report_files({"junit": path, "html": path}, []):
        pass


@pytest.mark.parametrize("option", NAMES)
def test_a_folder_that_is_not_there_is_told_before_the_work(tmp_path, option):
    asked = {option: tmp_path / "no" / "r"}
    with pytest.raises(UsageError, match="folder of the output does not exist"), report_files(asked, []):
        pytest.fail("the work began")


def test_where_nothing_ran_there_is_no_input_to_save(tmp_path):
    with report_files({"repro": tmp_path / "r.npz"}, []) as write:
        remark = write(verification())
    assert (
        remark == f"{tmp_path / 'r.npz'} was not written: ONNX Runtime ran on no input, so that there is none to save"
    )
    assert list(tmp_path.iterdir()) == []
