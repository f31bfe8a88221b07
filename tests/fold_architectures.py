"""Networks whose papers re-parameterize them, written from the description: each block a sum that is one convolution.

Each takes its published widths, or narrow ones; ``reparameterized`` gives what the paper makes of the trained model,
with formulas of its own, against which ``benchmarks/fold.py`` measures.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable


def normed(*layers: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.BatchNorm2d(channels))


class Block(nn.Module):
    """Branches, added up, and an activation behind them: one convolution each."""

    def __init__(self, *branches: nn.Module, relu: bool = True) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *rest = self.branches
        y = first(x)
        for branch in rest:
            y = y + branch(x)
        return self.relu(y)


class Classifier(nn.Sequential):
    """Blocks, the mean over locations, and a linear layer."""

    def __init__(self, *blocks: nn.Module, channels: int, classes: int) -> None:
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def repvgg_block(in_: int, out: int, stride: int) -> Block:
    """3x3 and 1x1, each with a norm, and a norm alone where the shape stays."""
    branches = [
        normed(nn.Conv2d(in_, out, 3, stride, 1, bias=False), channels=out),
        normed(nn.Conv2d(in_, out, 1, stride, bias=False), channels=out),
    ]
    return Block(*branches, *([nn.BatchNorm2d(in_)] if in_ == out and stride == 1 else []))


def repvgg_a0(*, published: bool) -> nn.Module:
    """RepVGG-A0 (Ding et al., 2021): stages of 1, 2, 4, 14 and 1 blocks, widths 48, 48, 96, 192 and 1280."""
    widths = (48, 48, 96, 192, 1280) if published else (4, 4, 6, 8, 10)
    blocks, in_ = [], 3
    for width, number in zip(widths, (1, 2, 4, 14, 1) if published else (1, 2, 1, 2, 1), strict=True):
        for index in range(number):
            blocks.append(repvgg_block(in_, width, 2 if index == 0 else 1))
            in_ = width
    return Classifier(*blocks, channels=in_, classes=1000 if published else 5)


def mobileone_block(in_: int, out: int, kernel: int, stride: int, groups: int, number: int) -> Block:
    """As many equal branches as the model over-parameterizes by, a 1x1 one beside a larger kernel, and a norm alone."""
    pad = kernel // 2
    branches: list[nn.Module] = [
        normed(nn.Conv2d(in_, out, kernel, stride, pad, groups=groups, bias=False), channels=out) for _ in range(number)
    ]
    if kernel > 1:
        branches.append(normed(nn.Conv2d(in_, out, 1, stride, groups=groups, bias=False), channels=out))
    return Block(*branches, *([nn.BatchNorm2d(in_)] if in_ == out and stride == 1 else []))


def mobileone_s0(*, published: bool) -> nn.Module:
    """MobileOne-S0 (Vasu et al., 2023): depthwise and pointwise blocks of four branches, widths 48 to 1024."""
    number = 4 if published else 2
    first, widths = (48, (48, 128, 256, 1024)) if published else (4, (4, 6, 8, 10))
    blocks, in_ = [mobileone_block(3, first, 3, 2, 1, 1)], first
    for width, depth in zip(widths, (2, 8, 10, 1) if published else (1, 1, 2, 1), strict=True):
        for index in range(depth):
            blocks.append(mobileone_block(in_, in_, 3, 2 if index == 0 else 1, in_, number))
            blocks.append(mobileone_block(in_, width, 1, 1, 1, number))
            in_ = width
    return Classifier(*blocks, channels=in_, classes=1000 if published else 5)


def acnet(*, published: bool) -> nn.Module:
    """ACNet (Ding et al., 2019), its Cifar-quick form: each square kernel beside its skeleton, 3x1 and 1x3."""
    blocks, in_ = [], 3
    shapes = ((32, 5), (32, 5), (64, 5)) if published else ((4, 3), (6, 5), (8, 3))
    for width, kernel in shapes:
        pad = kernel // 2
        blocks.append(
            Block(
                normed(nn.Conv2d(in_, width, kernel, 1, pad, bias=False), channels=width),
                normed(nn.Conv2d(in_, width, (kernel, 1), 1, (pad, 0), bias=False), channels=width),
                normed(nn.Conv2d(in_, width, (1, kernel), 1, (0, pad), bias=False), channels=width),
            )
        )
        blocks.append(nn.MaxPool2d(3, 2, 1))
        in_ = width
    return Classifier(*blocks, channels=in_, classes=10)


def dbb_block(in_: int, out: int, stride: int) -> Block:
    """A diverse branch block (Ding et al., 2021): 3x3, 1x1, 1x1 with average pooling, and 1x1 with 3x3.

    Where a 1x1 convolution with a norm stands in front of a kernel, it runs on the zeros around the input as well, so
    that what it pads with is its own bias: the padding of the block comes first.
    """
    return Block(
        normed(nn.Conv2d(in_, out, 3, stride, 1, bias=False), channels=out),
        normed(nn.Conv2d(in_, out, 1, stride, bias=False), channels=out),
        nn.Sequential(
            nn.ConstantPad2d(1, 0.0),
            normed(nn.Conv2d(in_, out, 1, bias=False), channels=out),
            normed(nn.AvgPool2d(3, stride), channels=out),
        ),
        nn.Sequential(
            nn.ConstantPad2d(1, 0.0),
            normed(nn.Conv2d(in_, in_, 1, bias=False), channels=in_),
            normed(nn.Conv2d(in_, out, 3, stride, bias=False), channels=out),
        ),
    )


def dbb(*, published: bool) -> nn.Module:
    """A VGG of diverse branch blocks."""
    widths = (64, 128, 256) if published else (4, 6, 8)
    blocks, in_ = [], 3
    for width in widths:
        blocks += [dbb_block(in_, width, 2), dbb_block(width, width, 1)]
        in_ = width
    return Classifier(*blocks, channels=in_, classes=10)


class Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def replknet(*, published: bool) -> nn.Module:
    """RepLKNet's block (Ding et al., 2022): 1x1, a depthwise 31x31 beside a 5x5, 1x1, each with a norm."""
    width, large = (128, 31) if published else (6, 13)
    blocks: list[nn.Module] = [normed(nn.Conv2d(3, width, 3, 2, 1, bias=False), channels=width), nn.ReLU()]
    blocks.extend(
        Residual(
            normed(nn.Conv2d(width, width, 1, bias=False), channels=width),
            nn.ReLU(),
            Block(
                normed(nn.Conv2d(width, width, large, 1, large // 2, groups=width, bias=False), channels=width),
                normed(nn.Conv2d(width, width, 5, 1, 2, groups=width, bias=False), channels=width),
            ),
            normed(nn.Conv2d(width, width, 1, bias=False), channels=width),
        )
        for _ in range(2 if published else 1)
    )
    return Classifier(*blocks, channels=width, classes=10)


class ConvLora(nn.Module):
    """A convolution and a low-rank one beside it, with a convolution in its middle (Conv-LoRA, Zhong et al., 2024)."""

    def __init__(self, in_: int, out: int, kernel: int, stride: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Conv2d(in_, out, kernel, stride, kernel // 2, bias=False)
        self.down = nn.Conv2d(in_, rank, 1, bias=False)
        self.middle = nn.Conv2d(rank, rank, kernel, stride, kernel // 2, bias=False)
        self.up = nn.Conv2d(rank, out, 1, bias=False)
        self.dropout, self.scale = nn.Dropout(0.1), 8 / rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.middle(self.down(self.dropout(x)))) * self.scale


class BasicBlock(nn.Module):
    def __init__(self, in_: int, out: int, stride: int, rank: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = ConvLora(in_, out, 3, stride, rank), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = ConvLora(out, out, 3, 1, rank), nn.BatchNorm2d(out)
        plain = in_ == out and stride == 1
        self.shortcut = nn.Identity() if plain else normed(ConvLora(in_, out, 1, stride, rank), channels=out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def lora_resnet18(*, published: bool) -> nn.Module:
    """A ResNet-18 with Conv-LoRA on every convolution."""
    widths, rank = ((64, 128, 256, 512), 4) if published else ((4, 6), 2)
    blocks: list[nn.Module] = [ConvLora(3, widths[0], 7, 2, rank), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    blocks.append(nn.MaxPool2d(3, 2, 1))
    in_ = widths[0]
    for index, width in enumerate(widths):
        blocks += [BasicBlock(in_, width, 1 if index == 0 else 2, rank), BasicBlock(width, width, 1, rank)]
        in_ = width
    return Classifier(*blocks, channels=in_, classes=1000 if published else 5)


def one_convolution(block: Block) -> nn.Module | None:
    """What the papers make of a block of trained branches, each a convolution with a norm, or a norm alone.

    A norm is divided out into the weight in front of it, small kernels are set into the middle of the largest, and the
    input itself is a 1x1 kernel of ones on the diagonal. None for a block with other branches.
    """
    parts = [list(branch) if isinstance(branch, nn.Sequential) else [branch] for branch in block.branches]
    convolutions = [part[0] for part in parts if isinstance(part[0], nn.Conv2d)]
    kinds = [[type(layer) for layer in part] for part in parts]
    if not convolutions or any(k not in ([nn.Conv2d, nn.BatchNorm2d], [nn.BatchNorm2d]) for k in kinds):
        return None
    groups, stride = convolutions[0].groups, convolutions[0].stride
    size = [max(conv.kernel_size[axis] for conv in convolutions) for axis in (0, 1)]
    out, in_ = convolutions[0].out_channels, convolutions[0].in_channels
    made = nn.Conv2d(in_, out, tuple(size), stride, (size[0] // 2, size[1] // 2), groups=groups)
    weight, bias = torch.zeros_like(made.weight, dtype=torch.float64), torch.zeros(out, dtype=torch.float64)
    for part in parts:
        norm = part[-1]
        scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
        if isinstance(part[0], nn.Conv2d):
            kernel = part[0].weight.double()
        else:
            kernel = torch.eye(in_ // groups, dtype=torch.float64).repeat(groups, 1).reshape(out, in_ // groups, 1, 1)
        top, left = (size[0] - kernel.shape[2]) // 2, (size[1] - kernel.shape[3]) // 2
        kernel = nn.functional.pad(kernel, (left, left, top, top))
        weight += scale.reshape(-1, 1, 1, 1) * kernel
        bias += norm.bias.double() - norm.running_mean.double() * scale
    made.weight.data, made.bias.data = weight.float(), bias.float()
    return nn.Sequential(made, block.relu)


def reparameterized(module: nn.Module) -> nn.Module | None:
    """A copy of a network with one convolution for each block; None where a block has no such paper's formula."""
    copy = deepcopy(module)
    blocks = [(name, block) for name, block in copy.named_modules() if isinstance(block, Block)]
    for name, block in blocks:
        made = one_convolution(block)
        if made is None:
            return None
        copy.set_submodule(name, made)
    return copy.eval() if blocks else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A network, and what is left of it when it is folded: for narrow widths, and as published.

    Attributes:
        build: Makes it, with random weights.
        size: Height and width of its input.
        convolutions: How many convolutions are left.
        sums: How many sums: its residuals.
    """

    build: Callable[..., nn.Module]
    size: tuple[int, int]
    convolutions: tuple[int, int]
    sums: tuple[int, int] = (0, 0)

    def make(self, *, published: bool = False) -> tuple[nn.Module, torch.Tensor]:
        """The network in inference, every norm with numbers of its own, and an input of two samples."""
        torch.manual_seed(0)
        module = self.build(published=published).eval()
        generator = torch.Generator().manual_seed(1)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for values, low in ((layer.running_mean, -0.2), (layer.running_var, 0.6), (layer.weight.data, 0.5),
                                    (layer.bias.data, -0.2)):  # fmt: skip
                    values.uniform_(low, low + 0.4, generator=generator)
        size = self.size[published]
        return module, torch.rand(2, 3, size, size, generator=generator)


ARCHITECTURES = {
    "RepVGG-A0": Architecture(build=repvgg_a0, size=(32, 224), convolutions=(7, 22)),
    "MobileOne-S0": Architecture(build=mobileone_s0, size=(48, 224), convolutions=(11, 43)),
    "ACNet": Architecture(build=acnet, size=(16, 32), convolutions=(3, 3)),
    "DBB": Architecture(build=dbb, size=(18, 64), convolutions=(6, 6)),
    "RepLKNet": Architecture(build=replknet, size=(20, 64), convolutions=(4, 7), sums=(1, 2)),
    "Conv-LoRA ResNet-18": Architecture(build=lora_resnet18, size=(32, 224), convolutions=(10, 20), sums=(4, 8)),
}
