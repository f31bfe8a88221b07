"""What the files of a folder are called that Hugging Face's ``save_pretrained`` wrote. Nothing heavy is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""The table of a checkpoint in several files."""
OLDER = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""Weights as pickles."""


def is_pretrained(folder: Path) -> bool:
    """Return whether a folder holds a configuration, and weights that are plain tensors."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in (WEIGHTS, INDEX))


def is_pretrained_file(name: str) -> bool:
    """Return whether a file of that name in such a folder is read."""
    return name in (CONFIG, INDEX) or name.endswith(".safetensors")
