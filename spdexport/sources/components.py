"""Components as a file holds them, before they are matched to the layers of a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spdexport.errors import ComponentsError
from spdexport.sources.adapters import RawAdapters
from spdexport.sources.chains import RawChains

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from spdexport.gates import GateFunction


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
        components: V and U by the file's own layer name.
        chains: Forms that the file brings whole, and what else it holds then.
        adapters: LoRA and its kin, and factors whose names do not tell their order.
        dashed: Whether '.' was turned into '-' in the names, so that they must be matched from the model's side.
        identity: Layers, by the file's own names, in front of which the run inserted identities; the components of
            these are among ``components``, under the layer's name and ``pre_identity``.
        target: The dense weights that the run decomposed, by the model's own parameter names; empty for ``file``, and
            for a run that holds what was learned alone.
        layout: Which generation of SPD's key layout it is, for the summary; None for ``file``.
        gates: The causal-importance functions by the file's own layer name; empty where the file holds none. Reading
            one raises ``ComponentsError`` where it is of no known kind.
        no_gates: Why causal-importance functions cannot be had, in a clause; None where they can, or are not there.
        path: The file that was read.
        sha256: Hash of that file's content.
    """

    kind: str
    components: Mapping[str, RawComponent]
    chains: RawChains = field(default_factory=RawChains)
    adapters: RawAdapters = field(default_factory=RawAdapters)
    dashed: bool = False
    identity: tuple[str, ...] = ()
    target: Mapping[str, torch.Tensor] = field(default_factory=dict)
    layout: str | None = None
    gates: Mapping[str, GateFunction] = field(default_factory=dict)
    no_gates: str | None = None
    path: Path | None = None
    sha256: str | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it has components or a form for, by its own names."""
        return (*self.components, *self.chains.chains, *self.adapters.layers)


def paired(
    factors: Mapping[str, Mapping[str, torch.Tensor]], *, axes: tuple[int, ...], where: str
) -> dict[str, RawComponent]:
    """Put each layer's V and U together.

    Args:
        factors: By layer, then by ``V`` and ``U``.
        axes: The numbers of axes that V and U may have; both have the same.
        where: The file, for messages.

    Raises:
        ComponentsError: One of the two is missing, they do not agree, or hold NaN, infinity, or no components.
    """
    return {layer: _pair(layer, parts, axes=axes, where=f"{where}, layer {layer}") for layer, parts in factors.items()}


def _pair(layer: str, parts: Mapping[str, torch.Tensor], *, axes: tuple[int, ...], where: str) -> RawComponent:
    def fault(what: str) -> ComponentsError:
        return ComponentsError(what, where=where, hint="Write the components again, or leave the layer out.")

    for present, missing in (("V", "U"), ("U", "V")):
        if missing not in parts:
            raise fault(f"{layer} has {present} {tuple(parts[present].shape)} but no {missing}.")
    V, U = parts["V"], parts["U"]
    shapes = f"V {tuple(V.shape)} and U {tuple(U.shape)}"
    for name, tensor in (("V", V), ("U", U)):
        if not tensor.is_floating_point():
            raise fault(f"{name} of {layer}, shape {tuple(tensor.shape)}, is of {tensor.dtype}, not of a float type.")
    if V.ndim not in axes or U.ndim != V.ndim:
        expected = " or ".join(map(str, axes))
        raise fault(f"{layer} has {shapes}, with {V.ndim} and {U.ndim} axes, not {expected}.")
    if V.shape[-1] != U.shape[-2]:
        raise fault(f"{layer} has {shapes}: {V.shape[-1]} components in V and {U.shape[-2]} in U.")
    if V.shape[:-2] != U.shape[:-2]:
        raise fault(f"{layer} has {shapes}: {V.shape[0]} groups in V and {U.shape[0]} in U.")
    if V.numel() == 0 or U.numel() == 0:
        raise fault(f"{layer} has {shapes}: nothing is in them.")
    for name, tensor in (("V", V), ("U", U)):
        bad = int((~tensor.isfinite()).sum())
        if bad:
            raise fault(f"{name} of {layer}, shape {tuple(tensor.shape)}, holds NaN or infinity ({bad} values).")
    return RawComponent(V=V.detach(), U=U.detach())
