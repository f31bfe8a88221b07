"""What ``spdexport lab`` gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from spdexport.laboratory.layers import LabLayer


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A lab that was written.

    Attributes:
        folder: Where it is.
        file: The name of the file that it runs.
        layers: The layers that can be switched.
        samples: How many samples are in it.
        beside: What the outputs are shown beside, in a clause.
        runtime: The version of onnxruntime-web in it.
        sizes: Bytes of its files, by name.
        notes: What the user should know.
        hashes: SHA-256 of what was read, by name.
        versions: Of everything that took part.
    """

    folder: Path
    file: str
    layers: tuple[LabLayer, ...]
    samples: int
    beside: str
    runtime: str
    sizes: Mapping[str, int]
    notes: tuple[str, ...]
    hashes: Mapping[str, str]
    versions: Mapping[str, str]

    @property
    def components(self) -> int:
        """How many components can be switched."""
        return sum(layer.components for layer in self.layers if layer.mask is not None)

    @property
    def size(self) -> int:
        """Bytes of the folder."""
        return sum(self.sizes.values())
