"""Architectures of transformers with small configurations and random weights: name, kind, module, example inputs."""

from __future__ import annotations

from zoo_entry import Entry
from zoo_images import IMAGES
from zoo_sequences import SEQUENCES

ZOO = tuple(
    Entry(name=name, kind=kind, make=make)
    for kinds in (IMAGES, SEQUENCES)
    for kind, entries in kinds.items()
    for name, make in entries.items()
)
