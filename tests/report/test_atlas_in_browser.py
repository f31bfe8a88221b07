"""The page of an atlas in a real browser: it loads without a network, sorts, filters, and can be read everywhere."""

from dataclasses import replace

import numpy as np
import pytest
from browser import DESKTOP, MISSING, PHONE, PROGRAM, Browser
from test_in_browser import contrast, luminance, style

from spdexport.ablation.effects import Effect
from spdexport.atlases.pictures import as_pixels, places_picture, thumbnail, weights_picture
from spdexport.atlases.result import Atlas, AtlasLayer, Box, Component, Top
from spdexport.report.atlas_page import to_page

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=MISSING)

RANDOM = np.random.default_rng(0)
LONG = "encoder.stages.0.blocks.11.attention.output.dense"
EVIL = "<script>document.title='owned'</script>&\"'"


BOX = Box(top=0.25, left=0.5, bottom=0.75, right=1.0)


def component(index, importance, firing, kl, label=None):
    effect = None if kl is None else Effect(change=kl, relative=kl, largest=kl, top_changed=0.1, kl=kl)
    tops = tuple(
        Top(sample=s, place=(3, 4), activation=1.5 - s, importance=0.5, box=BOX) for s in range(4 if firing else 0)
    )
    return Component(
        index=index, label=label, mean_importance=importance, peak_importance=1.0, mean_activation=0.3,
        firing=firing, most=firing, effect=effect, outputs=((12, 0.75), (3, -0.5)),
        reads=weights_picture(RANDOM.normal(size=(16, 3, 3))),
        fires=places_picture(RANDOM.random((16, 16))), tops=tops,
    )  # fmt: skip


def layer(name, *components):
    alive = sum(one.is_alive for one in components)
    return AtlasLayer(
        name=name, components=components, number=len(components) + 3, alive=alive, reads="patches", places=(16, 16),
        field=(9, 9), has_importances=True,
    )  # fmt: skip


ATLAS = Atlas(
    name="run", samples=4, threshold=0.1, output="output", baseline="gates", effect_samples=4, outputs=(), size=0,
    thumbnails={s: thumbnail(as_pixels(RANDOM.random((3, 16, 16)), np.zeros(3), np.ones(3)), 16) for s in range(4)},
    image=(16, 16), notes=("a note",), hashes={"source": "ab" * 32}, seed=0, versions={"numpy": "2"},
    layers=(
        layer(
            "conv1", component(0, 0.9, 0.01, 0.2), component(7, 0.5, 0.5, 0.3, "curved strokes, " * 9),
            component(11, 0.1, 0.9, 0.1),
        ),
        layer(LONG, *(component(i, 0.5 - i / 100, i / 40, None if i > 20 else i) for i in range(30))),
        layer(EVIL, component(2, 0.0, 0.0, None)),
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with Browser() as made:
        yield made


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("atlas") / "atlas.html"
    path.write_text(to_page(ATLAS), encoding="utf-8")
    return path


def shown(browser, anchor="layer/conv1"):
    cards = f"document.getElementById('{anchor}').querySelectorAll('.card:not([hidden])')"
    return browser.evaluate(f"[...{cards}].map(x => Number(x.dataset.index))")


def pick(browser, order):
    select = "document.querySelector('[name=order]')"
    browser.evaluate(f"{select}.value = '{order}'; {select}.dispatchEvent(new Event('change'))")


def told(browser):
    return browser.evaluate("document.querySelector('.controls output').textContent")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_fits_the_window_and_can_be_read(browser, page, size, dark):
    browser.open(page, size, dark=dark)
    assert browser.errors == []
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert (
        browser.evaluate("performance.getEntriesByType('resource').filter(x => !x.name.startsWith('data:')).length")
        == 0
    )
    assert browser.evaluate("document.title") == "run: atlas"
    background = style(browser, "body", "backgroundColor")
    assert (luminance(background) < 0.2) == dark
    for selector in ("body", ".soft", ".card a", ".card dd", "figcaption"):
        assert contrast(style(browser, selector, "color"), background) > 4.5, selector


def test_pictures_are_there_and_are_not_smoothed(browser, page):
    browser.open(page)
    wrong = "[...document.images].filter(x => !x.complete || x.naturalWidth == 0).length"
    browser.evaluate("Promise.all([...document.images].map(x => x.decode()))")
    assert browser.evaluate(wrong) == 0
    assert browser.evaluate("document.images.length") == 2 * 34
    assert style(browser, "img.crisp", "imageRendering") == "pixelated"
    assert style(browser, ".thumb", "backgroundImage").startswith('url("data:image/png;base64,')


def test_what_a_place_reads_is_marked(browser, page):
    browser.open(page)
    found = browser.evaluate(
        "(t => { const a = t.getBoundingClientRect(), b = t.firstElementChild.getBoundingClientRect();"
        "return [(b.top - a.top) / a.height, (b.left - a.left) / a.width, (b.bottom - a.top) / a.height,"
        "(b.right - a.left) / a.width] })(document.querySelector('.thumb'))"
    )
    np.testing.assert_allclose(found, [0.25, 0.5, 0.75, 1.0], atol=0.01)
    assert browser.evaluate("document.querySelector('.thumb').title") == (
        "sample 0, place 3, 4: activation 1.5, importance 0.5"
    )


def test_components_are_sorted(browser, page):
    browser.open(page)
    assert shown(browser) == [0, 7, 11]
    pick(browser, "firing")
    assert shown(browser) == [11, 7, 0]
    pick(browser, "effect")
    assert shown(browser) == [7, 0, 11]
    assert shown(browser, f"layer/{LONG}")[:3] == [20, 19, 18]
    assert shown(browser, f"layer/{LONG}")[-1] == 29  # what was not measured is last
    pick(browser, "index")
    assert shown(browser) == [0, 7, 11]
    assert shown(browser, f"layer/{LONG}") == list(range(30))


def test_components_are_filtered_by_the_keyboard(browser, page):
    browser.open(page)
    assert told(browser) == "34 of 34"
    browser.evaluate("document.querySelector('[name=filter]').focus()")
    for letter in "conv1:7":
        browser.press(letter, ord(letter.upper()), letter)
    assert told(browser) == "1 of 34"
    assert shown(browser) == [7]
    hidden = "[...document.querySelectorAll('section.layer')].filter(x => x.hidden).length"
    assert browser.evaluate(hidden) == 2
    assert browser.evaluate("[...document.querySelectorAll('nav li')].filter(x => x.hidden).length") == 2
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.name") == "alive"


def test_labels_are_shown_and_found(browser, page):
    browser.open(page, PHONE)
    assert browser.evaluate("document.querySelectorAll('.card .label').length") == 1
    filter_ = "document.querySelector('[name=filter]')"
    browser.evaluate(f"{filter_}.value = 'strokes'; {filter_}.dispatchEvent(new Event('input'))")
    assert told(browser) == "1 of 34"
    assert shown(browser) == [7]
    assert browser.evaluate("document.querySelector('.card .label').getBoundingClientRect().right") <= PHONE[0]


def test_only_those_alive_are_shown_where_that_is_wanted(browser, page):
    browser.open(page)
    browser.evaluate("document.querySelector('[name=alive]').click()")
    assert told(browser) == "32 of 34"
    assert shown(browser, f"layer/{LONG}") == list(range(1, 30))
    assert browser.evaluate("document.querySelectorAll('.card.dead').length") == 2


def test_every_component_has_an_anchor_that_shows_it(browser, page):
    browser.open(page)
    broken = (
        "[...document.querySelectorAll('a[href^=\"#\"]')].filter(x => !document.getElementById("
        "decodeURIComponent(x.getAttribute('href').slice(1))) ).map(x => x.href)"
    )
    assert browser.evaluate(broken) == []
    browser.evaluate("document.querySelector('[name=alive]').click()")
    browser.evaluate(f"location.hash = encodeURIComponent('{LONG}:0')")
    browser.evaluate("new Promise(done => setTimeout(done, 300))")
    assert browser.evaluate(f"!document.getElementById('{LONG}:0').hidden")
    top = browser.evaluate(f"document.getElementById('{LONG}:0').getBoundingClientRect().top")
    assert 0 <= top < 900
    assert browser.evaluate("document.querySelector('.card:target') !== null")


def test_names_are_only_names(browser, page):
    browser.open(page)
    assert browser.evaluate("document.title") == "run: atlas"
    assert EVIL in browser.evaluate("[...document.querySelectorAll('h2')].map(x => x.textContent).join()")


def test_the_page_is_printed_without_its_controls(browser, page):
    browser.open(page, print_=True)
    for selector in (".controls", "nav"):
        assert style(browser, selector, "display") == "none"
    assert style(browser, ".card", "contentVisibility") == "visible"
    browser.open(page)
    assert browser.pdf().startswith(b"%PDF")


def test_a_page_without_images_has_numbers(browser, tmp_path):
    path = tmp_path / "a.html"
    path.write_text(to_page(replace(ATLAS, thumbnails={}, image=None)), encoding="utf-8")
    browser.open(path, PHONE)
    assert browser.errors == []
    assert browser.evaluate("document.querySelectorAll('.thumb').length") == 0
    assert browser.evaluate("document.querySelector('.sample').textContent.trim()") == "0 1.5"
