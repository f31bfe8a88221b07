from __future__ import annotations

import pytest
import torch
from torch import nn

from spdexport.reference.torch_reference import Noise, evaluate

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def program(module: nn.Module, *args: torch.Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module.eval(), args)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        y = self.fc(y + torch.arange(4, dtype=x.dtype))
        return y, y.argmax(-1)


def test_float64_is_what_the_double_module_gives() -> None:
    scores, top = evaluate(program(Net(), X), (X,))
    wanted, wanted_top = Net().eval().double()(X.double())
    assert scores.dtype is torch.float64
    assert torch.allclose(scores, wanted, rtol=1e-13, atol=1e-13)
    assert torch.equal(top, wanted_top)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_own_dtypes_are_what_the_module_gives(dtype: torch.dtype) -> None:
    module, x = Net().to(dtype), X.to(dtype)
    scores, _ = evaluate(program(module, x), (x,), float64=False)
    assert scores.dtype is dtype
    assert torch.equal(scores, module.eval()(x)[0])


def test_an_output_that_is_an_input_or_a_weight_is_promoted_too() -> None:
    class Through(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, self.w

    assert [v.dtype for v in evaluate(program(Through(), X), (X,))] == [torch.float64, torch.float64]


def test_noise_is_seeded_and_of_the_size_of_rounding() -> None:
    traced = program(nn.Conv2d(3, 4, 3, bias=False), X)

    def error(seed: int, u: float) -> torch.Tensor:
        return evaluate(traced, (X,), noise=Noise(seed=seed, unit_rounding=u))[0] - evaluate(traced, (X,))[0]

    assert torch.equal(error(0, 2**-24), error(0, 2**-24))
    assert not torch.equal(error(0, 2**-24), error(1, 2**-24))
    weight = next(iter(traced.state_dict.values())).double().abs()
    scale = 2**-24 * nn.functional.conv2d(X.double().abs(), weight)
    normal = error(0, 2**-24) / scale
    assert 0.8 < float(normal.detach().std()) < 1.2
    assert float((error(0, 2**-11) / error(0, 2**-24)).detach().median()) == pytest.approx(2**13, rel=1e-3)


def test_every_node_is_watched_once() -> None:
    seen: list[str] = []
    traced = program(Net(), X)
    evaluate(traced, (X,), watch=lambda name, _: seen.append(name))
    nodes = [n.name for n in traced.graph.nodes if n.op == "call_function" and "assert" not in n.name]
    assert seen == nodes


def test_the_program_and_the_default_dtype_are_left_alone() -> None:
    traced = program(Net(), X)
    before = {name: t.clone() for name, t in traced.state_dict.items()}
    evaluate(traced, (X,), noise=Noise(seed=0, unit_rounding=1e-3))
    assert torch.get_default_dtype() is torch.float32
    assert all(torch.equal(t, before[name]) and t.dtype == before[name].dtype for name, t in traced.state_dict.items())


@pytest.mark.parametrize("float64", [True, False])
def test_a_model_that_writes_to_its_inputs_and_buffers_writes_to_copies(float64: bool) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls.add_(1)
            x.mul_(2)
            self.total.add_(x.sum(0))
            return x + self.calls + self.total

    x = torch.arange(6.0).reshape(2, 3)
    program = torch.export.export(Counting(), (x.clone(),))
    kept = x.clone()
    for _ in range(2):
        (found,) = evaluate(program, (kept,), float64=float64)
        torch.testing.assert_close(found.double(), (2 * x + 1 + (2 * x).sum(0)).double())
        assert torch.equal(kept, x)
