"""Labs in a real browser: the page computes what ONNX Runtime computes in Python, and nothing leaves the host."""

import json
import time
from pathlib import Path

import lab_files
import numpy as np
import pytest
from browser import DESKTOP, MISSING, PHONE, PROGRAM, Browser
from cli_command import FACTORY, RUN
from lab_pages import LabPage, Served
from safetensors.numpy import load_file

from spdexport import convert, lab
from spdexport.ort.sessions import SessionSettings, open_session

pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason=MISSING),
    pytest.mark.skipif(lab_files.RUNTIME is None, reason=lab_files.NO_RUNTIME),
    pytest.mark.slow,
]

LAYERS = {"conv1": 24, "conv2": 64, "conv3": 64, "fc1": 64, "fc2": 32}
NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
EVIL = "<img src=x onerror=\"document.title='owned'\">"

GATED = {"gates": "exact", "gate_outputs": True, "activation_outputs": True, "runtime_masks": ["all"]}
FILES = {
    "exact": GATED,
    "exact-hard": {**GATED, "gate_threshold": 0.2},
    "local": {**GATED, "gates": "local", "gate_threshold": 0.1},
    "local-hard": {**GATED, "gates": "local", "gate_threshold": 0.3},
    "masked": {"runtime_masks": ["all"], "delta": "keep", "activation_outputs": True},
    "routed": {
        "runtime_masks": ["all"], "delta": "keep", "runtime_masks_per_location": True, "runtime_delta_masks": True,
        "runtime_routing": True,
    },
    "dense": {"form": "dense"},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The digits run as files of every kind, with a lab beside each."""
    folder = tmp_path_factory.mktemp("labs")
    images = load_file(lab_files.ROOT / "tests/data/spd_digits_golden.safetensors")["input"][:4]
    np.savez(folder / "x.npz", x=images)
    for name, options in FILES.items():
        convert(RUN, folder / f"{name}.onnx", factory=FACTORY, inputs=folder / "x.npz", verify=False, **options)
    np.savez(folder / "labelled.npz", x=images, labels=np.arange(4))
    (folder / "names.txt").write_text("\n".join(NAMES))
    beside = {"local": {"dense": folder / "dense.onnx", "classes": folder / "names.txt"}}
    for name in ("exact", "local", "masked", "routed"):
        lab(
            folder / f"{name}.onnx", folder / name, data=folder / "labelled.npz", runtime=lab_files.RUNTIME,
            **beside.get(name, {}),
        )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with Served(folder) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with Browser() as made:
        yield made


@pytest.fixture
def page(browser, server):
    def opened(name, link="", **options):
        return LabPage(browser, f"{server.address}/{name}").open(link, **options)

    yield opened
    assert browser.errors == []
    assert all(request.startswith((server.address, "data:,")) for request in browser.requests)


@pytest.fixture
def right(folder):
    """What ONNX Runtime computes in Python, of a file of the folder."""

    def computed(name, sample=0, output="output", **masks):
        session = open_session(folder / f"{name}.onnx", SessionSettings(optimized=True))
        with np.load(folder / "x.npz") as archive:
            feeds = {"x": archive["x"][sample : sample + 1]}
        feeds |= {key: np.asarray(value, np.float32) for key, value in masks.items()}
        return session.run(feeds, [output])[output][0]

    return computed


def without(layer, *components):
    mask = np.ones((1, LAYERS[layer]))
    mask[0, list(components)] = 0
    return {f"mask/{layer}": mask}


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["exact", "local", "masked"])
def test_every_sample_as_the_file_is(page, right, name):
    shown = page(name)
    for sample in range(4):
        shown.choose(sample)
        close(shown.numbers(), right(name, sample))
    close(page(name, "sample=2").numbers(), right(name, 2))


def test_beside_stands_the_dense_model(page, right):
    for name in ("local", "masked", "routed"):  # of a file, of all components with deltas, of the original layers
        close(page(name, "sample=1").numbers("dense"), right("dense", 1))
    close(page("local").numbers("dense"), right("dense"))
    # With gates and without deltas it is neither, which is said: all components on, and no gates.
    shown = page("exact", "&".join(f"gate.{layer}=off" for layer in LAYERS))
    close(shown.numbers("dense"), shown.numbers())
    assert "this is not the dense model" in shown.run("document.getElementById('foot').textContent")


@pytest.mark.parametrize("name", ["exact", "local", "masked"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_component_that_is_switched_off(page, right, name, layer):
    shown = page(name, "sample=3")
    importance = right(name, 3, f"ci/{layer}").reshape(-1, LAYERS[layer]).mean(0) if name != "masked" else [1]
    component = int(np.argmax(importance))
    before = shown.numbers()
    shown.do(f"{shown.cell(layer, component)}.click()")
    after = shown.numbers()
    close(after, right(name, 3, **without(layer, component)))
    assert np.abs(np.subtract(after, before)).max() > 1e-3
    assert component not in shown.pressed(layer)
    shown.do(f"{shown.cell(layer, component)}.click()")
    close(shown.numbers(), before)


def test_the_class_changes_where_it_does_in_python(page, right):
    before = int(np.argmax(right("local", 1)))
    classes = (int(np.argmax(right("local", 1, **without("conv1", *range(number))))) for number in range(25))
    gone, after = next((range(number), top) for number, top in enumerate(classes) if top != before)
    shown = page("local", "sample=1")
    dense = NAMES[int(np.argmax(right("dense", 1)))]
    top = "document.querySelector('#verdict strong').textContent"
    assert shown.run(top) == (
        f"{NAMES[before]}, as dense" if NAMES[before] == dense else f"{NAMES[before]}; dense: {dense}"
    )
    for component in gone:
        shown.do(f"{shown.cell('conv1', component)}.click()")
    assert shown.run(top) == (
        f"{NAMES[after]}, as dense" if NAMES[after] == dense else f"{NAMES[after]}; dense: {dense}"
    )
    assert shown.run("document.querySelector('#bars .top').textContent").startswith(NAMES[after])


@pytest.mark.parametrize(("name", "threshold"), [("exact", 0.2), ("local", 0.3)])
def test_thresholds_are_those_of_a_file_made_with_them(page, right, name, threshold):
    shown = page(name, "sample=2")
    for layer in LAYERS:
        shown.set(f"{shown.layer(layer)}.querySelector('select')", "hard")
        shown.set(f"{shown.layer(layer)}.querySelector('input[type=number]')", str(threshold))
    close(shown.numbers(), right(f"{name}-hard", 2))
    assert f"gate.conv1={threshold}" in shown.run("location.hash")
    link = shown.run("location.hash")[1:]
    close(page(name, link).numbers(), right(f"{name}-hard", 2))
    close(shown.press("as the file is").numbers(), right(name, 2))


def test_one_threshold_for_all_layers_and_none(page, right):
    shown = page("exact")
    shown.run("document.querySelector('[aria-label=\"threshold of all gates\"]').value = '0.2'")
    close(shown.press("1 above").numbers(), right("exact-hard"))
    close(shown.press("importances").numbers(), right("exact"))
    close(shown.press("none").numbers(), shown.numbers("dense"))


def test_importances_and_what_is_closed_are_those_of_the_file(page, right):
    shown = page("exact", "sample=1")
    for layer, components in LAYERS.items():
        peak = right("exact", 1, f"ci/{layer}").reshape(-1, components).max(0)
        labels = shown.run(
            f"[...{shown.layer(layer)}.querySelectorAll('.cell')].map(x => x.getAttribute('aria-label'))"
        )
        told = [float(label.split("importance ")[1].split(",")[0]) for label in labels]
        np.testing.assert_allclose(told, peak, rtol=6e-3, atol=1e-6)
        assert ["closed" in label for label in labels] == list(peak <= 0)
        heights = shown.run(
            f"[...{shown.layer(layer)}.querySelectorAll('.mark-importance')].map(x => parseFloat(x.style.height))"
        )
        assert peak.max() > 0
        np.testing.assert_allclose(heights, 100 * peak, atol=1e-2)


def test_only_what_is_important_stays(page, right):
    shown = page("exact", "sample=1").press("only importance above")
    masks = {}
    for layer, components in LAYERS.items():
        kept = np.flatnonzero(right("exact", 1, f"ci/{layer}").reshape(-1, components).max(0) > 0.1)
        assert shown.pressed(layer) == list(kept)
        masks |= without(layer, *(set(range(components)) - set(kept.tolist())))
    close(shown.numbers(), right("exact", 1, **masks))


def test_deltas_and_original_layers_are_switched(page, right):
    shown = page("routed")
    boxes = f"{shown.layer('conv2')}.querySelectorAll('input[type=checkbox]')"
    locations = np.ones((1, 8, 8))
    close(shown.do(f"{boxes}[0].click()").numbers(), right("routed", **{"delta_mask/conv2": 0 * locations}))
    shown.press("all off", shown.layer("conv2"))
    masks = {"mask/conv2": np.zeros((1, 8, 8, 64)), "delta_mask/conv2": 0 * locations}
    close(shown.numbers(), right("routed", **masks))
    shown.do(f"{boxes}[1].click()")
    close(shown.numbers(), right("routed", **masks, **{"routing/conv2": 0 * locations}))
    close(page("routed", "off.conv2=0-63&delta.conv2=off&original.conv2=on").numbers(), shown.numbers())


def test_a_link_holds_all_and_what_it_cannot_say_is_told(page, browser):
    link = "sample=2&softmax=1&off.conv1=0-4%2C7&gate.fc1=0.5"
    shown = page("exact", link)
    assert shown.pressed("conv1") == [5, 6, *range(8, 24)]
    assert np.isclose(sum(shown.numbers()), 1)
    assert shown.run("location.hash") == f"#{link}"
    assert shown.run("document.getElementById('controls').querySelector('a').getAttribute('href')") == f"#{link}"
    before = shown.numbers()
    shown.do("location.hash = ''; new Promise(done => addEventListener('hashchange', () => done()))")
    assert shown.pressed("conv1") == list(range(24))
    assert shown.numbers() != before
    wrong = page("exact", "sample=99&off.none=1&off.conv1=24&off.conv2=x&gate.conv1=&delta.conv1=off&what=1&off.fc1=3")
    assert wrong.pressed("fc1") == [*range(3), *range(4, 64)]
    told = wrong.run("document.getElementById('controls').textContent")
    for part in ("sample=99", "off.none=1", "off.conv1=24", "off.conv2=x", "gate.conv1="):
        assert part in told


def test_saved_masks_are_those_that_convert_reads(page, browser, right, folder, tmp_path):
    shown = page("masked", "sample=1&off.conv1=0-4,16&off.fc2=31")
    browser.send("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    shown.run("[...document.querySelectorAll('button')].find(x => x.textContent === 'save masks').click()")
    path = tmp_path / "masks.json"
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    masks = json.loads(path.read_text())
    assert {name: len(mask) for name, mask in masks.items()} == LAYERS
    assert [i for i, kept in enumerate(masks["conv1"]) if not kept] == [0, 1, 2, 3, 4, 16]
    fixed = tmp_path / "fixed.onnx"
    convert(RUN, fixed, factory=FACTORY, inputs=folder / "x.npz", masks=path, delta="keep", verify=False)
    with np.load(folder / "x.npz") as archive:
        outputs = open_session(fixed, SessionSettings()).run({"x": archive["x"][1:2]})
    close(shown.numbers(), outputs["output"][0])


def test_components_are_reached_and_switched_by_the_keyboard(page, browser):
    shown = page("masked")
    focused = "[document.activeElement.closest('.layer')?.dataset.layer, document.activeElement.dataset.component]"
    shown.run(f"{shown.cell('conv1', 0)}.focus()")
    for key, code, at in (("ArrowRight", 39, "1"), ("ArrowRight", 39, "2"), ("ArrowLeft", 37, "1"), ("End", 35, "23")):
        browser.press(key, code)
        assert shown.run(focused) == ["conv1", at]
    browser.press(" ", 32, " ")
    assert shown.settled().pressed("conv1") == list(range(23))
    stops = f"[...{shown.layer('conv1')}.querySelectorAll('.cell')].filter(x => x.tabIndex === 0).length"
    assert shown.run(stops) == 1
    browser.press("Tab", 9)
    assert shown.run("document.activeElement.closest('.layer').dataset.layer") == "conv2"
    shown.run("document.querySelector('#samples input').focus()")
    browser.press("ArrowRight", 39)
    assert shown.settled().run("location.hash").startswith("#sample=1")


def test_the_filter_shows_components_by_name_and_by_switch(page):
    shown = page("masked", "off.conv2=7,12")
    seen = "document.querySelectorAll('.layer:not([hidden]) .cell:not([hidden])').length"
    search = "document.querySelector('input[type=search]')"

    def sought(text):
        shown.run(f"{search}.value = {text!r}; {search}.dispatchEvent(new Event('input'))")
        return shown.run(seen)

    assert sought("conv2") == 64
    assert sought("conv2:6") == 5  # 6, 60 to 63
    assert sought("nothing") == 0
    assert sought("") == 248
    shown.run(
        "const k = document.querySelector('#controls select'); k.value = 'off'; k.dispatchEvent(new Event('change'))"
    )
    assert shown.run(seen) == 2
    shown.press("all on", "document.getElementById('controls')")
    assert shown.pressed("conv2") == list(range(64))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["exact", "local", "routed"])
def test_the_page_fits_the_window(page, name, size, dark):
    shown = page(name, "off.conv1=1", size=size, dark=dark)
    assert shown.run("document.documentElement.scrollWidth <= innerWidth")
    colour = shown.run("getComputedStyle(document.body).backgroundColor")
    assert (max(int(part) for part in colour.strip("rgb()").split(",")) < 64) == dark
    # All that is pressed has a size that a finger meets.
    sizes = "[...document.querySelectorAll('.layer .cell, .action')].map(x => x.getBoundingClientRect().height)"
    assert min(shown.run(sizes)) >= 24


def test_a_run_is_timed(page):
    shown = page("masked")
    shown.run("[...document.querySelectorAll('button')].find(x => x.textContent.startsWith('time')).click()")
    end = time.monotonic() + 30
    while not (told := shown.run("document.getElementById('timed').textContent")) and time.monotonic() < end:
        time.sleep(0.05)
    assert float(told.removeprefix("median ").removesuffix(" ms")) >= 0


# Files of other kinds, and of nobody in particular


@pytest.fixture
def one(browser, tmp_path):
    """A lab of one file, shown."""
    opened = []

    def shown(file, link="", *, state="ready", **options):
        lab(file, tmp_path / "lab", runtime=lab_files.RUNTIME, **options)
        server = Served(tmp_path / "lab").__enter__()
        opened.append(server)
        return LabPage(browser, server.address).open(link, state=state)

    yield shown
    for server in opened:
        server.__exit__()


@pytest.mark.parametrize("layer", [EVIL, "__proto__", "constructor", "a.b=c&d#e", "\u202eevil"])
def test_names_are_text_and_nothing_else(one, browser, tmp_path, layer):
    path = lab_files.small(tmp_path / "m.onnx", layer=layer)
    (tmp_path / "names.json").write_text(json.dumps([EVIL, "</script>"]))
    lab_files.numbers(tmp_path / "x.npz")
    shown = one(path, data=tmp_path / "x.npz", classes=tmp_path / "names.json")
    before = shown.numbers()
    shown.do("document.querySelectorAll('.cell')[1].click()")
    assert shown.numbers() != before
    link = shown.run("location.hash")[1:]
    after = shown.numbers()
    assert LabPage(browser, shown.address).open(link).numbers() == after
    assert browser.errors == []
    assert shown.run("document.title") == "m.onnx: lab"
    assert shown.run("document.querySelectorAll('main img, main script').length") == 0
    assert shown.run("document.querySelector('.layer').dataset.layer") == layer
    assert EVIL in shown.run("document.getElementById('bars').textContent")
    assert "\u202e" not in shown.run("document.querySelector('.layer h3').textContent")


def test_an_input_may_be_called_like_something_that_objects_have(one, tmp_path):
    path = lab_files.small(tmp_path / "m.onnx", source="__proto__")
    lab_files.numbers(tmp_path / "x.npz")
    assert len(one(path, data=tmp_path / "x.npz").numbers()) == 2


KINDS = {"conv_mlp": "CNN", "vector_mlp": "MLP", "shared_seq": "MLP", "global_tf": "MLP", "embed": "Emb"}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_of_every_kind(one, tmp_path, kind):
    data = lab_files.KINDS / f"{kind}.x.npz"
    factory = f"{lab_files.KINDS / 'targets.py'}:{KINDS[kind]}"
    path = tmp_path / "m.onnx"
    convert(lab_files.KINDS / kind, path, factory=factory, inputs=data, verify=False, **GATED)
    shown = one(path, data=data)
    session = open_session(path, SessionSettings())
    with np.load(data) as archive:
        x = archive[archive.files[0]]
    feeds = {session.inputs[0].name: x[1:2]}
    shown.choose(1)
    right = session.run(feeds, ["output"])["output"][0]
    close(shown.numbers(), right if right.ndim == 1 else right[0])
    if right.ndim > 1:  # an answer for each token
        shown.set("document.querySelector('#outputs input[type=number]')", "3")
        close(shown.numbers(), right[3])
        assert "position=3" in shown.run("location.hash")
    first = shown.run("document.querySelector('.layer').dataset.layer")
    shown.do("document.querySelectorAll('.cell')[1].click()")
    port = next(port for port in session.inputs if port.name == f"mask/{first}")
    mask = np.ones((1, *port.shape[1:]), np.float32)
    mask[..., 1] = 0
    right = session.run({**feeds, port.name: mask}, ["output"])["output"][0]
    close(shown.numbers(), right if right.ndim == 1 else right[3])


def test_a_dense_network_factorized_by_its_svd(one, folder, tmp_path):
    path = tmp_path / "svd.onnx"
    convert(folder / "dense.onnx", path, runtime_masks=["all"], activation_outputs=True, verify=False)
    shown = one(path, data=folder / "x.npz", dense=folder / "dense.onnx")
    close(shown.numbers(), shown.numbers("dense"))
    mask = "document.querySelectorAll('.layer')[3].querySelectorAll('.cell')[0]"
    assert np.abs(np.subtract(shown.do(f"{mask}.click()").numbers(), shown.numbers("dense"))).max() > 0.1


def test_a_model_that_the_runtime_refuses_is_told(one, browser, tmp_path):
    path = lab_files.small(tmp_path / "m.onnx")
    lab_files.numbers(tmp_path / "x.npz")
    shown = one(path, data=tmp_path / "x.npz")
    (tmp_path / "lab" / "model.onnx").write_bytes(b"no model")
    browser.open(f"{shown.address}/index.html")
    end = time.monotonic() + 60
    while browser.evaluate("document.body.dataset.state") != "failed" and time.monotonic() < end:
        time.sleep(0.05)
    said = browser.evaluate("document.getElementById('status').textContent")
    assert said.startswith("this does not work")
    assert "protobuf" in said.lower()
    (tmp_path / "lab" / "model.onnx").unlink()
    browser.open(f"{shown.address}/index.html")
    while browser.evaluate("document.body.dataset.state") != "failed" and time.monotonic() < end:
        time.sleep(0.05)
    assert "model.onnx cannot be loaded: 404" in browser.evaluate("document.getElementById('status').textContent")


def test_a_page_opened_as_a_file_says_what_it_needs(browser, folder):
    browser.open(folder / "exact" / "index.html")
    assert "python -m http.server" in browser.evaluate("document.getElementById('status').textContent")
    assert not browser.evaluate("document.getElementById('status').hidden")


def test_the_server_of_the_command_is_enough(folder):
    """No header is needed that Python's server does not send; the types of the files are right by their names."""
    import mimetypes

    assert mimetypes.guess_type("lab.mjs")[0] == "text/javascript"
    assert mimetypes.guess_type("x.wasm")[0] == "application/wasm"
    assert {path.suffix for path in Path(folder / "exact").rglob("*") if path.is_file()} == {
        ".html", ".mjs", ".json", ".onnx", ".bin", ".wasm",
    }  # fmt: skip
