"""Masks from data: the digits run gives its own masks back, and every mistake is told."""

import json

import numpy as np
import pytest
import torch
from cli_command import FACTORY, RUN, spdexport
from safetensors.numpy import load_file, save_file
from sklearn.datasets import load_digits
from torch.nn import functional

from spdexport import Status, convert, derive_masks
from spdexport.errors import ComponentsError, ExampleInputError, UsageError

LAYERS = ["conv1", "conv2", "conv3", "fc1", "fc2"]


@pytest.fixture(scope="module")
def training():
    """The images that the run was trained on, (1400, 1, 16, 16)."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = functional.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:1400]].numpy()


@pytest.fixture(scope="module")
def few(training, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "few.npz"
    np.savez(path, x=training[:40])
    return path


@pytest.mark.slow
def test_the_digits_run_gives_its_masks_back(training, tmp_path):
    np.savez(tmp_path / "train.npz", x=training)
    done = spdexport(
        "masks", RUN, "--factory", FACTORY, "--data", tmp_path / "train.npz", "-o", tmp_path / "m.safetensors",
        "--report", tmp_path / "r.json", "--batch", 200,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "211 of 248 components kept, on 1400 samples: peak importance above 0.1" in " ".join(done.stdout.split())
    own, found = load_file(RUN / "fixed_masks.safetensors"), load_file(tmp_path / "m.safetensors")
    assert {name: mask.tolist() for name, mask in found.items()} == {name: mask.tolist() for name, mask in own.items()}
    report = json.loads((tmp_path / "r.json").read_text())
    assert [layer["live"] for layer in report["layers"]] == [11, 41, 63, 64, 32]
    assert report["rule"] == {"by": "peak", "threshold": 0.1, "min_frequency": 0.0, "top": None}
    beside = load_file(tmp_path / "m.importances.safetensors")
    assert {name.rpartition("/")[2] for name in beside} == {"peak", "mean", "frequency"}
    for name in LAYERS:
        np.testing.assert_array_equal(beside[f"{name}/peak"] > np.float32(0.1), own[name] == 1)


def test_importances_are_spds_own(few):
    from pathlib import Path

    golden = load_file(Path(__file__).parents[1] / "data/spd_digits_golden.safetensors")
    found = derive_masks(RUN, data=[golden["input"]], factory=FACTORY)
    assert (found.samples, found.outputs) == (16, ())
    for layer in found.layers:
        right = golden[f"ci/{layer.name}"].reshape(-1, layer.components)
        np.testing.assert_allclose(layer.importances.peak, right.max(axis=0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(layer.importances.mean, right.mean(axis=0), rtol=0, atol=1e-5)


def test_how_the_data_come_makes_no_difference(few, tmp_path):
    whole = derive_masks(RUN, data=few, factory=FACTORY)
    with np.load(few) as archive:
        images = archive["x"]
    save_file({"x": images[:25]}, tmp_path / "a.safetensors")
    save_file({"x": images[25:]}, tmp_path / "b.safetensors")
    same = [
        derive_masks(RUN, data=few, factory=FACTORY, batch=7),
        derive_masks(RUN, data=tmp_path, factory=FACTORY),
        derive_masks(RUN, data=({"x": images[i : i + 9]} for i in range(0, 40, 9)), factory=FACTORY),
        # A model of a fixed batch, which does not divide the number of samples.
        derive_masks(RUN, data=few, factory=FACTORY, dynamic_batch=False, input_shape=["3x1x16x16"]),
    ]
    for other in same:
        assert other.samples == 40
        for a, b in zip(whole.layers, other.layers, strict=True):
            assert a.mask.tolist() == b.mask.tolist()
            np.testing.assert_allclose(a.importances.mean, b.importances.mean, rtol=0, atol=1e-6)


def test_the_file_is_one_that_convert_reads(few, tmp_path):
    masks = tmp_path / "m.safetensors"
    derive_masks(RUN, masks, data=few, factory=FACTORY, top=9)
    made = convert(RUN, tmp_path / "m.onnx", factory=FACTORY, input_shape="2x1x16x16", masks=masks)
    assert made.verdict is Status.PASS
    assert [layer.live for layer in made.plan.layers] == [9] * 5


def test_a_dense_source_with_the_run_beside_it(few, tmp_path):
    found = derive_masks(
        RUN / "target_model.pth", data=few, factory=FACTORY, components=RUN, exclude=["fc*"], by="frequency"
    )
    assert [layer.name for layer in found.layers] == LAYERS[:3]


REFUSED = [
    ({"by": "median"}, UsageError, "'median' is no measure"),
    ({"threshold": float("nan")}, UsageError, "The threshold is nan"),
    ({"by": "frequency", "min_frequency": 1.5}, UsageError, "A share of 1.5 cannot be"),
    ({"min_frequency": 0.5}, UsageError, "--min-frequency says nothing about the peak"),
    ({"top": 0}, UsageError, "The top 0 are none"),
    ({"batch": 0}, UsageError, "A batch of 0 holds nothing"),
    ({"data": []}, ExampleInputError, "There are no data"),
    ({"data": [np.ones((2, 1, 9, 9), np.float32)]}, ExampleInputError, "The model fails on the example inputs 2x1x9x9"),
    ({"data": [np.full((2, 1, 16, 16), "x")]}, ExampleInputError, "The data cannot be the inputs of a model"),
    ({"data": [np.full((2, 1, 16, 16), np.nan, np.float32)]}, ExampleInputError, "The data hold NaN or infinity"),
    ({"output": "m.npz"}, UsageError, "does not end so"),
]


@pytest.mark.parametrize(("options", "error", "what"), REFUSED, ids=[what for *_, what in REFUSED])
def test_refusals(few, options, error, what):
    with pytest.raises(error, match=what):
        derive_masks(RUN, **{"data": few, "factory": FACTORY, **options})


def test_a_source_without_functions(few, tmp_path):
    with pytest.raises(ComponentsError, match="no causal-importance functions"):
        derive_masks(RUN / "target_model.pth", data=few, factory=FACTORY)


def test_mistakes_of_a_command(few, tmp_path):
    out = tmp_path / "m.safetensors"
    for status, what, arguments in (
        (2, "There are no data", ()),
        (4, "There is no such file", ("--data", tmp_path / "missing.npz")),
        (2, "is not one of", ("--data", few, "--by", "median")),
    ):
        done = spdexport("masks", RUN, "--factory", FACTORY, "-o", out, *arguments)
        assert done.exit_code == status, done.output
        assert what in done.stderr
        assert len(done.stderr.splitlines()) == 3
    assert not out.exists()
