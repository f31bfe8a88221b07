"""Networks for the benchmarks of compression, trained here in minutes on Fashion-MNIST, with the data beside them.

    python benchmarks/compress_nets.py FOLDER [--net resnet depthwise vit] [--seed 0]

Writes NET-SEED.pt (a state dict), held_out.npz (10,000 samples of the training file that no net is trained on: for
calibration and selection) and test.npz (the test file). A factory is `benchmarks/compress_nets.py:FashionResNet`,
`:FashionDepthwise` or `:FashionTransformer`. The images come from Debian's package `dataset-fashion-mnist`.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

DATA = "/usr/share/datasets/fashion-mnist"
HELD_OUT = 10_000
MEAN, STD = 0.2860, 0.3530


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and a 1x1 shortcut where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inner, H, W) to (N, outer, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class FashionResNet(nn.Module):
    """A residual net of 10.3 M multiply-accumulates for 28 x 28 images: stages of 32, 64 and 128 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.stage1 = ResidualBlock(32, 32, 1)
        self.stage2 = ResidualBlock(32, 64, 2)
        self.stage3 = ResidualBlock(64, 128, 2)
        self.head = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 1, 28, 28) to logits (N, 10)."""
        x = functional.relu(self.bn(self.stem(images)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(x.mean((2, 3)))


class InvertedBlock(nn.Module):
    """1x1 to four times the channels, 5x5 depthwise, 1x1 back, each with batch norm; residual where the shape stays."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inner
        self.layers = nn.Sequential(
            nn.Conv2d(inner, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 5, stride, 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.residual = stride == 1 and inner == outer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inner, H, W) to (N, outer, H / stride, W / stride)."""
        y = self.layers(x)
        return x + y if self.residual else y


class FashionDepthwise(nn.Module):
    """A net of inverted residuals, whose work is in 1x1 and depthwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.blocks = nn.Sequential(
            InvertedBlock(32, 32, 1),
            InvertedBlock(32, 48, 2),
            InvertedBlock(48, 48, 1),
            InvertedBlock(48, 96, 2),
            InvertedBlock(96, 96, 1),
        )
        self.head = nn.Linear(96, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 1, 28, 28) to logits (N, 10)."""
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class AttentionBlock(nn.Module):
    """Attention and a multilayer perceptron of four times the width, each behind a layer norm and beside a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, width) to the same shape."""
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.out(mixed)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class FashionTransformer(nn.Module):
    """A vision transformer of 49 patches, width 128 and four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 128, 4, 4)
        self.place = nn.Parameter(0.02 * torch.randn(1, 49, 128))
        self.blocks = nn.Sequential(*(AttentionBlock(128, 4) for _ in range(4)))
        self.norm = nn.LayerNorm(128)
        self.head = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 1, 28, 28) to logits (N, 10)."""
        x = self.patches(images).flatten(2).transpose(1, 2) + self.place
        return self.head(self.norm(self.blocks(x)).mean(1))


NETS = {"resnet": FashionResNet, "depthwise": FashionDepthwise, "vit": FashionTransformer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--net", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--dataset", type=Path, default=Path(DATA), help=f"the folder of the gzipped files; {DATA}")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    images, labels = read(asked.dataset, "train")
    test = read(asked.dataset, "t10k")
    for name, (x, y) in (("held_out", (images[-HELD_OUT:], labels[-HELD_OUT:])), ("test", test)):
        np.savez(asked.folder / f"{name}.npz", images=x, labels=y)
    images, labels = images[:-HELD_OUT], labels[:-HELD_OUT]
    for name in asked.net:
        began = time.monotonic()
        torch.manual_seed(asked.seed)
        module = trained(NETS[name](), images, labels, epochs=asked.epochs)
        torch.save(module.state_dict(), asked.folder / f"{name}-{asked.seed}.pt")
        right = (answers(module, test[0]).argmax(1) == test[1]).mean()
        print(f"{name}-{asked.seed}: {100 * right:.2f}% of the test set, {time.monotonic() - began:.0f} s", flush=True)


def read(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images (N, 1, 28, 28), float32 of mean 0 and deviation 1, and the labels (N,) of a part, from IDX."""
    pixels = np.frombuffer(gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    images = (pixels.reshape(-1, 1, 28, 28).astype(np.float32) / 255 - MEAN) / STD
    return images.astype(np.float32), labels.astype(np.int64)


def trained(module: nn.Module, images: np.ndarray, labels: np.ndarray, *, epochs: int, batch: int = 128) -> nn.Module:
    """Train with AdamW, a rate that rises and falls once, mirrored images and smoothed labels; torch's seed decides."""
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.02)
    steps = len(x) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * steps, pct_start=0.2)
    module = module.to(memory_format=torch.channels_last).train()
    for epoch in range(epochs):
        order = torch.randperm(len(x))
        for step in range(steps):
            chosen = order[step * batch : (step + 1) * batch]
            some = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x[chosen].flip(3), x[chosen])
            loss = functional.cross_entropy(module(some), y[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {epochs}: loss {loss.item():.3f}", flush=True)
    return module.to(memory_format=torch.contiguous_format).eval()


def answers(module: nn.Module, images: np.ndarray, *, batch: int = 500) -> np.ndarray:
    """Return the logits for each image."""
    with torch.inference_mode():
        return np.concatenate([module(torch.from_numpy(images[i : i + batch])) for i in range(0, len(images), batch)])


if __name__ == "__main__":
    main()
