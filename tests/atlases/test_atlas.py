"""Atlases of the digits run against SPD's own outputs, `masks`, `ablate` and brute force; and of other sources."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from cli_command import EXAMPLE, FACTORY, RUN, spdexport
from read_png import read_png
from safetensors.numpy import load_file

from spdexport import ablate, atlas, convert, derive_masks
from spdexport.errors import ComponentsError, ExampleInputError, SourceError, UsageError
from spdexport.report.json_report import to_json

SIZES = {"conv1": 24, "conv2": 64, "conv3": 64, "fc1": 64, "fc2": 32}
GOLDEN = load_file(EXAMPLE.parents[1] / "tests/data/spd_digits_golden.safetensors")
KINDS = EXAMPLE.parents[1] / "tests/data/spd_kinds"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The golden images as ``x.npz``; the run with gates as ``gated.onnx``, and without as ``plain.onnx``."""
    folder = tmp_path_factory.mktemp("atlases")
    np.savez(folder / "x.npz", x=GOLDEN["input"])
    shape = {"factory": FACTORY, "input_shape": "2x1x16x16", "verify": False}
    outputs = {"gate_outputs": True, "activation_outputs": True}
    convert(RUN, folder / "gated.onnx", gates="exact", runtime_masks=["all"], **outputs, **shape)
    convert(RUN, folder / "masked.onnx", runtime_masks=["all"], delta="drop", **shape)
    convert(RUN, folder / "plain.onnx", delta="drop", **shape)
    return folder


@pytest.fixture(scope="module")
def drawn(folder):
    """The atlas of the run on the 16 images, all components, with the page."""
    data = folder / "x.npz"
    return atlas(RUN, folder / "atlas.html", data=data, factory=FACTORY, samples=5, effect_samples=16, batch=7)


def by_index(layer):
    return {one.index: one for one in layer.components}


def values_of(layer, name):
    found = by_index(layer)
    return np.array([getattr(found[i], name) for i in range(layer.number)], np.float64)


def importances(layer):
    return GOLDEN[f"ci/{layer}"]


def test_importances_and_firing_are_those_of_spd(drawn):
    assert [layer.name for layer in drawn.layers] == list(SIZES)
    assert drawn.samples == 16
    for layer in drawn.layers:
        right = importances(layer.name)
        rows = right.reshape(-1, SIZES[layer.name]).astype(np.float64)
        assert layer.number == SIZES[layer.name] == len(layer.components)
        np.testing.assert_allclose(values_of(layer, "mean_importance"), rows.mean(0), atol=1e-5)
        np.testing.assert_allclose(values_of(layer, "peak_importance"), rows.max(0), atol=1e-5)
        np.testing.assert_allclose(values_of(layer, "firing"), (rows > 0.1).mean(0), atol=1e-5)
        most = (right > 0.1).mean(0).reshape(-1, SIZES[layer.name]).max(0)
        np.testing.assert_allclose(values_of(layer, "most"), most, atol=1e-5)
        assert layer.alive == ((rows > 0.1).mean(0) > 0).sum()
        order = [one.importance for one in layer.components]
        assert order == sorted(order, reverse=True)


def test_importances_and_firing_are_those_of_masks(drawn, folder):
    derived = derive_masks(RUN, data=folder / "x.npz", factory=FACTORY)
    for layer, right in zip(drawn.layers, derived.layers, strict=True):
        np.testing.assert_allclose(values_of(layer, "mean_importance"), right.importances.mean, atol=1e-5)
        np.testing.assert_allclose(values_of(layer, "peak_importance"), right.importances.peak, atol=1e-5)
        np.testing.assert_allclose(values_of(layer, "firing"), right.importances.frequency, atol=1e-5)


def test_effects_are_those_of_ablate(drawn, folder):
    right = ablate(folder / "gated.onnx", data=folder / "x.npz")
    assert (drawn.output, drawn.baseline, drawn.effect_samples) == (right.output, right.baseline, 16)
    found = {f"{layer.name}:{one.index}": one.effect for layer in drawn.layers for one in layer.components}
    assert len(found) == len(right.found) == 248
    for one in right.found:
        mine = found[one.components.name]
        for name in ("change", "relative", "largest", "kl"):
            np.testing.assert_allclose(getattr(mine, name), getattr(one.effect, name), rtol=1e-4, atol=1e-6)
        assert mine.top_changed == one.effect.top_changed
    assert max(effect.kl for effect in found.values()) > 0.01


def test_top_samples_are_those_of_a_search_of_all_places(drawn, folder):
    session = onnxruntime.InferenceSession(folder / "gated.onnx", providers=["CPUExecutionProvider"])
    names = [f"{kind}/{layer}" for layer in SIZES for kind in ("activation", "ci")]
    values = dict(zip(names, session.run(names, {"x": GOLDEN["input"]}), strict=True))
    for layer in drawn.layers:
        a, m = (values[f"{kind}/{layer.name}"].astype(np.float64) for kind in ("activation", "ci"))
        for one in layer.components:
            strength = np.abs(a * m)[..., one.index].reshape(16, -1)
            best = strength.max(axis=1)
            right = np.sort(best)[::-1][: len(one.tops)]
            got = [abs(top.activation * top.importance) for top in one.tops]
            np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-6)
            assert len(one.tops) == min(5, int((best > 0).sum()))
            for top in one.tops:
                at = (top.sample, *top.place, one.index)
                np.testing.assert_allclose(a[at], top.activation, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(m[at], top.importance, rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(best[top.sample], abs(a[at] * m[at]), rtol=1e-4, atol=1e-6)


def test_outputs_are_the_greatest_rows_of_u_and_pictures_are_v(drawn):
    run = torch.load(RUN / "model_4000.pth", weights_only=True)
    for layer in drawn.layers:
        V, U = (run[f"_components.{layer.name}.{part}"].double().numpy() for part in "VU")
        for one in layer.components:
            order = np.argsort(-np.abs(U[one.index]), kind="stable")[: len(one.outputs)]
            assert [channel for channel, _ in one.outputs] == order.tolist()
            np.testing.assert_allclose([weight for _, weight in one.outputs], U[one.index][order])
            if layer.name == "conv1":
                patch = V[:, one.index].reshape(3, 3)
                strong = np.abs(patch) > 0.1 * np.abs(patch).max()
                pixels = read_png(one.reads.png).astype(int)
                redder = pixels[..., 0] > pixels[..., 2]
                np.testing.assert_array_equal(redder[strong], (patch > 0)[strong])
    assert [layer.reads.partition(";")[0] for layer in drawn.layers] == [
        "one patch of 3x3", "patches of 3x3, of 16 channels", "patches of 3x3, of 32 channels",
        "maps of 4x4, of 32 channels", "64 inputs, row by row",
    ]  # fmt: skip


def test_places_read_what_kernels_and_strides_say(drawn):
    fields = {layer.name: layer.field for layer in drawn.layers}
    assert fields == {"conv1": (3, 3), "conv2": (5, 5), "conv3": (9, 9), "fc1": None, "fc2": None}
    steps = {"conv1": (1, 1), "conv2": (2, 2), "conv3": (4, 4)}  # of places in pixels, and half of the field
    seen = 0
    for layer in drawn.layers[:3]:
        step, half = steps[layer.name]
        for top in (top for one in layer.components for top in one.tops):
            for place, begin, end in zip(
                top.place, (top.box.top, top.box.left), (top.box.bottom, top.box.right), strict=True
            ):
                assert (begin, end) == (max(place * step - half, 0) / 16, min(place * step + half + 1, 16) / 16)
                seen += 1
    assert seen > 500


def test_thumbnails_are_the_samples(drawn):
    shown = {top.sample for layer in drawn.layers for one in layer.components for top in one.tops}
    assert set(drawn.thumbnails) == shown
    low, high = GOLDEN["input"].min(), GOLDEN["input"].max()
    for sample, picture in drawn.thumbnails.items():
        right = np.rint((GOLDEN["input"][sample, 0] - low) / (high - low) * 255)
        np.testing.assert_allclose(read_png(picture.png)[..., 0], right, atol=1)


def test_the_page_is_whole_and_its_size_is_told(drawn, folder):
    page = (folder / "atlas.html").read_text(encoding="utf-8")
    assert drawn.outputs == (folder / "atlas.html",)
    assert drawn.size == len(page.encode()) == (folder / "atlas.html").stat().st_size < 1_000_000
    for layer, number in SIZES.items():
        assert f'href="#layer/{layer}"' in page
        assert all(f'id="{layer}:{i}"' in page for i in range(number))
    assert "http://" not in page
    assert "https://" not in page
    report = to_json(drawn)
    assert [layer["components"] for layer in report["layers"]] == list(SIZES.values())
    assert report["effects"] == {"output": "output", "baseline": "gates", "samples": 16}
    assert set(report["artifacts"]) == {"source", "components", "data x.npz", "atlas.html"}


def test_a_file_of_its_own_run_gives_the_same(drawn, folder):
    again = atlas(folder / "gated.onnx", data=folder / "x.npz", samples=5, effect_samples=0)
    for mine, other in zip(again.layers, drawn.layers, strict=True):
        np.testing.assert_allclose(values_of(mine, "mean_importance"), values_of(other, "mean_importance"), atol=1e-6)
        assert all(one.effect is None for one in mine.components)
        tops = [[(top.sample, top.place) for top in by_index(x)[0].tops] for x in (mine, other)]
        assert tops[0] == tops[1]
    assert again.effect_samples == 0
    assert again.outputs == ()


def test_a_file_without_masks_gets_them_and_computes_what_the_masked_one_does(folder):
    found = atlas(folder / "plain.onnx", data=folder / "x.npz", effect_samples=16)
    right = {one.components.name: one.effect for one in ablate(folder / "masked.onnx", data=folder / "x.npz").found}
    for layer in found.layers:
        assert not layer.has_importances
        for one in layer.components:
            assert one.mean_importance is None
            np.testing.assert_allclose(
                one.effect.change, right[f"{layer.name}:{one.index}"].change, rtol=1e-3, atol=1e-4
            )
    # Without importances, what is above a tenth of the component's own greatest activation fires.
    run = torch.load(RUN / "model_4000.pth", weights_only=True)
    V = run["_components.conv1.V"]
    weight = V.T.reshape(24, 1, 3, 3)
    a = (
        torch.nn.functional.conv2d(torch.tensor(GOLDEN["input"]), weight, padding=1)
        .abs()
        .movedim(1, -1)
        .reshape(-1, 24)
    )
    np.testing.assert_allclose(values_of(found.layers[0], "mean_activation"), a.double().mean(0), rtol=1e-5)
    np.testing.assert_allclose(values_of(found.layers[0], "firing"), (a > 0.1 * a.amax(0)).double().mean(0), atol=1e-3)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A small network of colour images, with a convolution of groups and a transposed one; and data."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Conv2d(8, 8, 3, groups=2),
        torch.nn.ReLU(), torch.nn.ConvTranspose2d(8, 4, 2, stride=2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, 7),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("colours")
    np.savez(folder / "x.npz", x=np.random.default_rng(0).random((12, 3, 20, 20), np.float32))
    return layers.eval(), folder / "x.npz"


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.sampled(1)
def test_components_of_the_svd(colours, static):
    net, data = colours
    found = atlas(net, data=data, form="factorized", dynamic_batch=not static, effect_samples=5)
    assert [(layer.number, layer.places) for layer in found.layers] == [
        (8, (20, 20)), (8, (8, 8)), (4, (16, 16)), (4, ()),
    ]  # fmt: skip
    assert [layer.field for layer in found.layers] == [(5, 5), (10, 10), (10, 10), None]
    assert "in colour" in found.layers[0].reads
    # A component of a group writes to the outputs of its own.
    assert all({c // 4 for c, _ in one.outputs} == {one.index // 4} for one in found.layers[1].components)
    # A batch that cannot change takes whole batches of samples.
    assert found.effect_samples == (4 if static else 5)
    assert found.samples == 12
    x = torch.tensor(np.load(data)["x"])
    _, S, Vt = torch.linalg.svd(net[0].weight.detach().double().reshape(8, -1), full_matrices=False)
    a = torch.nn.functional.conv2d(x.double(), Vt.reshape(8, 3, 5, 5), padding=2).abs().mean((0, 2, 3))
    mine = values_of(found.layers[0], "mean_activation")
    ratio = mine / a.numpy()  # how the singular values are shared between V and U is the form's own business
    np.testing.assert_allclose(ratio / np.sqrt(S.numpy()), (ratio / np.sqrt(S.numpy()))[0], rtol=1e-3)


def test_ranks_of_a_torch_model_and_the_most_important_alone(colours, tmp_path):
    net, data = colours
    found = atlas(net, tmp_path / "a.html", data=data, rank="3", top=2, samples=2, effect_samples=3)
    assert [layer.number for layer in found.layers] == [3, 6, 3, 3]
    assert all(len(layer.components) == 2 and len(one.tops) <= 2 for layer in found.layers for one in layer.components)
    assert "1 component of less importance not shown" in (tmp_path / "a.html").read_text(encoding="utf-8")


@pytest.mark.long
def test_thumbnails_become_smaller_to_keep_the_page_small(colours):
    net, data = colours
    found = atlas(net, data=data, form="factorized", effect_samples=0, max_size=0.009)
    assert {picture.width for picture in found.thumbnails.values()} == {10}
    assert any("thumbnails have 16 pixels" in note for note in found.notes)
    found = atlas(net, data=data, form="factorized", effect_samples=0, max_size=0.001)
    assert any("make the page larger" in note for note in found.notes)


@pytest.mark.parametrize(
    ("run", "factory"),
    [("embed", "Emb"), *(pytest.param(run, "MLP", marks=pytest.mark.long) for run in ("shared_seq", "ident"))],
)
@pytest.mark.sampled(1)
def test_runs_without_images(run, factory, tmp_path):
    data = KINDS / f"{run}.x.npz"
    found = atlas(KINDS / run, tmp_path / "a.html", data=data, factory=f"{KINDS / 'targets.py'}:{factory}")
    gold = np.load(KINDS / f"{run}.gold.npz")
    for layer in found.layers:
        rows = gold[f"ci/{layer.name}"].reshape(-1, layer.number).astype(np.float64)
        np.testing.assert_allclose(values_of(layer, "mean_importance"), rows.mean(0), atol=1e-5)
        assert layer.field is None
    assert found.thumbnails == {}
    assert 'class="sample"' in (tmp_path / "a.html").read_text(encoding="utf-8")
    table = torch.load(KINDS / run / "model_100.pth", weights_only=True)
    if run == "embed":  # V is a table, a row for each token
        U = table["_components.embed.U"].numpy()
        first = by_index(found.layers[0])[0]
        assert first.outputs[0][0] == np.abs(U[0]).argmax()


def test_the_command_says_what_it_found(folder, tmp_path):
    page, report = tmp_path / "a.html", tmp_path / "a.json"
    arguments = ["--data", folder / "x.npz", "-o", page, "--report", report, "--effect-samples", "4", "--top", "3"]
    result = spdexport("atlas", folder / "gated.onnx", *arguments)
    assert result.exit_code == 0, result.output
    right = sum(((importances(x).reshape(-1, SIZES[x]) > 0.1).any(0)).sum() for x in SIZES)
    assert f"248 components of 5 layers on 16 samples: {right} fire" in result.output
    assert "a.html" in result.output
    assert "kB" in result.output
    told = json.loads(report.read_text(encoding="utf-8"))
    assert told["outputs"] == ["a.html"]
    assert [len(layer["shown"]) for layer in told["layers"]] == [3] * 5
    assert {"mean_importance", "firing", "effect", "samples", "outputs"} <= set(told["layers"][0]["shown"][0])


def lists(*arrays):
    return [{"x": array} for array in arrays]


@pytest.mark.parametrize(
    ("source", "options", "error", "what"),
    [
        ("gated", {"data": lists(np.zeros((0, 1, 16, 16), np.float32))}, ExampleInputError, "There are no data"),
        ("gated", {"data": []}, ExampleInputError, "There are no data"),
        ("gated", {"data": iter(lists(np.zeros((2, 1, 16, 16), np.float32)))}, UsageError, "only once"),
        (
            "gated",
            {"data": lists(np.zeros((2, 3, 16, 16), np.float32))},
            ExampleInputError,
            r"float32 \(2, 3, 16, 16\)",
        ),
        ("gated", {"data": lists(np.zeros((2, 1, 16, 16)))}, ExampleInputError, "float64"),
        ("gated", {"data": lists(np.full((2, 1, 16, 16), np.nan, np.float32))}, ExampleInputError, "NaN or infinity"),
        ("gated", {"rank": "3"}, UsageError, "has components of its own"),
        ("gated", {"samples": -1}, UsageError, "-1 is too few"),
        ("gated", {"top": 0}, UsageError, "0 is too few"),
        ("gated", {"threshold": float("nan")}, UsageError, "The threshold is nan"),
        ("gated", {"max_size": 0.0}, UsageError, "holds nothing"),
        ("gated", {"gates": "exact"}, UsageError, "decides that itself"),
        ("gated", {"form": "spatial"}, UsageError, "The spatial form has no components"),
        ("folded", {}, SourceError, "its layers have no components"),
        ("dense", {}, ComponentsError, "no components of its own"),
    ],
)
def test_what_cannot_be_drawn_is_refused(folder, source, options, error, what):
    path = folder / f"{source}.onnx"
    if source == "folded":
        convert(RUN, path, factory=FACTORY, input_shape="2x1x16x16", form="dense", verify=False)
    if source == "dense":
        net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3))
        torch.onnx.export(net.eval(), (torch.zeros(2, 1, 16, 16),), dynamo=True, verbose=False).save(path)
    with pytest.raises(error, match=what) as raised:
        atlas(path, **{"data": folder / "x.npz", **options})
    assert raised.value.where
    assert raised.value.hint.endswith(".")


def test_a_model_without_components_is_told_which_options_make_some(colours):
    net, data = colours
    with pytest.raises(ComponentsError, match="no components of its own") as raised:
        atlas(net, data=data)
    assert "--components RUN" in raised.value.hint
    assert "--rank N" in raised.value.hint


@pytest.mark.parametrize(
    ("output", "status", "what"),
    [
        ("x.npz", 2, "--data"), ("gated.onnx", 2, "-o"), ("atlas.txt", 2, "does not end so"),
        ("none/a.html", 2, "does not exist"),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_told_and_nothing_is_lost(folder, output, status, what):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = spdexport("atlas", folder / "gated.onnx", "--data", folder / "x.npz", "-o", folder / output)
    assert (result.exit_code, what in result.output) == (status, True), result.output
    assert len(result.output.strip().splitlines()) == 3
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_dense_onnx_file_with_the_components_of_a_run_has_its_importances(tmp_path):
    convert(RUN, tmp_path / "dense.onnx", factory=FACTORY, input_shape="2x1x16x16", form="dense", verify=False)
    np.savez(tmp_path / "x.npz", x=GOLDEN["input"])
    found = atlas(tmp_path / "dense.onnx", data=tmp_path / "x.npz", components=RUN, effect_samples=0)
    for layer in found.layers:
        rows = importances(layer.name).reshape(-1, SIZES[layer.name]).astype(np.float64)
        np.testing.assert_allclose(values_of(layer, "mean_importance"), rows.mean(0), atol=1e-5)
