from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from onnx import helper
from onnx_models import model, random, saved

from spdexport import Status, verify
from spdexport.errors import ExampleInputError
from spdexport.verification.approximation import Change, approximation
from spdexport.verification.file_inputs import FOLLOWS_BATCH, SIZES, file_cases, given_by_name, guesses, told
from spdexport.verification.ports import Port
from spdexport.verification.recipes import RECIPES, draw, generators

if TYPE_CHECKING:
    from pathlib import Path

X = Port(name="x", dtype=np.dtype(np.float32), shape=("batch", 3, "h", 8))
IDS = Port(name="ids", dtype=np.dtype(np.int64), shape=("batch", 4))


def test_cases_have_the_batch_of_their_recipe_and_the_sizes_given() -> None:
    made = list(file_cases([X, IDS], {"h": 5}, None, seed=0))
    assert [c.batch for c in made] == [r.batch for r in RECIPES]
    for case in made:
        assert case.inputs["x"].shape == (case.batch, 3, 5, 8)
        assert case.inputs["x"].dtype == np.float32
        assert set(np.unique(case.inputs["ids"])) <= {0, 1}
    again = list(file_cases([X, IDS], {"h": 5}, None, seed=0))
    assert all(np.array_equal(a.inputs["x"], b.inputs["x"]) for a, b in zip(made, again, strict=True))
    other = list(file_cases([X, IDS], {"h": 5}, None, seed=1))
    assert not np.array_equal(made[0].inputs["x"], other[0].inputs["x"])


def test_integers_stay_in_the_range_of_the_example() -> None:
    example = {"x": np.zeros((1, 3, 5, 8), np.float32), "ids": np.array([[3, 9, 4, 4]])}
    drawn = np.concatenate([c.inputs["ids"].ravel() for c in file_cases([X, IDS], {"h": 5}, example, seed=0)])
    assert drawn.min() >= 3
    assert drawn.max() <= 9


def test_unknown_sizes_are_guessed_and_known_ones_are_not() -> None:
    assert [(g, s) for g, s in guesses([X, IDS], None)] == [(size, {"h": size}) for size in SIZES]
    example = {"x": np.zeros((1, 3, 5, 8), np.float32), "ids": np.zeros((1, 4), np.int64)}
    assert [(g, s["h"]) for g, s in guesses([X, IDS], example)] == [(None, 5)]


def test_states_are_as_long_as_the_batch() -> None:
    """As in files of recurrent networks, whose states have axes without a name."""
    sound = Port(name="x", dtype=np.dtype(np.float32), shape=(None, None))
    state = Port(name="h", dtype=np.dtype(np.float32), shape=(2, None, 4))
    tied = [sizes for _, sizes in guesses([sound, state], None) if sizes["h:1"] == FOLLOWS_BATCH]
    assert [sizes["x:1"] for sizes in tied] == list(SIZES)
    for case in file_cases([sound, state], tied[0], None, seed=0):
        assert case.inputs["h"].shape == (2, len(case.inputs["x"]), 4)
    assert told(32, tied[0]) == "32 was taken as the size of x:1; the batch's size was taken as the size of h:1"
    fixed = Port(name="x", dtype=np.dtype(np.float32), shape=(None, 8))
    assert list(guesses([fixed, state], None))[-1] == (1, {"h:1": FOLLOWS_BATCH})


def test_states_of_an_example_may_be_as_long_as_its_batch() -> None:
    sound = Port(name="x", dtype=np.dtype(np.float32), shape=(None, 8))
    state = Port(name="h", dtype=np.dtype(np.float32), shape=(1, None, 4))
    example = {"x": np.zeros((2, 8), np.float32), "h": np.zeros((1, 2, 4), np.float32)}
    known, tied = (sizes for _, sizes in guesses([sound, state], example))
    assert (known["h:1"], tied["h:1"]) == (2, FOLLOWS_BATCH)
    longer = {**example, "h": np.zeros((1, 3, 4), np.float32)}
    assert [sizes["h:1"] for _, sizes in guesses([sound, state], longer)] == [3]


@pytest.mark.parametrize("samples", [1, 2])
def test_a_recurrent_file_is_checked_at_other_batches_than_its_example(samples: int, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axis"], ["steps"]),
        helper.make_node("LSTM", ["steps", "W", "R", "", "", "h", "c"], ["all", "y"], hidden_size=3),
    ]
    weights = {"axis": np.int64([0]), "W": random(1, 12, 4), "R": random(1, 12, 3)}
    states = {"h": [1, None, 3], "c": [1, None, 3]}
    proto = model(nodes, inputs={"x": [None, 4], **states}, outputs={"y": [1, None, 3]}, weights=weights)
    given = {"x": random(samples, 4), "h": random(1, samples, 3), "c": random(1, samples, 3, seed=1)}
    np.savez(tmp_path / "given.npz", **given)
    found = verify(saved(proto, tmp_path / "m.onnx"), inputs=tmp_path / "given.npz")
    assert found.verdict is Status.PASS
    assert {"normal, batch 2", "uniform, batch 1", "sparse, batch 3"} <= set(found.inputs)
    assert "the batch's size was taken as the size of h:1, c:1" in found.notes


def test_inputs_are_matched_by_name_and_position() -> None:
    x, ids = np.zeros((1, 3, 5, 8), np.float32), np.zeros((1, 4), np.int64)
    assert list(given_by_name([X, IDS], [x], {"ids": ids})) == ["x", "ids"]
    with pytest.raises(ExampleInputError, match="The input 'ids' is not given"):
        given_by_name([X, IDS], [x], {})
    with pytest.raises(ExampleInputError, match="3 inputs for a file that takes 2"):
        given_by_name([X, IDS], [x, ids, ids], {})
    with pytest.raises(ExampleInputError, match=r"have ids float32 \(1, 4\)"):
        given_by_name([X, IDS], [x, ids.astype(np.float32)], {})


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.complex64, np.bool_, np.uint8])
def test_every_dtype_can_be_drawn(dtype: type) -> None:
    for recipe, generator in generators(0):
        values = draw(recipe, (2, 3), np.dtype(dtype), generator)
        assert values.dtype == dtype
        assert values.shape == (2, 3)


def test_approximation_adds_up_over_cases() -> None:
    dense, masked = {"y": np.array([[3.0, 4.0]])}, {"y": np.array([[5.0, 4.0]])}
    found = approximation([Change.between(dense, masked), Change.between(dense, dense)])
    assert found is not None
    assert found.max_abs == 2
    assert found.relative_l2 == pytest.approx(np.sqrt(4 / 50))
    assert found.top1_agreement == 0.5
    assert approximation([]) is None
