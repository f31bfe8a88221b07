import errno
import html
import json
from xml.etree import ElementTree as ET

import pytest
from results import WEIGHTS_FAIL, conversion, inspection, layer, verification, worst

from spdexport.errors import OutputError, SpdExportError, UsageError
from spdexport.files.writing import refused
from spdexport.report import repro, written
from spdexport.report.formats import FORMATS
from spdexport.report.unfinished import NOT_OVER, Failure
from spdexport.report.written import ReportFiles

NAMES = {"report": "r.json", "junit": "r.xml", "html": "r.html", "card": "r.md", "repro": "r.npz"}
FAILED = conversion(found=verification(WEIGHTS_FAIL, worst=worst()))


def paths(folder):
    return {option: folder / name for option, name in NAMES.items()}


def error_of(path):
    """What a report says of a run without a result: the sentence in it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        report = json.loads(text)
        assert report["schema_version"] == 1
        assert report["verdict"] is None
        return report["error"]["what"]
    if path.suffix == ".xml":
        root = ET.fromstring(text)
        assert (root.get("tests"), root.get("errors"), root.get("failures")) == ("1", "1", "0")
        return root.find("testsuite/testcase/error").get("message")
    assert "no result" in text
    if path.suffix == ".md":
        return html.unescape(text.splitlines()[3])
    return text.partition('<section class="verdict fail">')[2].split("<p>")[2].partition("</p>")[0]


def test_all_are_written_whatever_the_verdict_is(tmp_path):
    reports = ReportFiles(paths(tmp_path))
    reports.begin()
    assert reports.finish(FAILED) == (None, None)
    assert {p.name for p in tmp_path.iterdir()} == set(NAMES.values())
    assert json.loads((tmp_path / "r.json").read_text())["verdict"] == "fail"
    assert ET.parse(tmp_path / "r.xml").getroot().get("failures") == "1"
    assert "not equivalent" in (tmp_path / "r.html").read_text()


def test_while_the_work_goes_on_no_older_report_is_there(tmp_path):
    for name in NAMES.values():
        (tmp_path / name).write_text("of an earlier run")
    ReportFiles(paths(tmp_path)).begin()
    for row in FORMATS:
        assert error_of(tmp_path / NAMES[row.option]) == NOT_OVER.what
    assert (tmp_path / "r.npz").read_text() == "of an earlier run"  # it is no result
    assert {p.name for p in tmp_path.iterdir()} == set(NAMES.values())


def test_an_error_is_in_every_report(tmp_path):
    reports = ReportFiles(paths(tmp_path))
    reports.begin()
    failure = Failure.of(UsageError("a <b> & \x1b[31m\ud800", where="--x\n::error", hint="do"))
    assert reports.fail(failure) == []
    assert error_of(tmp_path / "r.json") == failure.what
    assert error_of(tmp_path / "r.xml") == r"a <b> & \x1b[31m\ud800"
    assert error_of(tmp_path / "r.html") == r"a &lt;b&gt; &amp; \x1b[31m\ud800"
    assert json.loads((tmp_path / "r.json").read_text())["error"] == {
        "code": "usage", "what": failure.what, "where": "--x\n::error", "hint": "do", "exit_status": 2,
    }  # fmt: skip


def test_a_report_with_the_result_stays(tmp_path):
    reports = ReportFiles(paths(tmp_path))
    reports.begin()
    reports.finish(FAILED)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert reports.fail(Failure.of_end("terminated", 143)) == []
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_nothing_asked_for(tmp_path):
    reports = ReportFiles(dict.fromkeys(NAMES))
    reports.begin()
    assert reports.finish(inspection(layer())) == (None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", NAMES)
def test_a_folder_that_is_not_there_is_told_before_the_work(tmp_path, option):
    with pytest.raises(SpdExportError, match="folder of the output does not exist"):
        ReportFiles({option: tmp_path / "no" / "r"}).begin()


def test_one_that_cannot_be_begun_leaves_no_older_report_of_the_others(tmp_path):
    (tmp_path / "r.html").write_text("of an earlier run")
    reports = ReportFiles({**paths(tmp_path), "report": tmp_path / "no" / "r.json"})
    with pytest.raises(SpdExportError) as error:
        reports.begin()
    assert reports.fail(Failure.of(error.value)) == []
    assert error_of(tmp_path / "r.html") == error_of(tmp_path / "r.xml") == error.value.what


@pytest.mark.parametrize("option", NAMES)
def test_a_report_that_cannot_be_written_does_not_hinder_the_others(tmp_path, monkeypatch, option):
    """As on a full disk."""
    reports = ReportFiles(paths(tmp_path))
    reports.begin()
    real = written.replacing

    def replacing(path):
        if path.name == NAMES[option]:
            raise refused(OSError(errno.ENOSPC, "No space left on device"), path)
        return real(path)

    for module in (written, repro):
        monkeypatch.setattr(module, "replacing", replacing)
    remark, error = reports.finish(FAILED)
    assert remark is None
    assert isinstance(error, OutputError)
    assert error.what == "The output cannot be written: the disk is full."
    assert error.where == str(tmp_path / NAMES[option])
    done = {"r.json": "fail", "r.xml": "weights", "r.html": "not equivalent", "r.md": "not equivalent"}
    for name, said in done.items():
        assert (said in (tmp_path / name).read_text(encoding="utf-8")) == (name != NAMES[option])
    remarks = reports.fail(Failure.of(error))
    assert len(remarks) == (option != "repro")


def test_where_nothing_ran_there_is_no_input_to_save(tmp_path):
    reports = ReportFiles({"repro": tmp_path / "r.npz"})
    reports.begin()
    remark, error = reports.finish(verification())
    assert error is None
    assert (
        remark == f"{tmp_path / 'r.npz'} was not written: ONNX Runtime ran on no input, so that there is none to save"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.option)
def test_an_unfinished_report_is_utf_8(row):
    row.of_failure(Failure.of(UsageError("漢字 \udc80", where="", hint=""))).encode()
