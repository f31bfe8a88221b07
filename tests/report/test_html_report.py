import base64
import hashlib
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from results import WEIGHTS_FAIL, check, conversion, edge, inspection, layer, verification

from spdexport.invocation import invoked_with
from spdexport.report.html_report import to_html
from spdexport.verification.result import Approximation, Status

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
        if self.open and self.open[-1] not in ("style", "title", "script"):
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
    assert not {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "base", "form"}
    for _, attributes in page.tags:
        assert not set(attributes) & {"src", "href", "xlink:href", "action", "onclick", "onload"}
    assert not re.search(r"https?:|url\(|@import", source)
    (script,) = re.findall(r"<script>(.*?)</script>", source, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_what_it_shows():
    text = Page(to_html(failed())).text
    assert "not equivalent: what the file computes differs by more than rounding" in text
    assert "weights: the file does not hold the weights and operators of the intended model." in text
    assert "first diverges at conv2" in text
    assert "Approximation, intended" in text
    assert "outputs differ by 25.0% in norm, at most 1.5" in text
    assert "above this line (8) a layer fails" in text
    assert "the top class is the same for 93.8% of the check's 16 samples" in text
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


def test_the_same_result_gives_the_same_page(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert "2023-11-14 22:13 UTC" in to_html(failed())
    assert to_html(failed()) == to_html(failed())


def approximated(**changes):
    fields = {"max_abs": 1.5, "relative_l2": 0.25, "top1_agreement": 0.9, "top1_before": 0.978, "top1_after": 0.913}
    return conversion(layer(), found=verification(approximation=Approximation(**{**fields, **changes})))


def test_an_exceeded_limit_is_red_and_said_first():
    source = to_html(approximated(max_top1_drop=0.01, exceeded=("top-1 drop 0.065, above 0.01",)))
    assert '<section class="verdict fail">' in source
    text = Page(source).text
    assert text.index("A limit that was set is exceeded: top-1 drop 0.065") < text.index("Equivalence, edge by edge")
    assert '<section class="verdict pass">' in to_html(approximated())


def test_what_changed_stands_below_the_verdict(tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(bytes(208_000))
    result = replace(approximated(), outputs=(file,))
    with invoked_with(["convert", "a b.pt"]):
        text = " ".join(Page(to_html(result)).text.split())
    assert "97.8% → 91.3% accuracy on the labels" in text
    assert "295 k → 181 k MACs for one sample, 0.61 times" in text
    assert "215 kB → 208 kB m.onnx" in text
    assert "25.0% change of the outputs, in norm" in text
    assert "command spdexport convert 'a b.pt'" in text
    assert "command" not in Page(to_html(result)).text


def test_costs_are_drawn_and_noise_that_is_none_is_not():
    exact = verification(layers=(check(weights_ratio=0.0, output_ratio=None),))
    source = to_html(conversion(layer(), layer("b", macs_before=100, macs_after=295_000), found=exact))
    assert "above this line" not in source
    assert "bit for bit: there is no noise to draw" in source
    bars = re.findall(r'<span class="(\w+)" style="width: ([\d.]+)%">', source)
    assert bars == [("was", "100.0"), ("now", "61.36"), ("was", "0.03"), ("dearer", "100.0")]
    assert 'class="bars"' not in to_html(conversion(layer(macs_after=295_000)))


def test_numbers_are_sorted_as_numbers():
    found = verification(layers=(check(weights_ratio=math.inf, output_ratio=None),))
    values = re.findall(r'data-value="(.*?)"', to_html(conversion(layer(), found=found)))
    assert values == ["295000", "181000", "8", "4", "1e999", "", "1e-06"]
