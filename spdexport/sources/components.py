"""Components as a file holds them, before they are matched to the layers of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RawComponent:
    """V and U of one layer under the name that the file gives it.

    Attributes:
        V: Shape (patch, C), with a leading group axis for groups > 1.
        U: Shape (C, out), with a leading group axis for groups > 1.
    """

    V: torch.Tensor
    U: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ComponentSet:
    """All components of a file or run.

    Attributes:
        kind: ``spd`` for a run or checkpoint, ``file`` for a file of ``<layer>.V`` and ``<layer>.U``.
        components: By the file's own layer name.
        dashed: Whether '.' was turned into '-' in the names, so that they must be matched from the model's side.
        identity: Layers with inserted identity components, which have no site.
        target: The dense weights that the run decomposed, by the model's own parameter names; empty for ``file``.
        layout: Which generation of SPD's key layout it is, for the summary; None for ``file``.
        path: The file that was read.
        sha256: Hash of that file's content.
    """

    kind: str
    components: Mapping[str, RawComponent]
    dashed: bool = False
    identity: tuple[str, ...] = ()
    target: Mapping[str, torch.Tensor] = field(default_factory=dict)
    layout: str | None = None
    path: Path | None = None
    sha256: str | None = None
