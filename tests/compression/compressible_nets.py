"""Small networks for compression, with data that they answer: factories, and files of samples."""

import numpy as np
import torch
from torch import nn

SIZE, CLASSES = 12, 4


def low_rank(out, inner, kernel, rank, *, seed, axis=None):
    """A weight of exact rank as V and U; as k x 1 and 1 x k where an axis is given."""
    random = np.random.default_rng(seed)
    if axis is None:
        U, V = random.standard_normal((out, rank)), random.standard_normal((rank, inner * kernel * kernel))
        weight = (U @ V).reshape(out, inner, kernel, kernel)
    else:
        first, second = random.standard_normal((rank, inner, kernel)), random.standard_normal((out, rank, kernel))
        weight = np.einsum("ria,orb->oiab", first, second)
    return torch.tensor(weight / np.linalg.norm(weight) * np.sqrt(2 * out), dtype=torch.float32)


class Planted(nn.Module):
    """A residual net with batch norm whose two convolutions are of exact low rank: 5 as V,U, and 6 as k x 1, 1 x k."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 32, 3, padding=1)
        self.pair = nn.Conv2d(32, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.split = nn.Conv2d(32, 48, 3, padding=1, bias=False)
        self.head = nn.Linear(48 * 9, CLASSES)
        with torch.no_grad():
            self.pair.weight.copy_(low_rank(32, 32, 3, 5, seed=1))
            self.split.weight.copy_(low_rank(48, 32, 3, 6, seed=2, axis=0))
            self.norm.weight.copy_(torch.linspace(0.5, 2, 32))
            self.norm.bias.copy_(torch.linspace(-1, 1, 32))
            self.norm.running_mean.copy_(torch.linspace(-0.3, 0.3, 32))
            self.norm.running_var.copy_(torch.linspace(0.5, 1.5, 32))
        self.eval()

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(self.norm(self.pair(x)) + x)
        x = torch.relu(self.split(x))
        return self.head(x[:, :, ::4, ::4].flatten(1))


class Full(Planted):
    """The same shape with weights of full rank, of which every component less loses something."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        for layer in (self.pair, self.split):
            U, sigma, V = torch.linalg.svd(torch.randn(layer.weight.flatten(1).shape), full_matrices=False)
            decayed = sigma * 0.85 ** torch.arange(len(sigma))
            weight = (U * decayed) @ V
            with torch.no_grad():
                layer.weight.copy_((weight / weight.norm() * 8).reshape(layer.weight.shape))
        with torch.no_grad():  # each class is as frequent as the others, more or less
            self.head.bias -= self(torch.from_numpy(images(256, seed=9))).mean(0)


class Tokens(nn.Module):
    """Matrix products over tokens, whose biases are added by other operators, and a weight that two calls share."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)
        self.shared = nn.Linear(32, 32)
        with torch.no_grad():
            self.up.weight.copy_(torch.randn(128, 6) @ torch.randn(6, 32) / 12)
        self.eval()

    def forward(self, x):
        x = x + self.down(torch.relu(self.up(x)))
        return self.shared(torch.relu(self.shared(x))).mean(1)


def images(samples, *, seed=0):
    """Smooth random images: (N, 2, SIZE, SIZE)."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((samples, 2, SIZE // 3, SIZE // 3))
    return np.kron(coarse, np.ones((1, 1, 3, 3))).astype(np.float32)


def answers(module, inputs):
    """The classes that a module gives."""
    with torch.no_grad():
        return module(torch.from_numpy(inputs)).argmax(1).numpy()
