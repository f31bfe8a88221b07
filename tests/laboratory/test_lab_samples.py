"""The samples of a lab: which they are, and how those that are pictures are drawn."""

import numpy as np
import pytest

from spdexport.errors import ExampleInputError
from spdexport.laboratory.samples import read_samples
from spdexport.verification.ports import Port

FLOAT = np.dtype(np.float32)


def port(*shape, name="x", dtype=FLOAT):
    return Port(name=name, dtype=np.dtype(dtype), shape=("batch", *shape))


def saved(tmp_path, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


def floats(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(FLOAT)


def test_the_first_ones_with_their_labels(tmp_path):
    x = floats(50, 4)
    path = saved(tmp_path, x=x, labels=np.arange(50))
    found = read_samples(path, [port(4)], 8)
    np.testing.assert_array_equal(found.inputs["x"], x[:8])
    assert found.labels == tuple(range(8))
    assert (found.number, found.total) == (8, 50)
    assert found.notes == ("8 of 50 samples are in the lab; --samples takes more",)
    np.testing.assert_array_equal(found.one(3)["x"], x[3:4])


def test_those_of_a_folder_one_after_another(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    x = floats(9, 4)
    for i in range(3):
        np.save(folder / f"{i}.npy", x[3 * i : 3 * i + 3])
    found = read_samples(folder, [port(4)], 7)
    np.testing.assert_array_equal(found.inputs["x"], x[:7])
    assert found.labels is None
    assert read_samples(folder, [port(4)], 100).number == 9


def test_several_inputs_are_taken_by_name(tmp_path):
    a, b = floats(3, 4), floats(3, 2)
    found = read_samples(saved(tmp_path, b=b, a=a), [port(4, name="a"), port(2, name="b")], 3)
    np.testing.assert_array_equal(found.inputs["b"], b)
    with pytest.raises(ExampleInputError, match="The data hold a"):
        read_samples(saved(tmp_path, a=a), [port(4, name="a"), port(2, name="b")], 3)


@pytest.mark.parametrize("labels", [np.arange(3.0), np.arange(6).reshape(3, 2)])
def test_labels_that_are_no_classes_are_left_out_and_told(tmp_path, labels):
    found = read_samples(saved(tmp_path, x=floats(3, 4), labels=labels), [port(4)], 3)
    assert found.labels is None
    assert "left out" in found.notes[0]


@pytest.mark.parametrize(
    ("shape", "layout", "sizes"),
    [((1, 16, 12), "chw", (1, 16, 12)), ((3, 16, 12), "chw", (3, 16, 12)), ((16, 12, 3), "hwc", (3, 16, 12)),
     ((16, 12), "hw", (1, 16, 12))],
)  # fmt: skip
def test_pictures(tmp_path, shape, layout, sizes):
    x = floats(4, *shape)
    x[1] = np.nan
    found = read_samples(saved(tmp_path, x=x), [port(*shape)], 4).picture
    assert (found.layout, (found.channels, found.height, found.width)) == (layout, sizes)
    assert (found.low, found.high) == (np.nanmin(x), np.nanmax(x))


@pytest.mark.parametrize("shape", [(4,), (5, 6), (2, 16, 16), (3, 4, 16, 16), (16, 2)])
def test_what_is_no_picture(tmp_path, shape):
    assert read_samples(saved(tmp_path, x=floats(2, *shape)), [port(*shape)], 2).picture is None


def test_integers_are_no_pictures_but_samples(tmp_path):
    x = np.arange(200).reshape(2, 10, 10)
    found = read_samples(saved(tmp_path, x=x), [port(10, 10, dtype=np.int64)], 2)
    assert found.picture is None
    assert found.inputs["x"].dtype == np.int64


REFUSED = {
    "another type": (lambda: {"x": np.zeros((2, 4))}, [port(4)], "The data have float64 for x"),
    "another size": (lambda: {"x": floats(2, 5)}, [port(4)], "The data have (5,) for one sample of x"),
    "another rank": (lambda: {"x": floats(2, 4, 1)}, [port(4)], "The data have (4, 1) for one sample of x"),
    "a batch of its own": (
        lambda: {"x": floats(2, 4)}, [Port(name="x", dtype=FLOAT, shape=(8, 4))], "a page gives one sample at a time",
    ),
    "no axes": (
        lambda: {"x": floats(2, 4)}, [Port(name="x", dtype=FLOAT, shape=())], "a page gives one sample at a time",
    ),
    "a type of which a page knows nothing": (
        lambda: {"x": floats(2, 4).astype(np.float16)}, [port(4, dtype=np.float16)], "a page cannot give",
    ),
    "no inputs": (lambda: {"x": floats(2, 4)}, [], "no inputs but masks"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path, case):
    arrays, ports, told = REFUSED[case]
    with pytest.raises(ExampleInputError) as caught:
        read_samples(saved(tmp_path, **arrays()), ports, 2)
    assert told in caught.value.what
    assert caught.value.hint
