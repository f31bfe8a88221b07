"""Reports in a real browser: light and dark, on a phone, with the keyboard, on paper; and no script but their own."""

import re

import pytest
from browser import DESKTOP, MISSING, PHONE, PROGRAM, Browser
from results import WEIGHTS_FAIL, check, conversion, dear, edge, layer, verification

from spdexport.report.html_report import to_html
from spdexport.report.unfinished import NOT_OVER, as_html
from spdexport.verification.result import Approximation, Status

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)

LONG = "encoder.stages.0.blocks.11.attention.output.dense"
EXCEEDED = Approximation(
    max_abs=1.5, relative_l2=0.25, top1_agreement=0.9, top1_before=0.978, top1_after=0.913, exceeded=("it is too much",)
)
PAGES = {
    "failed": conversion(
        layer("conv1"), dear(LONG, macs_before=5_000, macs_after=21_000), layer("conv2", macs_after=9_000),
        found=verification(edge("capture"), WEIGHTS_FAIL, layers=(
            check("conv1"), check(LONG, Status.FAIL, weights_ratio=float("inf")), check("conv2", weights_ratio=None))),
    ),
    "exceeded": conversion(layer(), found=verification(approximation=EXCEEDED, layers=(check(),))),
}  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with Browser() as made:
        yield made


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, result in PAGES.items():
        (folder / f"{name}.html").write_text(to_html(result), encoding="utf-8")
    (folder / "unfinished.html").write_text(as_html(NOT_OVER), encoding="utf-8")
    return folder


def luminance(colour):
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(w * x for w, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def style(browser, selector, name):
    return browser.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{name}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", [*PAGES, "unfinished"])
def test_pages_fit_the_window_and_can_be_read(browser, pages, name, size, dark):
    browser.open(pages / f"{name}.html", size, dark=dark)
    assert browser.errors == []
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page = style(browser, "body", "backgroundColor")
    assert (luminance(page) < 0.2) == dark
    panel = style(browser, ".verdict", "backgroundColor")
    assert contrast(style(browser, "body", "color"), page) > 7
    assert contrast(style(browser, ".soft", "color"), page) > 4.5
    assert contrast(style(browser, ".verdict strong", "color"), panel) > 4.5


def test_what_has_failed_is_red(browser, pages):
    for name in PAGES:
        browser.open(pages / f"{name}.html")
        red, green, blue = map(int, re.findall(r"\d+", style(browser, ".verdict strong", "color")))
        assert red > 150 > max(green, blue) + 80, name
        assert style(browser, ".verdict", "borderLeftColor") == style(browser, ".verdict strong", "color")


def names(browser):
    shown = "document.querySelectorAll('.sortable tbody tr:not([hidden]) .name')"
    return browser.evaluate(f"[...{shown}].map(x => x.textContent)")


def head(title):
    return f"[...document.querySelectorAll('.sortable th button')].find(x => x.textContent == '{title}')"


def test_layers_are_sorted_by_the_keyboard_and_numbers_as_numbers(browser, pages):
    browser.open(pages / "failed.html")
    assert names(browser) == ["conv1", LONG, "conv2"]
    browser.evaluate(f"{head('now')}.focus()")
    browser.press("Enter", 13, "\r")
    assert names(browser) == ["conv2", LONG, "conv1"]  # 9 k, 21 k, 181 k
    browser.press("Enter", 13, "\r")
    assert names(browser) == ["conv1", LONG, "conv2"]
    assert browser.evaluate("document.querySelectorAll('th[aria-sort]').length") == 1
    for _ in range(4):
        browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.textContent") == "live"
    browser.evaluate(
        "[...document.querySelectorAll('.sortable th button')].find(x => x.textContent == 'weights').click()"
    )
    assert names(browser)[-1] == "conv2"  # what is not known is last, and what is infinite before it
    assert names(browser)[1] == LONG


def test_layers_are_filtered(browser, pages):
    browser.open(pages / "failed.html")
    browser.evaluate("document.querySelector('input[type=search]').focus()")
    for letter in "FAIL enc":
        browser.press(letter, ord(letter.upper()), letter)
    assert names(browser) == [LONG]
    assert browser.evaluate("document.querySelector('output').textContent") == "1 of 3"


def test_every_part_that_scrolls_can_be_reached_by_the_keyboard(browser, pages):
    browser.open(pages / "failed.html", PHONE)
    unreachable = "[...document.querySelectorAll('.wide')].filter(x => x.scrollWidth > x.clientWidth && x.tabIndex < 0)"
    assert browser.evaluate(f"{unreachable}.length") == 0


def test_no_other_script_runs_and_nothing_is_loaded(browser, pages, tmp_path):
    source = (pages / "failed.html").read_text(encoding="utf-8")
    evil = "<script>document.title = 'owned'</script><img src='x.png' onerror=\"document.title = 'owned'\">"
    page = tmp_path / "evil.html"
    page.write_text(source.replace("<main>", f"<main>{evil}"), encoding="utf-8")
    browser.open(page)
    assert browser.evaluate("document.title") != "owned"
    assert any("Content Security Policy" in said for said in browser.errors)
    assert names(browser)


def test_a_page_is_printed_without_its_controls(browser, pages):
    browser.open(pages / "failed.html", print_=True)
    assert style(browser, ".controls", "display") == "none"
    browser.open(pages / "failed.html")
    assert browser.pdf().startswith(b"%PDF")
