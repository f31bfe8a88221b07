"""What deriving masks finds. Free of torch, which the reports do without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from spdexport.conv import Array
    from spdexport.importance.statistics import Importances, Rule


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerMask:
    """What was found for one layer.

    Attributes:
        name: The layer.
        importances: Of its components; None where a file names those to keep, and says nothing else.
        mask: 1 for components that are kept and 0 for others: shape (C,), float32.
    """

    name: str
    importances: Importances | None
    mask: Array

    @property
    def components(self) -> int:
        """C."""
        return int(self.mask.size)

    @property
    def live(self) -> int:
        """Components that are kept."""
        return int(np.count_nonzero(self.mask))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DerivedMasks:
    """Masks made from data.

    Attributes:
        layers: In the model's order.
        rule: What is kept; None where a file names it.
        samples: How many samples there were; 0 for masks that are made from a file about components.
        told: What is kept by such a file, in a clause; empty for masks from data.
        outputs: The files written.
        notes: What the user should know.
        hashes: SHA-256 of what was read and written, by name.
        seed: Of a factory's random numbers.
        versions: Of everything that took part.
    """

    layers: tuple[LayerMask, ...]
    rule: Rule | None
    samples: int
    outputs: tuple[Path, ...]
    notes: tuple[str, ...]
    hashes: Mapping[str, str]
    seed: int
    versions: Mapping[str, str]
    told: str = ""
