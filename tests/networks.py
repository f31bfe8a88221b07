"""Small networks that several tests use."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, into: int, out: int, kernel: int = 3, **geometry: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, kernel, bias=False, **geometry)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm2d(out)
        self.norm.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr,operator]
        self.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr,operator]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(self.norm(self.conv(x)))


class SmallNet(nn.Module):
    """Every geometry that Conv2d knows, and a linear layer: (n, 3, 16, 16) to (n, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 8, 3, padding=1)
        self.strided = Block(8, 8, (3, 5), stride=(2, 1), padding=(1, 2))
        self.dilated = Block(8, 8, 3, dilation=2, padding="same")
        self.grouped = Block(8, 8, 3, groups=2, padding=1)
        self.even = Block(8, 8, 2, padding="same")
        self.depthwise = Block(8, 8, 3, groups=8, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.dilated(self.strided(self.stem(x)))
        x = x + self.depthwise(self.even(self.grouped(x)))
        return self.head(x.mean((2, 3)))


class TwoInputs(nn.Module):
    """Two inputs, one of them optional, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        features = self.conv(image)
        if scale is not None:
            features = features * scale[:, None, None, None]
        return {"features": features, "mean": features.mean((1, 2, 3))}


class CalledTwice(nn.Module):
    """One convolution in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(functional.relu(self.conv(x)))


class Functional(nn.Module):
    """Convolutions without modules, one of whose weights is used elsewhere too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 3, 3, 3))
        self.second = nn.Parameter(torch.randn(4, 6, 1, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = functional.conv2d(functional.relu(functional.conv2d(x, self.first)), self.second)
        return y, y.mean() * self.first.sum()


class FixedBatch(nn.Module):
    """A model that works for a batch of 2 only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(2, -1)


class DataDependent(nn.Module):
    """Control flow that depends on values, which torch.export cannot trace."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) if x.sum() > 0 else self.conv(-x)
