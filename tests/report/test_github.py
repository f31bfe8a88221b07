import pytest
from results import NO_DEVICE, WEIGHTS_FAIL, check, conversion, edge, verification

from spdexport.report.github import LAYERS_SHOWN, commands, summary, tell
from spdexport.verification.result import Status

FAILED = verification(
    edge("capture"),
    WEIGHTS_FAIL,
    edge("device", Status.INCONCLUSIVE, provider="cuda", noise_ratio=None, reason="100% missing:\n::set-env::x"),
    layers=(check("conv1"), check("conv2", Status.FAIL)),
)


def test_failed_edges_are_errors_and_inconclusive_ones_warnings():
    error, warning = commands(FAILED)
    assert error.startswith("::error title=spdexport%2C m.onnx%3A weights fail::first diverges at conv2: ")
    assert "%0Awhat this means: " in error
    assert "%0Ato do: if the file was edited" in error
    assert warning == (
        "::warning title=spdexport%2C m.onnx%3A device (cuda) inconclusive::100%25 missing:%0A::set-env::x"
    )


def test_a_pass_says_nothing():
    assert commands(verification()) == []
    assert commands(conversion()) == []
    assert summary(conversion()) == ""


def test_the_summary():
    text = summary(FAILED)
    assert text.startswith("### ❌ spdexport: not equivalent: what the file computes differs by more than rounding\n")
    assert "<code>m.onnx</code>" in text
    assert "| capture | ✅ pass | 0.5 | 6 inputs compared |" in text
    assert "| weights | ❌ fail | 2.1e+05 | first diverges at conv2: " in text
    assert "1 of 2 layers failed" in text
    assert "Approximation, intended: masks, ranks and dropped deltas change the outputs by 25.0% in norm." in text
    passed = summary(verification(edge("rewrite"), NO_DEVICE))
    assert passed.startswith("### ✅ spdexport: equivalent: the file computes the intended model, to rounding\n")


def test_the_summary_takes_no_markup_from_names():
    name = "a|b`c<img src=x>*d*_e_[f](g)@all#1\n| x |"
    text = summary(verification(layers=(check(name, Status.FAIL),)))
    (row,) = [line for line in text.splitlines() if "src=x" in line]
    content = row.removeprefix("| <code>").partition("</code>")[0]
    assert not set(content) & set("<>|`*_[]@\n")
    assert row.count("|") == 3


def test_the_summary_does_not_grow_without_end():
    many = tuple(check(f"conv{i}", Status.FAIL) for i in range(1000))
    text = summary(verification(layers=many))
    assert text.count("<code>conv") == LAYERS_SHOWN
    assert "and 950 more" in text


@pytest.mark.parametrize("there", [True, False])
def test_tell(monkeypatch, tmp_path, capsys, there):
    if there:
        (tmp_path / "summary.md").write_text("before\n")
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    tell(FAILED)
    assert capsys.readouterr().out.splitlines() == commands(FAILED)
    if there:
        assert (tmp_path / "summary.md").read_text(encoding="utf-8") == f"before\n{summary(FAILED)}"
    else:
        assert list(tmp_path.iterdir()) == []


def test_a_summary_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "no" / "summary.md"))
    tell(FAILED)
    said = capsys.readouterr()
    *first, last = said.out.splitlines()
    assert first == commands(FAILED)
    assert last.startswith("::warning title=spdexport::The summary of the job cannot be written: No such file")
    assert said.err.startswith("warning: The summary of the job cannot be written: No such file or directory.")
