"""Ablating the digits run, against its own network evaluated in float64 with components left out."""

import importlib.util
import json

import numpy as np
import onnx
import pytest
import torch
from cli_command import EXAMPLE, FACTORY, MASKS, RUN, spdexport, subprocess_of
from safetensors.numpy import load_file, save_file
from torch.func import functional_call

from spdexport import ablate, convert
from spdexport.errors import ExampleInputError, InputError, MaskError, SourceError, UsageError

SIZES = {"conv1": 24, "conv2": 64, "conv3": 64, "fc1": 64, "fc2": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The digits run with run-time masks, as ``m.onnx``, and images as ``x.npz``."""
    folder = tmp_path_factory.mktemp("ablation")
    convert(
        RUN, folder / "m.onnx", factory=FACTORY, input_shape="2x1x16x16", runtime_masks=["all"], delta="drop",
        verify=False,
    )  # fmt: skip
    golden = load_file(EXAMPLE.parents[1] / "tests/data/spd_digits_golden.safetensors")
    np.savez(folder / "x.npz", x=golden["input"])
    return folder


@pytest.fixture(scope="module")
def network():
    """The network in float64 as a function of the masks."""
    spec = importlib.util.spec_from_file_location("digits_cnn", EXAMPLE / "digits_cnn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.DigitsCNN().double().eval()
    run = torch.load(RUN / "model_4000.pth", weights_only=True)
    model.load_state_dict(
        {k.removeprefix("target_model."): t.double() for k, t in run.items() if k.startswith("target_model.")}
    )
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def evaluate(x, masks):
        weights = {}
        for layer in SIZES:
            V, U = (run[f"_components.{layer}.{part}"].double() for part in "VU")
            mask = torch.as_tensor(masks.get(layer, np.ones(SIZES[layer])))
            weights[f"{layer}.weight"] = (V * mask @ U).T.reshape(shapes[f"{layer}.weight"])
        with torch.no_grad():
            return functional_call(model, weights, (torch.tensor(x).double(),)).numpy()

    return evaluate


def images(folder):
    with np.load(folder / "x.npz") as archive:
        return archive["x"]


def without(layer, *indices):
    mask = np.ones(SIZES[layer])
    mask[list(indices)] = 0
    return {layer: mask}


def check(effect, before, after):
    norms = np.linalg.norm(after - before, axis=1)
    np.testing.assert_allclose(effect.change, norms.mean(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(effect.largest, norms.max(), rtol=1e-4, atol=1e-4)
    a, b = (torch.log_softmax(torch.tensor(x), dim=1) for x in (before, after))
    right = float((a.exp() * (a - b)).sum(1).mean())
    np.testing.assert_allclose(effect.kl, right, rtol=1e-3, atol=1e-6)
    assert effect.top_changed == (before.argmax(1) != after.argmax(1)).mean()


def test_every_component_by_itself(folder, network):
    found = ablate(folder / "m.onnx", data=folder / "x.npz")
    assert (len(found.found), found.samples, found.output, found.components) == (248, 16, "output", SIZES)
    x = images(folder)
    before = network(x, {})
    by_name = {one.components.name: one.effect for one in found.found}
    for layer, index in (("conv1", 16), ("conv2", 3), ("conv3", 60), ("fc1", 9), ("fc2", 31)):
        check(by_name[f"{layer}:{index}"], before, network(x, without(layer, index)))


def test_how_many_run_together_makes_no_difference(folder):
    whole = ablate(folder / "m.onnx", data=folder / "x.npz", layers=["fc2"])
    for rows in (1, 5, 48):
        other = ablate(folder / "m.onnx", data=folder / "x.npz", layers=["fc2"], rows=rows)
        for a, b in zip(whole.found, other.found, strict=True):
            np.testing.assert_allclose(a.effect.change, b.effect.change, rtol=1e-4, atol=1e-5)


def test_sets_and_what_is_alone_kept(folder, network, tmp_path):
    sets = {"some": ["conv1:1", "conv1:16", "fc2:3"], "one": ["fc1:9"]}
    (tmp_path / "sets.json").write_text(json.dumps(sets))
    x = images(folder)
    before = network(x, {})
    removed = ablate(folder / "m.onnx", data=folder / "x.npz", sets=tmp_path / "sets.json")
    masks = {**without("conv1", 1, 16), **without("fc2", 3)}
    check(removed.found[0].effect, before, network(x, masks))
    check(removed.found[1].effect, before, network(x, without("fc1", 9)))
    kept = ablate(folder / "m.onnx", data=folder / "x.npz", sets=tmp_path / "sets.json", keep=True)
    check(kept.found[0].effect, before, network(x, {name: 1 - mask for name, mask in masks.items()}))
    assert kept.kept


def test_a_baseline_of_fixed_masks(folder, network):
    own = load_file(MASKS)
    found = ablate(folder / "m.onnx", data=folder / "x.npz", baseline=MASKS, layers=["conv1"])
    dead = [i for i, one in enumerate(found.found) if one.effect is None]
    assert dead == np.flatnonzero(own["conv1"] == 0).tolist()
    x, live = images(folder), int(np.flatnonzero(own["conv1"])[0])
    start = {name: mask.astype(np.float64) for name, mask in own.items()}
    after = {**start, "conv1": start["conv1"] * without("conv1", live)["conv1"]}
    check(found.found[live].effect, network(x, start), network(x, after))


def test_masks_for_each_location_and_required_ones(folder, tmp_path):
    convert(
        RUN, tmp_path / "m.onnx", factory=FACTORY, input_shape="2x1x16x16", runtime_masks=["conv1", "fc1"],
        runtime_masks_per_location=True, mask_inputs="required", delta="drop", verify=False,
    )  # fmt: skip
    shape = [d.dim_value for d in onnx.load(tmp_path / "m.onnx").graph.input[1].type.tensor_type.shape.dim]
    assert shape[1:] == [16, 16, 24]
    found = ablate(tmp_path / "m.onnx", data=folder / "x.npz", layers=["conv1"])
    whole = ablate(folder / "m.onnx", data=folder / "x.npz", layers=["conv1"])
    # Of layers without a mask the delta is kept, so that other layers' numbers are near, not equal.
    assert len(found.found) == len(whole.found) == 24
    ranks = [np.argmax([one.effect.change for one in f.found]) for f in (found, whole)]
    assert ranks[0] == ranks[1]


def test_gates_as_the_baseline(folder, tmp_path):
    convert(
        RUN, tmp_path / "m.onnx", factory=FACTORY, input_shape="2x1x16x16", runtime_masks=["all"], gates="exact",
        delta="drop", verify=False,
    )  # fmt: skip
    found = ablate(tmp_path / "m.onnx", data=folder / "x.npz", layers=["fc2"])
    assert found.baseline == "gates"
    assert found.active == ("the file's gates (exact), which the masks multiply",)
    assert max(one.effect.kl for one in found.found) > 0
    same = ablate(tmp_path / "m.onnx", data=folder / "x.npz", baseline="gates", layers=["fc2"])
    assert [one.effect for one in same.found] == [one.effect for one in found.found]
    # The gates multiply whatever comes from outside: a baseline of ones would be theirs under another name.
    with pytest.raises(UsageError, match="no baseline of ones can be had of it"):
        ablate(tmp_path / "m.onnx", data=folder / "x.npz", baseline="ones")
    fixed = ablate(tmp_path / "m.onnx", data=folder / "x.npz", baseline=MASKS, layers=["fc2"])
    assert fixed.baseline == "gates and fixed_masks.safetensors"
    model = onnx.load(tmp_path / "m.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    done = spdexport("ablate", tmp_path / "bare.onnx", "--data", folder / "x.npz", "--layers", "fc2")
    words = " ".join(done.stdout.split())
    assert "change of output from gates; at work throughout: the file's gates, which the masks multiply" in words
    with pytest.raises(UsageError, match="The file has no gates in its graph"):
        ablate(folder / "m.onnx", data=folder / "x.npz", baseline="gates")


def test_a_batch_that_cannot_change(folder, tmp_path):
    convert(
        RUN, tmp_path / "m.onnx", factory=FACTORY, input_shape="16x1x16x16", runtime_masks=["fc2"],
        dynamic_batch=False, verify=False,
    )  # fmt: skip
    found = ablate(tmp_path / "m.onnx", data=folder / "x.npz")
    assert len(found.found) == 32
    assert found.notes == ("the batch of the file cannot change: every ablation took a run of its own",)


def test_the_command_and_its_reports(folder, tmp_path):
    done = spdexport(
        "ablate", folder / "m.onnx", "--data", folder / "x.npz", "--report", tmp_path / "r.json", "--html",
        tmp_path / "r.html",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "248 ablations, each removed, on 16 samples: change of output from ones" in " ".join(done.stdout.split())
    assert "and 233 more" in done.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema_version"] == 1
    assert len(report["ablations"]) == 248
    assert set(report["ablations"][0]) == {
        "name", "members", "dead", "change", "relative", "largest", "top_changed", "kl",
    }  # fmt: skip
    page = (tmp_path / "r.html").read_text()
    assert page.count("<svg") == 5
    assert page.count('class="bar"') == 248
    assert "http:" not in page
    assert "https:" not in page


def test_it_needs_no_torch(folder):
    script = (
        "import sys\nsys.modules['torch'] = None\nfrom spdexport.ablation.ablate import ablate\n"
        f"print(len(ablate({str(folder / 'm.onnx')!r}, data={str(folder / 'x.npz')!r}, layers=['fc2']).found))"
    )
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "32", done.stderr


@pytest.fixture
def bad_data(tmp_path):
    np.savez(tmp_path / "bad.npz", x=np.ones((3, 1, 9, 9), np.float32))
    np.savez(tmp_path / "two.npz", x=np.ones((3, 1, 16, 16), np.float32), y=np.ones(3))
    np.savez(tmp_path / "double.npz", x=np.ones((3, 1, 16, 16)))
    save_file({"conv9": np.ones(3, np.float32)}, tmp_path / "unknown.safetensors")
    save_file({"fc2": np.ones(3, np.float32)}, tmp_path / "short.safetensors")
    return tmp_path


REFUSED = [
    ({"data": "bad.npz"}, ExampleInputError, "The file does not run on the data"),
    ({"data": "two.npz"}, ExampleInputError, "The data hold x, y"),
    ({"data": "double.npz"}, ExampleInputError, "The data have float64 for x"),
    ({"data": "missing.npz"}, ExampleInputError, "There is no such file"),
    ({"layers": ["conv9"]}, UsageError, "'conv9' matches no layer with a run-time mask"),
    ({"output": "scores"}, UsageError, "'scores' is no float output of the file"),
    ({"provider": "rocm"}, UsageError, "no provider 'rocm'"),
    ({"rows": 0}, UsageError, "A run of 0 samples holds nothing"),
    ({"baseline": "unknown.safetensors"}, MaskError, "no run-time mask of conv9"),
    ({"baseline": "short.safetensors"}, MaskError, "The mask of fc2 is not 32 finite numbers"),
    ({"baseline": "missing.safetensors"}, MaskError, "There is no such file"),
    ({"sets": "missing.json"}, InputError, "There is no such file"),
]


@pytest.mark.parametrize(("options", "error", "what"), REFUSED, ids=[what for *_, what in REFUSED])
def test_refusals(folder, bad_data, options, error, what):
    paths = {k: bad_data / v if k in ("data", "baseline", "sets") else v for k, v in options.items()}
    with pytest.raises(error, match=what):
        ablate(folder / "m.onnx", **{"data": folder / "x.npz", **paths})


def test_a_file_without_masks(folder, tmp_path):
    convert(RUN, tmp_path / "m.onnx", factory=FACTORY, input_shape="2x1x16x16", verify=False)
    with pytest.raises(SourceError, match="no run-time masks to ablate") as caught:
        ablate(tmp_path / "m.onnx", data=folder / "x.npz")
    assert "--runtime-masks all" in caught.value.hint


def test_a_mistake_of_the_command_is_three_lines(folder):
    done = subprocess_of("ablate", folder / "m.onnx", "--data", folder / "x.npz", "--layers", "conv9")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3
