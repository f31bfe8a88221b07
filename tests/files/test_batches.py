"""Data sets in batches: every format gives the same samples, and files that cannot be used say why."""

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from spdexport.errors import ExampleInputError
from spdexport.files.batches import open_data

X = np.arange(7 * 3, dtype=np.float32).reshape(7, 3)
IDS = np.arange(7)


def save(path, arrays):
    match path.suffix:
        case ".npz":
            np.savez(path, **arrays)
        case ".npy":
            np.save(path, *arrays.values())
        case _:
            save_file(arrays, path)
    return path


def joined(data, size):
    parts = list(data.batches(size))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, [
        len(next(iter(part.values()))) for part in parts
    ]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_several_arrays(tmp_path, suffix, size):
    data = open_data(save(tmp_path / f"d{suffix}", {"x": X, "ids": IDS}))
    assert data.samples == 7
    found, sizes = joined(data, size)
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["ids"], IDS)
    assert found["x"].dtype == np.float32
    assert sizes == [size] * (7 // size) + [7 % size] * (7 % size > 0)


def test_compressed_and_single_arrays(tmp_path):
    np.savez_compressed(tmp_path / "d.npz", x=X)
    np.testing.assert_array_equal(joined(open_data(tmp_path / "d.npz"), 4)[0]["x"], X)
    np.save(tmp_path / "d.npy", X)
    np.testing.assert_array_equal(joined(open_data(tmp_path / "d.npy"), 4)[0][""], X)


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    for name, part in (("b.npz", X[4:]), ("a.npz", X[:4])):
        save(tmp_path / name, {"x": part})
    (tmp_path / ".hidden").write_text("")
    data = open_data(tmp_path)
    assert data.samples == 7
    found, sizes = joined(data, 3)
    np.testing.assert_array_equal(found["x"], X)
    assert sizes == [3, 1, 3]


def test_reading_holds_one_batch(tmp_path):
    """What is read of an archive does not grow with it: a batch is a copy of its own, not a view of the file."""
    data = open_data(save(tmp_path / "d.npz", {"x": X}))
    first = next(data.batches(2))["x"]
    assert first.base is None or first.base.nbytes == first.nbytes
    first[:] = 0  # writable, for torch
    np.testing.assert_array_equal(joined(data, 2)[0]["x"], X)


REFUSED = [
    ("d.npz", lambda p: np.savez(p, x=X, y=X[:5]), r"no common number of samples on axis 0: x \(7, 3\), y \(5, 3\)"),
    ("d.npz", lambda p: np.savez(p, x=np.float32(3)), "no common number of samples"),
    ("d.npz", lambda p: np.savez(p, x=X[:0]), "no common number of samples"),
    ("d.npz", lambda p: np.savez(p, x=np.array([{}] * 3, dtype=object)), "would need a pickle"),
    ("d.npz", lambda p: np.savez(p, x=np.asfortranarray(X)), "column order"),
    ("d.npz", lambda p: p.write_bytes(b"PK\x03\x04 no archive"), "cut off or damaged"),
    ("d.npy", lambda p: p.write_bytes(b"\x93NUMPY\x01\x00 no"), "The data cannot be read"),
    ("d.json", lambda p: p.write_text("[1]"), "Data cannot be read from a JSON file"),
    ("d.npz", lambda p: p.write_bytes(b""), "The file is empty"),
    ("d.npz", lambda _: None, "There is no such file"),
]


@pytest.mark.parametrize(("name", "write", "what"), REFUSED, ids=[what for *_, what in REFUSED])
def test_files_that_cannot_be_used(tmp_path, name, write, what):
    write(tmp_path / name)
    with pytest.raises(ExampleInputError, match=what):
        open_data(tmp_path / name)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(ExampleInputError, match="The folder holds no files"):
        open_data(tmp_path)
    save(tmp_path / "a.npz", {"x": X})
    save(tmp_path / "b.npz", {"y": X})
    with pytest.raises(ExampleInputError, match="called y, and those of the first file x"):
        open_data(tmp_path)


def test_a_file_that_ends_early_is_told_when_it_is_read(tmp_path):
    path = save(tmp_path / "d.npz", {"x": X})
    data = open_data(path)
    save(tmp_path / "d.npz", {"x": X[:3]})
    assert sum(len(part["x"]) for part in data.batches(2)) == 3
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ExampleInputError, match="cut off or damaged"):
        list(data.batches(2))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: path.symlink_to("moved.npz"), "There is no such file"),
        (lambda path: path.symlink_to("/dev/zero"), "a pipe, a socket or a device"),
        (os.mkfifo, "a pipe, a socket or a device"),
    ],
    ids=["dangling link", "device", "FIFO"],
)
def test_what_is_no_file_in_a_folder_is_told_and_not_left_out(tmp_path, make, what):
    save(tmp_path / "a.npz", {"x": X})
    make(tmp_path / "b.npz")
    with pytest.raises(ExampleInputError, match=what) as caught:
        open_data(tmp_path)
    assert "b.npz" in caught.value.where


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors"])
@pytest.mark.parametrize(("start", "stop"), [(0, 10), (3, 7), (4, None), (0, 1), (9, 10), (5, 5)])
def test_a_part_of_a_file_is_that_of_the_whole(tmp_path, suffix, start, stop):
    x = np.arange(40.0).reshape(10, 4)
    data = open_data(save(tmp_path / f"d{suffix}", {"x": x}))
    parts = [next(iter(batch.values())) for batch in data.batches(3, start, stop)]
    expected = x[start:stop]
    assert [len(part) for part in parts] == [len(expected[i : i + 3]) for i in range(0, len(expected), 3)]
    np.testing.assert_array_equal(np.concatenate([expected[:0], *parts]), expected)


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (2, 5), (4, 9), (3, 4), (1, None)])
def test_a_part_goes_on_from_file_to_file(tmp_path, start, stop):
    x = np.arange(9.0)[:, None]
    for number, (first, last) in enumerate([(0, 4), (4, 5), (5, 9)]):
        np.savez(tmp_path / f"{number}.npz", x=x[first:last])
    data = open_data(tmp_path)
    assert data.lengths == (4, 1, 4)
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in data.batches(2, start, stop)]), x[start:stop])


def test_a_file_that_has_shrunk_is_told(tmp_path):
    data = open_data(save(tmp_path / "d.npz", {"x": np.zeros((9, 2))}))
    save(tmp_path / "d.npz", {"x": np.zeros((5, 2))})
    with pytest.raises(ExampleInputError, match="it has fewer samples than before"):
        list(data.batches(2, 3, 8))
