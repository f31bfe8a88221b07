"""What is trained comes back: the module of ``factorize(trainable=True)``, its state dict, and ``--components``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import spdexport
from spdexport import ComponentsError, UsageError

FORMS: list[dict[str, Any]] = [
    {"form": "factorized", "rank": 5},
    {"form": "spatial", "rank": 8},
    {"form": "tucker2", "rank": 6},
    {"form": "auto", "energy": 0.6, "lane_width": 1},
]


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(16)
        self.up = torch.nn.ConvTranspose2d(16, 16, 3, stride=2)
        self.head = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(torch.relu(self.up(x)).mean((2, 3)))


def a_net() -> Net:
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(16, 8, 9, 9))  # running statistics
    return net.eval()


X = torch.randn(4, 8, 9, 9, generator=torch.Generator().manual_seed(1))


def tuned(net: Net, **options: Any) -> torch.nn.Module:
    module = spdexport.factorize(net, inputs=X, trainable=True, **options)
    module.train()
    assert module.training
    frozen = [p for name, p in module.named_parameters() if name.startswith("norm")]
    optimizer = torch.optim.SGD([p for p in module.parameters() if all(p is not f for f in frozen)], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        (module(X) - 1).square().mean().backward()
        optimizer.step()
    module.eval()
    assert not module.training
    return module


@pytest.mark.parametrize("options", FORMS, ids=lambda options: options["form"])
def test_a_tuned_state_dict_comes_back(options: dict[str, Any], tmp_path: Path) -> None:
    net = a_net()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    module = tuned(net, **options)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} of the module that was given"
    state = module.state_dict()
    assert not torch.equal(state["head.bias"], before["head.bias"])
    torch.save(state, tmp_path / "tuned.pt")
    again = spdexport.factorize(net, inputs=X, components=tmp_path / "tuned.pt").module()
    torch.testing.assert_close(again(X), module(X), rtol=1e-5, atol=1e-6)
    assert (again(X) - net(X)).abs().max() > 1e-3


def test_the_file_of_a_tuned_model_is_proved(tmp_path: Path) -> None:
    net, components = a_net(), tmp_path / "tuned.pt"
    torch.save(tuned(net, form="tucker2", rank=6).state_dict(), components)
    result = spdexport.convert(net, tmp_path / "tuned.onnx", inputs=X, components=components, verify=False)
    assert [(layer.form, layer.given) for layer in result.plan.layers] == [
        ("tucker2", True),
        ("tucker2", True),
        ("dense", True),
    ]
    told = spdexport.verify(tmp_path / "tuned.onnx", against=net, inputs=X, components=components)
    assert told.verdict == "pass"
    assert told.approximation is not None
    assert told.approximation.relative_l2 > 0.01


def test_all_parameters_take_gradients() -> None:
    module = spdexport.factorize(a_net(), inputs=X, trainable=True, form="spatial")
    assert all(p.requires_grad for p in module.parameters())
    assert {n for n, _ in module.named_parameters()} >= {"conv.stages.0.weight", "conv.stages.1.weight", "head.bias"}
    module(X).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_a_layer_that_stayed_dense_comes_back_too(tmp_path: Path) -> None:
    net = a_net()
    module = spdexport.factorize(net, inputs=X, trainable=True, form="spatial")
    with torch.no_grad():
        module.get_parameter("head.weight").mul_(1.5)
    torch.save(module.state_dict(), tmp_path / "tuned.pt")
    plan = spdexport.inspect(net, inputs=X, components=tmp_path / "tuned.pt").plan
    head = next(layer for layer in plan.layers if layer.name == "head")
    assert (head.form, head.given, round(head.truncation or 0, 3)) == ("dense", True, 0.5)


def test_batch_norm_that_was_trained_belongs_into_the_model(tmp_path: Path) -> None:
    net = a_net()
    state = spdexport.factorize(net, inputs=X, trainable=True, form="spatial").state_dict()
    state["norm.weight"] = state["norm.weight"] * 2
    torch.save(state, tmp_path / "tuned.pt")
    with pytest.raises(
        ComponentsError, match=r"other numbers in norm\.weight than the model, and only layers"
    ) as caught:
        spdexport.convert(net, tmp_path / "tuned.onnx", inputs=X, components=tmp_path / "tuned.pt")
    assert "as the source" in caught.value.hint


def test_the_names_of_v_and_u_come_back_as_well(tmp_path: Path) -> None:
    """The program of ``factorize`` without ``trainable`` calls them so, as filters."""
    net = a_net()
    state = dict(spdexport.factorize(net, inputs=X, rank=5).state_dict)
    assert {"conv.V", "conv.U", "head.bias"} <= state.keys()
    state["head.bias"] = state["head.bias"] + 1
    torch.save(state, tmp_path / "tuned.pt")
    module = spdexport.factorize(net, inputs=X, components=tmp_path / "tuned.pt").module()
    plain = spdexport.factorize(net, inputs=X, rank=5).module()
    torch.testing.assert_close(module(X), plain(X) + 1)


def test_components_with_a_bias_beside_them(tmp_path: Path) -> None:
    """V is (patch, C) and U is (C, out) in a file of components."""
    net, generator = a_net(), torch.Generator().manual_seed(2)
    V, U = torch.randn(16, 3, generator=generator), torch.randn(3, 16, generator=generator)
    bias = torch.randn(16, generator=generator)
    torch.save({"head.V": V, "head.U": U, "head.bias": bias}, tmp_path / "head.pt")
    module = spdexport.factorize(net, inputs=X, components=tmp_path / "head.pt").module()
    with torch.no_grad():
        net.head.weight.copy_((V @ U).T)
        net.head.bias.copy_(bias)
    torch.testing.assert_close(module(X), net(X), rtol=1e-4, atol=1e-4)


def test_what_would_not_come_back_is_not_trained(tmp_path: Path) -> None:
    net = a_net()
    torch.save({"head.V": torch.randn(16, 3), "head.U": torch.randn(3, 16)}, tmp_path / "head.pt")
    with pytest.raises(UsageError, match="head has the weight delta beside its stages"):
        spdexport.factorize(net, inputs=X, components=tmp_path / "head.pt", trainable=True)
    torch.save({"head": torch.tensor([1.0, 0.5, 0.0])}, tmp_path / "masks.pt")
    with pytest.raises(UsageError, match="head has a mask beside its stages"):
        spdexport.factorize(
            net, inputs=X, components=tmp_path / "head.pt", masks=tmp_path / "masks.pt", keep_masks=True, trainable=True
        )
