"""Accuracy of ONNX files on scikit-learn's digits that the model was not trained on, beside the dense model's."""

import sys

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from digits_cnn import DigitsCNN
from sklearn.datasets import load_digits


def test_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (n, 1, 16, 16) in [0, 1] and labels (n,): those that training left out."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    images = F.interpolate(images, size=(16, 16), mode="bilinear", align_corners=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    held_out = order[1400:]
    return images[held_out], torch.tensor(digits.target)[held_out]


def main() -> None:
    images, labels = test_images()
    model = DigitsCNN().eval()
    model.load_state_dict(torch.load("run/target_model.pth", weights_only=True))
    with torch.no_grad():
        scores = {"dense model (torch)": model(images).numpy()}
    for path in sys.argv[1:]:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        scores[path] = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    print(f"accuracy on {len(labels)} held-out digits")
    for name, logits in scores.items():
        print(f"  {np.mean(logits.argmax(axis=1) == labels.numpy()):.3f}  {name}")


if __name__ == "__main__":
    main()
