"""Small models of many kinds: seeded, with batch norms that have seen data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

Net = tuple[nn.Module, tuple[torch.Tensor, ...]]


def settled(module: nn.Module, *inputs: torch.Tensor) -> Net:
    """The module in eval mode, its batch norms with statistics of random data, and example inputs."""
    torch.manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
    return module.eval(), inputs


def image(channels: int = 3, size: int = 12) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(7))


def conv_bn() -> Net:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    return settled(net, image())


def five_convs() -> Net:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for i in range(5):
        layers += [nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1), nn.ReLU()]
    return settled(nn.Sequential(*layers), image(size=8))


def geometries() -> Net:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding="same", dilation=2, groups=2), nn.ReLU(),
        nn.Conv2d(8, 8, 4, padding="same"), nn.GELU(),
        nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8), nn.SiLU(),
        nn.Conv2d(8, 6, (1, 3), stride=(2, 1), dilation=(1, 2)), nn.Sigmoid(),
    )  # fmt: skip
    return settled(net, image(4, 16))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.stem(x))
        return {"map": self.head(y), "scores": self.fc(y.mean((2, 3))).softmax(-1)}


class Classifier(nn.Module):
    """Gives scores and an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(800, 6))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.body(x)
        return y, y.argmax(-1)


class Scaled(nn.Module):
    def __init__(self, inner: nn.Module, factor: float, shift: float = 0.0) -> None:
        super().__init__()
        self.inner, self.factor, self.shift = inner, factor, shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.factor + self.shift


def two_outputs() -> Net:
    torch.manual_seed(0)
    return settled(TwoOutputs(), image())


def argmax() -> Net:
    torch.manual_seed(0)
    return settled(Classifier(), image())


def large_outputs() -> Net:
    module, inputs = conv_bn()
    return Scaled(module, 30.0, 100.0), inputs


def tiny_outputs() -> Net:
    module, inputs = conv_bn()
    return Scaled(module, 1e-6), inputs


def exact_zeros() -> Net:
    torch.manual_seed(0)
    return settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()), image())


def softmax() -> Net:
    module, inputs = conv_bn()
    return nn.Sequential(module, nn.Softmax(-1)), inputs


def half() -> Net:
    module, (x,) = exact_zeros()
    return module.half(), (x.half(),)


def half_bn() -> Net:
    module, (x,) = conv_bn()
    return module.half(), (x.half(),)


def linear_double() -> Net:
    torch.manual_seed(0)
    x = torch.randn(2, 6, dtype=torch.float64)
    return settled(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double(), x)


def deep() -> Net:
    """200 convolutions in a row, with residual connections every two of them."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 0.1 * self.second(torch.relu(self.first(x)))

    torch.manual_seed(0)
    return settled(nn.Sequential(*(Block() for _ in range(100))), image(4, 6))


def near_100() -> Net:
    """Outputs near 100 from an unnormalized network, not by a constant that is added."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))
    module, inputs = settled(net, image())
    module(*inputs)
    with torch.no_grad():
        module[-1].weight *= 300  # type: ignore[index,operator]
    return module, inputs


class Logits(nn.Module):
    """A transformers model with its logits as the only output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=x).logits


def resnet() -> Net:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4)
    return settled(Logits(ResNetForImageClassification(config)), image(3, 32))


def mobilenet() -> Net:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    torch.manual_seed(0)
    # With weights of the default size, nothing of the input arrives at the output.
    config = MobileNetV2Config(image_size=32, depth_multiplier=0.25, num_labels=4, initializer_range=0.25)
    return settled(Logits(MobileNetV2ForImageClassification(config)), image(3, 32))


def convnext() -> Net:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, num_labels=4, image_size=32)
    return settled(Logits(ConvNextForImageClassification(config)), image(3, 32))


def vit() -> Net:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=4,
        num_labels=4,
    )  # fmt: skip
    return settled(Logits(ViTForImageClassification(config)), image(3, 16))


SMALL: tuple[Callable[[], Net], ...] = (
    conv_bn, five_convs, geometries, two_outputs, argmax, large_outputs, tiny_outputs, exact_zeros, softmax, half,
    half_bn, linear_double, near_100,
)  # fmt: skip

TRANSFORMERS: tuple[Callable[[], Net], ...] = (resnet, mobilenet, convnext, vit)
