from __future__ import annotations

import numpy as np
import pytest
from forms.layer_strategies import Layer, close, example_input, layers, run
from hypothesis import given, settings

from spdexport.compression import moments as module
from spdexport.compression.moments import Moments, locations_per_sample, moments_of
from spdexport.conv import ConvSpec
from spdexport.forms import Stage

CONV = ConvSpec(in_channels=4, out_channels=6, kernel=(3, 3), stride=(2, 1), padding=((1, 0),) * 2, dilation=(1, 2))


def of(spec: ConvSpec, x: np.ndarray, y: np.ndarray | None = None, *, seed: int = 0, **options: int) -> Moments:
    return moments_of(spec, x, y, rng=np.random.default_rng(seed), **options)


@settings(max_examples=80)
@given(layers())
def test_rows_are_what_the_layer_reads(layer: Layer) -> None:
    """Of patches that are in the order of the weight's columns, W times their moments are those of the output."""
    x = example_input(layer.spec, layer.rng)
    stage = Stage(spec=layer.spec, weight=layer.weight)
    y = run(stage, x).numpy()
    found = of(layer.spec, x.numpy(), y)
    spec = layer.spec
    W = layer.weight.reshape(spec.groups, spec.group_out, spec.patch)
    size = np.abs(W).max(initial=0.0)
    scale = 1e3 * max(size, 1e-300) * max(np.abs(x.numpy()).max() ** 2, 1) * max(found.count, 1) * spec.patch
    assert found.count == y.size // spec.out_channels
    assert close(W @ found.inputs[..., None], found.targets[..., None], scale)
    assert close(W @ found.second, found.cross, scale)
    assert close(found.cross @ np.swapaxes(W, 1, 2), found.target_second, scale * max(size, 1))
    rows = y.reshape(len(y), spec.groups, spec.group_out, -1).sum(axis=(0, 3)) if spec.axes else y.sum(axis=0)[None]
    assert close(rows.reshape(found.targets.shape), found.targets, scale)


def test_a_linear_layer_may_have_any_leading_axes() -> None:
    spec, rng = ConvSpec(in_channels=5, out_channels=3), np.random.default_rng(0)
    x, y = rng.standard_normal((4, 6, 2, 5)), rng.standard_normal((4, 6, 2, 3))
    found = of(spec, x, y)
    assert found.count == 48
    np.testing.assert_allclose(found.cross[0], y.reshape(-1, 3).T @ x.reshape(-1, 5))
    assert of(spec, x[0, 0, 0]).count == 1
    assert of(spec, x, y, per_sample=5).count == 20


def test_sampled_rows_are_rows_and_their_targets() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 4, 9, 9))
    stage = Stage(spec=CONV, weight=rng.standard_normal(CONV.weight_shape))
    import torch

    y = run(stage, torch.from_numpy(x)).numpy()
    found = of(CONV, x, y, per_sample=7)
    assert found.count == 8 * 7
    np.testing.assert_allclose(stage.weight.reshape(6, -1) @ found.second[0], found.cross[0], atol=1e-10)
    same, other = of(CONV, x, y, per_sample=7), of(CONV, x, y, per_sample=7, seed=1)
    np.testing.assert_array_equal(same.second, found.second)
    assert (other.second != found.second).any()
    # Every location is as likely as any other: the mean over many draws is that over all of them.
    mean = np.mean([of(CONV, x, per_sample=7, seed=seed).mean for seed in range(300)], axis=0)
    assert np.abs(mean - of(CONV, x).mean).max() < 0.05
    assert np.abs(of(CONV, x).mean - 0).max() > 0.05


def test_no_location_is_taken_twice() -> None:
    x = np.arange(1.0, 37.0).reshape(1, 1, 6, 6)
    point = ConvSpec.pointwise(1, 1, axes=2)
    assert of(point, x, per_sample=36).inputs.item() == of(point, x, per_sample=99).inputs.item() == 666.0


def test_parts_merge_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((9, 4, 7, 8))
    y = rng.standard_normal((9, 6, 3, 5))
    whole, parts = of(CONV, x, y), [of(CONV, x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert merged.count == whole.count
    for name in ("inputs", "second", "targets", "target_second", "cross"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), atol=1e-11)
    np.testing.assert_allclose(
        whole.cross_covariance()[0],
        whole.cross[0] / whole.count - np.outer(whole.target_mean, whole.mean),
        atol=1e-13,
    )
    with pytest.raises(ValueError, match="moments of different layers do not merge: targets"):
        whole.merge(of(CONV, x))


@pytest.mark.parametrize("full_patch", [99, 2])
def test_arrays_bring_the_moments_back(full_patch: int) -> None:
    rng = np.random.default_rng(0)
    made = of(CONV, rng.standard_normal((2, 4, 7, 8)), rng.standard_normal((2, 6, 3, 5)), full_patch=full_patch)
    back = Moments.from_arrays(made.arrays())
    for name, values in made.arrays().items():
        np.testing.assert_array_equal(back.arrays()[name], values)
    assert ("sketch" in made.arrays()) == (full_patch == 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": None}, "not moments"),
        ({"other": np.zeros(1)}, "not moments: count, cross, inputs, other"),
        ({"sketch": np.zeros((1, 2, 37))}, "not moments"),
        ({"count": np.asarray(-1)}, "number of rows"),
        ({"count": np.asarray(1.5)}, "number of rows"),
        ({"second": np.zeros((1, 36, 36), dtype=np.float32)}, "not float64"),
        ({"second": np.zeros((1, 35, 36))}, "second have shape"),
        ({"cross": np.zeros((1, 5, 36))}, "cross have shape"),
    ],
)
def test_arrays_that_are_no_moments_are_refused(change: dict, message: str) -> None:
    made = of(CONV, np.zeros((1, 4, 7, 8)), np.zeros((1, 6, 3, 5))).arrays()
    arrays = {name: values for name, values in {**made, **change}.items() if values is not None}
    with pytest.raises(ValueError, match=message):
        Moments.from_arrays(arrays)


def test_targets_that_are_not_the_output_are_refused() -> None:
    with pytest.raises(ValueError, match=r"targets \(1, 6, 4, 3\) are not the output \(1, 6, 3, 5\) of 4>6 3x3"):
        of(CONV, np.zeros((1, 4, 7, 8)), np.zeros((1, 6, 4, 3)))


def test_a_sketch_tells_the_covariance_of_long_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 4, 8, 8)) * np.array([1.0, 5.0, 2.0, 0.1])[:, None, None] + 3.0
    full, sketch = of(CONV, x), of(CONV, x, full_patch=1)
    F = sketch.sketched()
    assert sketch.second is None
    assert F.shape == (1, module.SKETCH, 36)
    D = rng.standard_normal((50, 36))
    true = ((D @ full.covariance()[0]) * D).sum(axis=1)
    told = ((D @ F[0].T) ** 2).sum(axis=1)
    assert np.abs(told / true - 1).mean() < 0.05
    with pytest.raises(ValueError, match="without a full Sigma"):
        sketch.covariance()


def test_locations_for_a_number_of_rows() -> None:
    assert [locations_per_sample(n, rows=1000) for n in (1, 256, 1000, 5000)] == [1000, 4, 1, 1]
