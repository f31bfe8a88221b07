"""Masks on models whose weights are shared, computed, or equal: the verdict must not take that for a fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

import spdexport
from spdexport.verification.result import Status, Verification


def verified(module: nn.Module, x: torch.Tensor, folder: Path, masks: dict[str, Any], **options: Any) -> Verification:
    save_file({name: torch.tensor(mask, dtype=torch.float32) for name, mask in masks.items()}, folder / "m.safetensors")
    result = spdexport.convert(module, folder / "m.onnx", inputs=x, masks=folder / "m.safetensors", **options)
    assert result.verification is not None
    return result.verification


class TiedHead(nn.Module):
    """A language model whose head is its embedding, as a module or as a function."""

    def __init__(self, *, as_function: bool) -> None:
        super().__init__()
        self.words, self.between, self.as_function = nn.Embedding(12, 8), nn.Linear(8, 8), as_function
        if not as_function:
            self.head = nn.Linear(8, 12, bias=False)
            self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y = self.between(self.words(ids)).relu()
        return functional.linear(y, self.words.weight) if self.as_function else self.head(y)


@pytest.mark.parametrize("as_function", [False, True])
def test_a_masked_head_leaves_the_embedding_that_it_is_tied_to(as_function: bool, tmp_path: Path) -> None:
    module, ids = TiedHead(as_function=as_function), torch.randint(0, 12, (2, 5))
    name = "words" if as_function else "head"
    found = verified(module, ids, tmp_path, {name: [1, 1, 0, 0, 1, 0, 0, 0]})
    assert found.verdict is Status.PASS
    capture = next(edge for edge in found.edges if edge.edge == "capture")
    assert ("computed or shared" in (capture.reason or "")) == as_function


def test_a_module_with_computed_weights_is_judged_by_its_own_rounding(tmp_path: Path) -> None:
    """Its masked outputs, and the rounding that they explain, are much smaller than its own."""
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 8, 3)), nn.ReLU(), nn.Conv1d(8, 4, 1))
    found = verified(module, torch.randn(2, 3, 9), tmp_path, {"2": [1e-6] * 4, "0": [1] * 8})
    assert found.verdict is Status.PASS


class Normalized(nn.Conv2d):
    """A convolution that has a weight, and computes with another one made of it, of the same shape."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = torch.linalg.vector_norm(self.weight, dim=(1, 2, 3), keepdim=True)
        return functional.conv2d(x, 2 * self.weight / norm, self.bias)


class Product(nn.Module):
    """A layer as Hugging Face's ``Conv1D`` has it: its weight is (in, out), and square here."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize(
    ("module", "shape"), [(Normalized(3, 4, 3), (2, 3, 8, 8)), (Product(), (3, 6))], ids=["normalized", "product"]
)
def test_a_weight_that_is_stored_otherwise_is_exchanged_rightly_or_not_at_all(
    module: nn.Module, shape: tuple[int, ...], tmp_path: Path
) -> None:
    found = verified(
        nn.Sequential(module),
        torch.randn(shape),
        tmp_path,
        {"0": [1, 1, 0, 0] if len(shape) == 4 else [1, 1, 0, 0, 0, 0]},
    )
    assert found.verdict is Status.PASS


class TwoOfZeros(nn.Module):
    """Layers on one input that are both zero, as offsets and gates are initialized: their V is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.offsets, self.gates = nn.Linear(6, 6), nn.Linear(6, 8), nn.Linear(6, 8)
        for layer in (self.offsets, self.gates):
            nn.init.zeros_(layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).relu()
        return y.sum(-1, keepdim=True) + self.offsets(y) * torch.sigmoid(self.gates(y))


@pytest.mark.parametrize("form", ["factorized", "auto"])
def test_layers_that_share_their_v_are_compared_one_by_one(form: str, tmp_path: Path) -> None:
    found = verified(TwoOfZeros(), torch.randn(3, 6), tmp_path, {"first": [1, 1, 1, 0, 0, 0]}, form=form)
    assert found.verdict is Status.PASS


class AddsADeadLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.dead, self.last = nn.Linear(6, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 4)
        self.norm = nn.LayerNorm(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        dead = self.dead(y)
        return self.last(self.norm(y + dead)) + self.last(self.norm(dead))


def test_a_sum_with_zeros_is_removed_also_where_no_channel_can_be(tmp_path: Path) -> None:
    found = verified(AddsADeadLayer(), torch.randn(3, 6), tmp_path, {"dead": [0] * 5}, form="auto")
    assert found.verdict is Status.PASS
