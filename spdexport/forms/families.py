"""The forms that are chains of stages made anew from a weight, each by its kind: geometry, ranks, decomposition.

A row of ``FAMILIES`` is all that plans, costs, files of chains and reports know of a form. The ranks of a form are the
channels between its stages, in each group: (C,) for V and U, (R,) for the spatial form and CP,
(r, t) for Tucker-2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from spdexport.factors import unit_rounding
from spdexport.forms import cp, pair, spatial, tucker
from spdexport.forms.base import Form, Stage, chain_form, f64
from spdexport.forms.fold import fold_form
from spdexport.forms.kinds import FormKind
from spdexport.lowrank import TAIL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from spdexport.conv import Array, ConvSpec, FloatArray
    from spdexport.forms.deferred import Numbers

Ranks: TypeAlias = "tuple[int, ...]"
"""The channels between the stages of a form, in each group."""


class Decomposed(Protocol):
    """A layer's weight, ready to be brought to forms of one kind."""

    @property
    def exact(self) -> Ranks:
        """The ranks that hold it, as far as the rounding of its dtype leaves them to be told."""

    @property
    def full(self) -> Ranks:
        """The largest ranks, which hold any weight."""

    def at(self, rank: int) -> Ranks:
        """Return all ranks at ``rank``, or what holds the weight where that is less."""

    def lost(self, ranks: Ranks) -> FloatArray:
        """Return the relative Frobenius error at these ranks, of each group; what ``weights`` gives is no worse."""

    def within(self, allowed: FloatArray) -> Iterable[Ranks]:
        """Ranks whose error is at most ``allowed`` in each group, and of which none can be less by itself."""

    def weights(self, ranks: Ranks) -> Sequence[FloatArray]:
        """Return the weight of each stage, in float64, shape ``weight_shape`` of its geometry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A kind of form.

    Attributes:
        kind: Its kind.
        names: Of the stages; the geometry may have fewer of them.
        without: Why a layer of a geometry has no such form, in a clause; None where it has one.
        specs: The geometries of the stages at some ranks.
        largest: The largest that ranks can usefully be, of as many as a form may have.
        decompose: Takes a weight in float64, its geometry, and the dtype that it is rounded to.
        numbers: How many ranks a form of this kind may have.
    """

    kind: FormKind
    names: tuple[str, ...]
    without: Callable[[ConvSpec], str | None]
    specs: Callable[[ConvSpec, Ranks], tuple[ConvSpec, ...]]
    largest: Callable[[ConvSpec], Ranks]
    decompose: Callable[[Array, ConvSpec, np.dtype[np.generic]], Decomposed]
    numbers: tuple[int, ...] = (1,)

    def form(self, spec: ConvSpec, weights: Sequence[Numbers], bias: Array | None) -> Form:
        """Return the form of these stages.

        Args:
            spec: The layer's geometry, which ``without`` finds nothing against.
            weights: Of each stage in turn, as ``specs`` has their shapes.
            bias: Shape (out_channels,), or None.
        """
        return chain_form(self.kind, self.specs(spec, self.ranks(spec, weights)), weights, self.names, bias)

    def ranks(self, spec: ConvSpec, weights: Sequence[Numbers]) -> Ranks:
        """Return the ranks that the weights of stages have."""
        return tuple(weight.shape[0] // spec.groups for weight in weights[:-1])[: self.numbers[-1]]


FAMILIES: Mapping[FormKind, Family] = {
    family.kind: family
    for family in (
        Family(
            kind=FormKind.RECOMPRESSED,
            names=pair.NAMES,
            without=pair.without_pair,
            specs=lambda spec, ranks: pair.pair_specs(spec, *ranks),
            largest=pair.largest_pair,
            decompose=pair.decomposed_pair,
        ),
        Family(
            kind=FormKind.SPATIAL,
            names=spatial.NAMES,
            without=spatial.without_spatial,
            specs=lambda spec, ranks: spatial.spatial_specs(spec, *ranks),
            largest=spatial.largest_spatial,
            decompose=spatial.decomposed_spatial,
        ),
        Family(
            kind=FormKind.TUCKER,
            names=tucker.NAMES,
            without=tucker.without_tucker,
            specs=lambda spec, ranks: tucker.tucker_specs(spec, *ranks),
            largest=tucker.largest_tucker,
            decompose=tucker.decomposed_tucker,
            numbers=(1, 2),
        ),
        Family(
            kind=FormKind.CP,
            names=cp.NAMES,
            without=cp.without_cp,
            specs=lambda spec, ranks: cp.cp_specs(spec, *ranks),
            largest=cp.largest_cp,
            decompose=cp.decomposed_cp,
        ),
    )
}
"""By their kinds. A new form is a row here and a file beside this one."""

NEW = tuple(family for family in FAMILIES.values() if family.kind is not FormKind.RECOMPRESSED)
"""Those beside V and U, in the order in which they are weighed."""


def stage_name(number: int) -> str:
    """Return what the weight of a stage is called behind its layer, in files of chains and modules to be trained."""
    return f"stages.{number}.weight"


def holds(weight: FloatArray, form: Form, dtype: np.dtype[np.generic]) -> bool:
    """Return whether a form in float64 is a weight to the rounding of ``dtype`` at each of its entries.

    As for V and U (``lowrank.recompressed``): what is cut off comes to at most ``TAIL`` roundings of the product of the
    stages' magnitudes.
    """
    folded, size = f64(fold_form(form).weight), f64(fold_form(_magnitudes(form)).weight)
    computed = 16 * np.finfo(np.float64).eps * np.abs(weight).max(initial=0.0)
    return bool((np.abs(folded - weight) <= TAIL * unit_rounding(dtype) * size + computed).all())


def rounded(form: Form, dtype: np.dtype[np.generic]) -> Form:
    """Return a form whose stages are rounded to a dtype; the bias stays what it is."""
    return _mapped(form, lambda stage: replace(stage, weight=np.ascontiguousarray(stage.weight, dtype=dtype)))


def _magnitudes(form: Form) -> Form:
    return _mapped(form, lambda stage: replace(stage, weight=np.abs(f64(stage.weight)), bias=None))


def _mapped(form: Form, change: Callable[[Stage], Stage]) -> Form:
    return replace(form, chains=tuple(tuple(change(stage) for stage in chain) for chain in form.chains))
