from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from small_nets import image
from subjects import make_subject

from spdexport.loading.model import ExampleInputs
from spdexport.verification import recipes
from spdexport.verification.check import Check
from spdexport.verification.result import Status
from spdexport.verification.torch_source import verify_subject

if TYPE_CHECKING:
    from pathlib import Path

    from spdexport.verification.torch_source import Subject


def test_approximation_is_of_the_users_inputs_else_of_ordinary_ones(
    digits: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "RECIPES", recipes.RECIPES[:1])
    normal = verify_subject(digits, Check()).approximation
    large = recipes.Recipe("large", 1, lambda shape, random: 1e3 * random.standard_normal(shape))
    monkeypatch.setattr(recipes, "RECIPES", (*recipes.RECIPES, large))
    found = verify_subject(digits, Check())
    assert len(found.inputs) == 2
    assert found.approximation == normal
    assert normal is not None

    own = ExampleInputs(args=(torch.full((4, 1, 16, 16), 0.5),), origin="mine")
    given = verify_subject(replace(digits, example=own, own_inputs=True), Check())
    assert given.inputs[0] == "given by mine"
    assert given.approximation is not None
    assert given.approximation.max_abs < normal.max_abs


def test_a_program_has_no_capture_edge(conv_bn: Subject) -> None:
    found = verify_subject(replace(conv_bn, module=None), Check())
    capture = found.edges[0]
    assert (capture.edge, capture.status) == ("capture", Status.NOT_RUN)
    assert "the source is a program already" in capture.reason
    assert found.verdict is Status.PASS


def test_another_module_fails_at_capture(conv_bn: Subject) -> None:
    assert conv_bn.module is not None
    module = torch.nn.Sequential(*conv_bn.module.children(), torch.nn.Softmax(-1)).eval()
    found = verify_subject(replace(conv_bn, module=module), Check())
    assert found.edges[0].status is Status.FAIL
    assert all(e.status is not Status.FAIL for e in found.edges[1:])


def test_another_rewrite_fails_at_rewrite_and_names_the_layer(five_convs: Subject, tmp_path: Path) -> None:
    other = make_subject(tmp_path, _one_weight_off(five_convs), {"inputs": image(size=8)})
    found = {e.edge: e for e in verify_subject(replace(five_convs, effective=other.effective), Check()).edges}
    assert found["rewrite"].status is Status.FAIL
    assert found["rewrite"].first_divergence == "4"


def test_nan_in_the_users_inputs_is_inconclusive(conv_bn: Subject) -> None:
    own = ExampleInputs(args=(torch.full((2, 3, 12, 12), torch.nan),), origin="mine")
    found = {e.edge: e for e in verify_subject(replace(conv_bn, example=own), Check()).edges}
    assert found["weights"].status is Status.PASS
    for edge in ("capture", "rewrite", "export", "optimize"):
        assert found[edge].status is Status.INCONCLUSIVE
        assert found[edge].reason == "the reference itself is NaN (the input input has NaN), on input given by mine"


def _one_weight_off(subject: Subject) -> torch.nn.Module:
    import copy

    module = copy.deepcopy(subject.module)
    assert isinstance(module, torch.nn.Sequential)
    with torch.no_grad():
        module[4].weight[0, 0, 0, 0] *= 1.5  # type: ignore[index,operator]
    return module


class Drawing(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y + torch.randn_like(y)


@pytest.mark.parametrize(
    ("module", "x", "why"),
    [
        (Drawing(), image(), "the output is random"),
        (torch.nn.Conv2d(3, 4, 3), torch.ones(0, 3, 8, 8), "the outputs are empty"),
    ],
    ids=["random", "empty"],
)
def test_outputs_that_cannot_be_compared_are_inconclusive(
    module: torch.nn.Module, x: torch.Tensor, why: str, tmp_path: Path
) -> None:
    subject = make_subject(tmp_path, module, {"inputs": x})
    found = {e.edge: e for e in verify_subject(subject, Check()).edges}
    for edge in ("capture", "rewrite", "export", "optimize"):
        assert found[edge].status is Status.INCONCLUSIVE
        assert found[edge].reason.startswith(why)


def test_a_transposed_layer_as_wide_as_it_is_deep_is_exchanged_in_the_layout_that_it_is_stored_in(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    module = torch.nn.ConvTranspose2d(4, 4, 3)
    subject = make_subject(tmp_path, module, {"inputs": torch.randn(2, 4, 8, 8), "rank": 2})
    assert subject.plan.approximates
    found = {e.edge: e for e in verify_subject(subject, Check()).edges}
    assert found["capture"].status is Status.PASS
