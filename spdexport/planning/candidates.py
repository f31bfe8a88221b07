"""The forms that a layer might take, and the cheapest of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.cost import dense_shape, family_shape, pair_shape, shape_macs
from spdexport.factors import break_even, effective_weight
from spdexport.forms import DeltaUse, FormKind, pair_form
from spdexport.lowrank import (
    numerical_rank,
    rank_for_energy,
    recompressed,
    singular_values,
    truncated,
    truncation_error,
)
from spdexport.planning.plan import ENERGY, Gain, Weighed

if TYPE_CHECKING:
    from spdexport.conv import ConvSite, FloatArray
    from spdexport.cost import CostModel, FormShape
    from spdexport.factors import Factors
    from spdexport.forms import Form, Ranks, RunTime
    from spdexport.lowrank import Rank


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """A layer with factors, as its forms are weighed.

    Attributes:
        site: The layer.
        factors: V, U and mask as the source has them.
        delta: What becomes of the weight delta.
        weight: The effective weight, float64.
        sigma: Its singular values, (groups, n).
        rank: Its numerical rank.
    """

    site: ConvSite
    factors: Factors
    delta: DeltaUse
    weight: FloatArray
    sigma: FloatArray
    rank: Rank

    @classmethod
    def of(cls, site: ConvSite, factors: Factors, delta: DeltaUse) -> Layer:
        """Work out the effective weight and its rank."""
        own = factors.mask is None and delta is not DeltaUse.DROPPED and not factors.is_edited
        weight = np.asarray(site.weight, dtype=np.float64)
        if not own:
            weight = effective_weight(site.weight, factors, site.spec, keep_delta=delta is DeltaUse.KEPT)
        dtype = site.weight.dtype
        sigma = singular_values(weight, site.spec, dtype)
        rank = numerical_rank(weight, site.spec, dtype, factors=None if own else factors, sigma=sigma)
        return cls(site=site, factors=factors, delta=delta, weight=weight, sigma=sigma, rank=rank)

    @property
    def told(self) -> str:
        """What decides about the layer, in a clause."""
        even = math.floor(break_even(self.site.spec, self.site.upsampling))
        live = f"{self.factors.live} live of {self.factors.components} components, break-even {even}"
        return live + ("; the weight delta is added back" if self.delta is DeltaUse.KEPT else "")

    def truncated(self, rank: int) -> tuple[Factors, float]:
        """Return the best factors of a rank, and their relative Frobenius error."""
        made = truncated(self.weight, self.site.spec, self.site.weight.dtype, rank)
        return made, truncation_error(self.sigma, rank)

    def recompressed(self, cost: CostModel, below: float) -> tuple[Rank, Factors] | None:
        """Factors of the numerical rank, where they cost less than ``below``."""
        spec, dtype = self.site.spec, self.site.weight.dtype

        def pays(rank: int) -> bool:
            return cost(self.site, pair_shape(self.site, rank)) < below

        if not pays(max(self.rank.rank, 1)):
            return None
        return recompressed(self.weight, spec, dtype, self.rank, pays=pays)

    def gain(self, cost: CostModel, chosen: FormShape) -> Gain | None:
        """Return what truncating would give beside the form that was chosen; None for a weight of zeros."""
        if not self.rank.rank:
            return None
        now, macs = cost(self.site, chosen), shape_macs(self.site, chosen)

        def pays(rank: int) -> bool:
            return cost(self.site, pair_shape(self.site, rank)) < now

        rank = rank_for_energy(self.sigma, ENERGY)
        most = next((r for r in range(self.rank.rank - 1, 0, -1) if pays(r)), None)
        return Gain(
            rank=rank,
            macs=shape_macs(self.site, pair_shape(self.site, rank)) if pays(rank) else macs,
            paying_rank=most,
            paying_error=None if most is None else truncation_error(self.sigma, most),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The form that a layer takes.

    Attributes:
        form: As ``LayerPlan.form``.
        reason: Why.
        components: Of V and U in the form, in each group; None where there are none.
        made: As ``Decision.made``.
        truncation: As ``LayerPlan.truncation``.
        truncated_to: As ``LayerPlan.truncated_to``.
        weighed: As ``LayerPlan.weighed``.
        ranks: As ``LayerPlan.ranks``.
    """

    form: FormKind
    reason: str
    components: int | None = None
    made: Form | None = None
    truncation: float | None = None
    truncated_to: int | None = None
    weighed: tuple[Weighed, ...] = ()
    ranks: Ranks = ()

    def shape(self, site: ConvSite) -> FormShape:
        """Return what its cost depends on."""
        if self.ranks:
            return family_shape(site, self.form, self.ranks)
        return dense_shape(site) if self.components is None else pair_shape(site, self.components, self.form)


def cheapest(layer: Layer, cost: CostModel) -> Choice:
    """Return the form of least cost among those that compute the effective weight; dense where two are alike.

    Args:
        layer: The layer.
        cost: What is to be least.
    """
    site = layer.site
    if not layer.weight.any():
        return Choice(form=FormKind.CONSTANT, reason="no component is live: the output is the bias", components=1)
    weighed = [Weighed(form=FormKind.DENSE, components=None, cost=cost(site, dense_shape(site)))]
    own, live = FormKind.literal(layer.delta), max(layer.factors.live, 1)
    weighed.append(Weighed(form=own, components=live, cost=cost(site, pair_shape(site, live, own))))
    best = min(weighed, key=lambda w: w.cost)
    found = layer.recompressed(cost, best.cost)
    made, exact = None, layer.rank
    if found is not None:
        exact, made = found[0], pair_form(site.spec, found[1], site.bias)
    size = max(exact.rank, 1)
    weighed.append(Weighed(form=FormKind.RECOMPRESSED, components=size, cost=cost(site, pair_shape(site, size))))
    if found is not None:
        best = weighed[-1]
    facts = f"{layer.told}; {exact.told()}"
    return Choice(
        form=best.form,
        reason=_why(best.form, facts),
        components=best.components,
        made=made,
        weighed=tuple(weighed),
    )


def _why(form: FormKind, facts: str) -> str:
    return f"{'dense is cheapest' if form is FormKind.DENSE else f'cheapest as {form}'}: {facts}"


def truncation(layer: Layer, rank: int) -> Choice:
    """Return the form with a truncated weight, as V and U."""
    made, error = layer.truncated(rank)
    reason = f"truncated to rank {rank} of {layer.rank.rank}, relative error {error:.2g}; {layer.told}"
    return Choice(
        form=FormKind.RECOMPRESSED,
        reason=reason,
        components=rank,
        made=pair_form(layer.site.spec, made, layer.site.bias),
        truncation=error,
        truncated_to=rank,
    )


def literal(layer: Layer, *, keep_masks: bool, note: str = "") -> Choice:
    """Return the form of the source's own V and U."""
    factors = layer.factors
    kept = factors.components if keep_masks else max(factors.live, 1)
    return Choice(form=FormKind.literal(layer.delta), reason=layer.told + note, components=kept)


def live(layer: Layer, run_time: RunTime) -> Choice:
    """Return the form of a layer whose mask is known only at run time: the source's own V and U, all of them."""
    return Choice(
        form=FormKind.literal(layer.delta),
        reason=f"its mask is {run_time.mask.told()}: all components stay",
        components=layer.factors.components,
    )
