"""Small models in which kernels round more than products do: long sums, norms, saturated functions, single logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from small_nets import Net


class Head(nn.Module):
    """A convolution, an activation, the mean over all places, a linear layer and a last function."""

    def __init__(
        self, last: nn.Module | None = None, *, act: nn.Module | None = None, out: int = 1, bias: float | None = None
    ) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 3, padding=1), act or nn.ReLU()
        self.pool, self.fc, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(8, out), last or nn.Identity()
        if bias is not None:
            nn.init.constant_(self.fc.bias, bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.fc(self.pool(self.act(self.conv(x))).flatten(1)))
        return result


class Sums(nn.Module):
    """A linear layer, and running sums over time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x).cumsum(1))
        return result


class Statistics(nn.Module):
    """The variance and the norm of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.conv(x))
        result: torch.Tensor = self.fc(y.var((2, 3))) + self.fc(y.norm(dim=(2, 3)))
        return result


class Recurrent(nn.Module):
    """An LSTM and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.lstm(x)[0])
        return result


def images(size: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(2, 3, size, size),)


def _conv(*layers: nn.Module, out: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, out, 3, padding=1), *layers)


NETS: dict[str, Callable[[], Net]] = {
    "mean over 32 x 32": lambda: (Head(out=10), images(32)),
    "mean over 64 x 64": lambda: (Head(out=10), images(64)),
    "mean over 128 x 128": lambda: (Head(out=4), images(128)),
    "mean in float16": lambda: (Head(out=4).half(), tuple(x.half() for x in images(64))),
    "group norm": lambda: (_conv(nn.GroupNorm(2, 8), nn.ReLU()), images(128)),
    "instance norm": lambda: (_conv(nn.InstanceNorm2d(4), nn.ReLU(), out=4), images(256)),
    "layer norm": lambda: (_conv(nn.LayerNorm([8, 64, 64])), images(64)),
    "windows of 16 x 16": lambda: (_conv(nn.ReLU(), nn.AvgPool2d(16)), images(64)),
    "variance and norm": lambda: (Statistics(), images(64)),
    "running sums": lambda: (Sums(), (torch.randn(2, 300, 8),)),
    "one logit, sigmoid": lambda: (Head(nn.Sigmoid()), images(16)),
    "one logit, sigmoid near 0": lambda: (Head(nn.Sigmoid(), bias=-10.0), images(16)),
    "one logit, SiLU": lambda: (Head(nn.SiLU()), images(16)),
    "one logit, tanh": lambda: (Head(nn.Tanh()), images(16)),
    "one logit, softplus near 0": lambda: (Head(nn.Softplus(), bias=-12.0), images(16)),
    "SiLU inside": lambda: (Head(act=nn.SiLU()), images(16)),
    "GELU": lambda: (Head(nn.GELU(), act=nn.GELU()), images(16)),
    "Mish": lambda: (Head(act=nn.Mish()), images(16)),
    "softmax": lambda: (Head(nn.Softmax(-1), out=50), images(16)),
    "log softmax": lambda: (Head(nn.LogSoftmax(-1), out=50), images(16)),
    "attention": lambda: (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (torch.randn(2, 50, 32),)),
    "LSTM": lambda: (Recurrent(), (torch.randn(2, 20, 8),)),
    "interpolation": lambda: (_conv(nn.Upsample(scale_factor=1.7, mode="bilinear"), out=4), images(24)),
}


def rounding_net(name: str, seed: int) -> Net:
    """The model of a name with the weights of a seed, and inputs."""
    torch.manual_seed(seed)
    module, inputs = NETS[name]()
    return module.eval(), inputs
