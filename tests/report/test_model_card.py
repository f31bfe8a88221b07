import onnx_models
import yaml
from cli_command import spdexport
from results import WEIGHTS_FAIL, conversion, edge, inspection, layer, verification

from spdexport.report.model_card import to_card
from spdexport.report.unfinished import CARD_MARK, NOT_OVER, as_card
from spdexport.verification.result import Approximation

NASTY = "a`b|<img src=x>\n# @all"


def metadata(card):
    start, head, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(head)


def test_a_card_has_metadata_verdict_costs_use_and_provenance(tmp_path):
    model = onnx_models.saved(onnx_models.network(), tmp_path / "m.onnx")
    result = spdexport(
        "convert", model, "-o", tmp_path / "o.onnx", "--provider", "cpu", "--card", tmp_path / "README.md"
    )
    assert result.exit_code == 0, result.output
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert metadata(card) == {
        "library_name": "onnx", "tags": ["onnx", "spdexport", "low-rank", "verification-pass"]
    }  # fmt: skip
    assert CARD_MARK in card
    assert "# o.onnx" in card
    assert "**equivalent: the file computes the intended model, to rounding.**" in card
    assert "- MACs for one sample: " in card
    assert 'session = onnxruntime.InferenceSession("o.onnx")' in card
    assert "spdexport convert" in card
    assert "SHA-256" in card


def test_a_card_of_a_run_that_failed_says_so_in_its_metadata():
    assert "verification-failed" in metadata(to_card(verification(WEIGHTS_FAIL)))["tags"]
    exceeded = Approximation(max_abs=1, relative_l2=0.5, top1_agreement=None, exceeded=("too much",))
    card = to_card(verification(approximation=exceeded))
    assert "verification-failed" in metadata(card)["tags"]
    assert "**A limit that was set is exceeded:** too much." in card
    assert "verification-not-run" in metadata(to_card(conversion(layer())))["tags"]


def test_names_neither_format_nor_mention_nor_become_metadata():
    card = to_card(conversion(layer(NASTY), found=verification(edge("weights"), artifacts={NASTY: NASTY})))
    assert "<img" not in card
    assert "@all" not in card
    assert card.count("\n# ") == 1
    assert all(tag.isascii() for tag in metadata(card)["tags"])


def test_a_card_without_a_result_is_told_from_one_with():
    card = as_card(NOT_OVER)
    assert CARD_MARK in card
    assert "no result" in card
    assert "no result" not in to_card(inspection(layer()))
