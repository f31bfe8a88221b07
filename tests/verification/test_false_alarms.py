"""Small models of many kinds that are all right pass; `benchmarks/false_alarms.py` tries each with many seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
from alarm_kinds import KINDS, alarm_net

from spdexport import pipeline
from spdexport.verification.compare import FACTOR
from spdexport.verification.result import Status

if TYPE_CHECKING:
    from pathlib import Path

SAMPLED = {
    "GridSample, nearest": 40, "Einsum": 40, "DFT": 40, "Resize, cubic": 17, "LSTM": 17, "TopK and gather": 40,
    "sort of Relu": 12, "QuantizeLinear": 17, "Cast to int": 17, "one logit, SiLU near 0": 8, "running sums": 17,
    "ReduceL2": 32, "NonMaxSuppression": 8, "If": 8,
}  # fmt: skip
"""Kinds, and one size of each, that stand for the others."""


def assert_passes(kind: str, size: int, seed: int, folder: Path) -> None:
    """Check the file of a kind by itself."""
    file = folder / "m.onnx"
    onnx.save(alarm_net(kind, size, seed), file)
    found = pipeline.verify(file, seed=seed)
    assert found.verdict is Status.PASS, (kind, size, seed, found.edges)
    assert all((edge.noise_ratio or 0.0) <= FACTOR for edge in found.edges)


@pytest.mark.parametrize("kind", SAMPLED)
def test_a_small_model_that_is_right_passes(kind: str, tmp_path: Path) -> None:
    assert_passes(kind, SAMPLED[kind], 0, tmp_path)


@pytest.mark.parametrize(("size", "seed"), [(17, 10), (40, 18)])
def test_boxes_smaller_than_the_rounding_of_their_ends_may_overlap(size: int, seed: int, tmp_path: Path) -> None:
    assert_passes("NonMaxSuppression", size, seed, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_small_models_of_every_kind_pass_in_every_size(kind: str, tmp_path: Path) -> None:
    for seed, size in enumerate(KINDS[kind][1]):
        assert_passes(kind, size, seed, tmp_path)
