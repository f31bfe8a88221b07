import math
import re
from html.parser import HTMLParser

import pytest
from results import WEIGHTS_FAIL, check, conversion, edge, inspection, layer, verification

from spdexport.report.html_report import to_html
from spdexport.verification.result import Status

NASTY = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The tags of a page, each with its attributes, and its text."""

    EMPTY = frozenset(("meta",))

    def __init__(self, source):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += f" {' '.join(data.split())}"


def failed():
    return conversion(
        layer("conv1"),
        layer(NASTY),
        found=verification(
            edge("capture"),
            WEIGHTS_FAIL,
            edge("device", Status.INCONCLUSIVE, provider="cuda", reason=f"missing {NASTY}"),
            layers=(check("conv1"), check(NASTY, Status.FAIL, weights_ratio=math.inf)),
            notes=(NASTY,),
            artifacts={NASTY: "abc"},
        ),
        skipped=[(NASTY, "embedding", NASTY)],
        notes=[NASTY],
    )


RESULTS = [
    failed(),
    conversion(layer()),
    conversion(layer(), found=verification()),
    verification(),
    inspection(layer()),
]


@pytest.mark.parametrize("result", RESULTS, ids=["failed", "not verified", "pass", "verify", "inspect"])
def test_a_whole_page_that_needs_nothing_else(result):
    source = to_html(result)
    page = Page(source)
    assert page.open == []
    assert source.startswith("<!DOCTYPE html>")
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base", "form"}
    for _, attributes in page.tags:
        assert not set(attributes) & {"src", "href", "xlink:href", "action", "onclick", "onload"}
    assert not re.search(r"https?:|url\(|@import", source)
    assert "default-src 'none'" in source


def test_what_it_shows():
    text = Page(to_html(failed())).text
    assert "not equivalent: what the file computes differs by more than rounding" in text
    assert "weights: the file does not hold the weights and operators of the intended model." in text
    assert "first diverges at conv2" in text
    assert "Approximation, intended" in text
    assert "outputs differ by 25.0% in norm, at most 1.5" in text
    assert "above this line (8) a layer fails" in text
    assert "the top class is the same for 93.8% of the samples" in text
    assert "torch 2.13.0, onnxruntime-gpu 1.31.1" in text
    assert "SHA-256 5e" in text
    assert "seed 3" in text


def test_names_that_nobody_vouches_for_are_text():
    source = to_html(failed())
    assert NASTY not in source
    assert source.count("&lt;script&gt;") > 8
    assert Page(source).text.count(NASTY) > 8


def test_a_name_cannot_leave_its_attribute():
    page = Page(to_html(verification(layers=(check('a" onclick="x'),))))
    assert all("onclick" not in attributes for _, attributes in page.tags)


def test_control_characters_are_replaced():
    assert "\x1b" not in to_html(verification(layers=(check("a\x1b[31m"),)))


def test_light_dark_and_print():
    source = to_html(verification())
    assert "prefers-color-scheme: dark" in source
    assert "@media print" in source


def test_the_same_result_gives_the_same_page():
    assert to_html(failed()) == to_html(failed())
