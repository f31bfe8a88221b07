"""Train the network on scikit-learn's digits, in half a minute, and write it with the images beside.

    python train.py FOLDER

writes ``model.pt`` (a state dict), ``held_out.npz`` (images for ``compress`` to choose by) and ``test.npz`` (images to
judge the result by). The network has seen neither.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from net import DigitsResNet
from sklearn.datasets import load_digits
from torch import nn

EPOCHS, BATCH, TRAINED, HELD_OUT = 12, 64, 1000, 400


SHIFTS = 6
"""How often each image is moved anew."""


def shifted(images: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Return the images moved by up to two pixels, each by its own: digits stand anywhere in real images."""
    moves = random.integers(-2, 3, (len(images), 2))
    return torch.stack([torch.roll(x, tuple(map(int, move)), (1, 2)) for x, move in zip(images, moves, strict=True)])


def main(folder: Path) -> None:
    """Train and write."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    digits = load_digits()
    order = random.permutation(len(digits.target))
    images = torch.from_numpy(np.kron(digits.images / 16.0, np.ones((2, 2))).astype(np.float32)[order, None])
    labels = torch.from_numpy(digits.target[order])
    model = DigitsResNet()
    steps = EPOCHS * (TRAINED // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for _ in range(steps):
        chosen = torch.from_numpy(random.integers(0, TRAINED, BATCH))
        loss = nn.functional.cross_entropy(model(shifted(images[chosen], random)), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    torch.save(model.state_dict(), folder / "model.pt")
    for name, part in (("held_out", slice(TRAINED, TRAINED + HELD_OUT)), ("test", slice(TRAINED + HELD_OUT, None))):
        several = torch.cat([shifted(images[part], random) for _ in range(SHIFTS)])
        answers = labels[part].repeat(SHIFTS)
        np.savez_compressed(folder / f"{name}.npz", x=several.numpy(), labels=answers.numpy())
    with torch.no_grad():
        right = (model(several).argmax(1) == answers).float().mean()
    print(f"{100 * right:.1f}% of {len(several)} images that it has not seen")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
