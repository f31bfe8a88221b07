import numpy as np
import pytest
import safetensors.torch
import torch

from spdexport.errors import ExampleInputError, PickleRefusedError, UsageError
from spdexport.loading.inputs import as_example_inputs, inputs_from_file, inputs_from_shapes, parse_input_shape


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2x3x32x32", (None, (2, 3, 32, 32), torch.float32)),
        ("tokens=2x16:int64", ("tokens", (2, 16), torch.int64)),
        ("5", (None, (5,), torch.float32)),
        ("scalar:bool", (None, (), torch.bool)),
        ("x=scalar", ("x", (), torch.float32)),
        ("1x2:bfloat16", (None, (1, 2), torch.bfloat16)),
    ],
)
def test_shapes(text, expected):
    assert parse_input_shape(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a shape"),
        ("2,3", "'2,3' is not a shape"),
        ("2x", "is not a shape"),
        ("-1x3", "is not a shape"),
        ("2x0", "A size is 0"),
        ("2x3:float", "'float' is not a dtype"),
        ("2x3:", "'' is not a dtype"),
        ("a b=2", "'a b' is not the name"),
        ("=2", "'' is not the name"),
        ("a=b=2", "not of the form"),
    ],
)
def test_bad_shapes(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        parse_input_shape(text)
    assert caught.value.where == f"--input-shape {text}"


def test_values_are_seeded_and_in_range():
    texts = ["2x50", "3x50:int64", "mask=4x9:bool", "5x2:float16", "c=3:complex64"]
    first, again, other = inputs_from_shapes(texts, 1), inputs_from_shapes(texts, 1), inputs_from_shapes(texts, 2)
    assert [x.dtype for x in first.args] == [torch.float32, torch.int64, torch.float16]
    assert list(first.kwargs) == ["mask", "c"]
    assert all(torch.equal(a, b) for a, b in zip(first.args, again.args, strict=True))
    assert not torch.equal(first.args[0], other.args[0])
    assert set(first.args[1].unique().tolist()) == {0, 1}
    assert 0.5 < first.args[0].std() < 1.5


def test_one_name_twice():
    with pytest.raises(UsageError, match="'a' is given twice"):
        inputs_from_shapes(["a=2", "a=3"], 0)


def test_file_names_tell_positions_and_keywords(tmp_path):
    tensors = {"1": torch.ones(1), "arg_0": torch.ones(2), "scale": torch.ones(3)}
    safetensors.torch.save_file(tensors, tmp_path / "s")
    inputs = inputs_from_file(tmp_path / "s")
    assert [len(x) for x in inputs.args] == [2, 1]
    assert list(inputs.kwargs) == ["scale"]
    assert inputs.origin == str(tmp_path / "s")


def test_a_single_tensor_is_positional(tmp_path):
    np.savez(tmp_path / "n.npz", images=np.ones((2, 3), dtype=np.float32))
    np.save(tmp_path / "n.npy", np.ones((2, 3), dtype=np.float32))
    torch.save({"images": torch.ones(2, 3)}, tmp_path / "d.pt")
    torch.save(torch.ones(2, 3), tmp_path / "t.pt")
    torch.save([torch.ones(2, 3)], tmp_path / "l.pt")
    for name in ("n.npz", "n.npy", "d.pt", "t.pt", "l.pt"):
        inputs = inputs_from_file(tmp_path / name)
        assert [(x.shape, x.dtype) for x in inputs.args] == [((2, 3), torch.float32)]
        assert not inputs.kwargs


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no tensors"),
        (("0", "2"), "positions 0, 2 have a gap"),
        (("0", "arg_0"), "Position 0 is there twice"),
    ],
)
def test_bad_names_in_files(tmp_path, names, message):
    safetensors.torch.save_file({name: torch.ones(1) for name in names}, tmp_path / "s")
    with pytest.raises(ExampleInputError, match=message):
        inputs_from_file(tmp_path / "s")


def test_bad_files(tmp_path):
    with pytest.raises(ExampleInputError, match="no such file"):
        inputs_from_file(tmp_path / "none")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object))
    with pytest.raises(ExampleInputError, match="array cannot be read"):
        inputs_from_file(tmp_path / "o.npy")
    torch.save("text", tmp_path / "t.pt")
    with pytest.raises(ExampleInputError, match="is of type str, not a tensor"):
        inputs_from_file(tmp_path / "t.pt")
    torch.save({"a": torch.nn.ReLU()}, tmp_path / "m.pt")
    with pytest.raises(PickleRefusedError):
        inputs_from_file(tmp_path / "m.pt")


def test_what_code_gives():
    def sizes(obj):
        inputs = as_example_inputs(obj, "f")
        return [len(x) for x in inputs.args], {name: len(x) for name, x in inputs.kwargs.items()}

    x, y = torch.ones(1), torch.ones(2)
    assert sizes(x) == ([1], {})
    assert sizes([x, y]) == ([1, 2], {})
    assert sizes({"y": y}) == ([], {"y": 2})
    assert sizes(((x,), {"y": y})) == ([1], {"y": 2})
    assert as_example_inputs(np.ones(3), "f").args[0].dtype is torch.float64
    with pytest.raises(ExampleInputError, match="Input 1 is of type set, not a tensor"):
        as_example_inputs((x, {3}), "factory")
    with pytest.raises(ExampleInputError, match="What is given is of type int, not a tensor"):
        as_example_inputs(3, "factory")
    with pytest.raises(ExampleInputError, match="Input 'a' is of type ndarray of object"):
        as_example_inputs({"a": np.array([{}])}, "factory")


def test_nested_inputs_and_constants():
    x, y = torch.ones(1), np.ones(2, dtype=np.float32)
    inputs = as_example_inputs({"image": x, "boxes": [y, {"mask": None, "scale": 2.5}]}, "f")
    assert inputs.kwargs["boxes"][1] == {"mask": None, "scale": 2.5}
    assert [tuple(t.shape) for t in inputs.tensors()] == [(1,), (2,)]
    other = inputs.with_tensors([torch.zeros(3), torch.zeros(4)], origin="g")
    assert other.kwargs["boxes"][0].shape == (4,)
    assert (other.kwargs["boxes"][1], other.origin) == ({"mask": None, "scale": 2.5}, "g")
    twice = as_example_inputs((x, x), "f").copied()
    assert twice.args[0] is not twice.args[1]
    assert as_example_inputs((([x, x], {"a": x}), {}), "f").args[1]["a"] is not None
    with pytest.raises(ExampleInputError, match=r"Input 'boxes'\[1\]\['a'\] is of type set, not a tensor"):
        as_example_inputs({"boxes": [x, {"a": {1}}]}, "factory")
