"""Layers and cost models for the tests of the planner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spdexport.conv import ConvSite, ConvSpec
from spdexport.cost import FormShape
from spdexport.factors import Factors, expected_shapes
from spdexport.planning import FormChoice, Plan, PlanOptions, make_plan

WIDE = ConvSpec(in_channels=32, out_channels=64, kernel=(3, 3), stride=(1, 1), padding=((1, 1),) * 2, dilation=(1, 1))


@dataclass(frozen=True)
class FewComponents:
    """Makes the form with the fewest components the cheapest; ``dense`` is what a dense stage costs."""

    dense: float = float("inf")
    name: str = "components"
    unit: str = "components"

    def __call__(self, site: ConvSite, shape: FormShape) -> float:  # noqa: ARG002  (what a layer is does not matter)
        return sum(chain[0].out_channels if len(chain) > 1 else self.dense for chain in shape.chains)


def a_site(spec: ConvSpec = WIDE, *, name: str = "conv", dtype: Any = np.float32, seed: int = 0) -> ConvSite:
    """A layer of full rank with a bias."""
    rng = np.random.default_rng(seed)
    weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in (spec.weight_shape, spec.out_channels))
    return ConvSite(name=name, spec=spec, weight=weight, bias=bias, node=name, positions=100)


def some_factors(site: ConvSite, components: int, *, live: int, seed: int = 1) -> Factors:
    """Components that have nothing to do with the weight, the first ``live`` of them alive."""
    rng = np.random.default_rng(seed)
    V, U = (rng.standard_normal(s).astype(site.weight.dtype) for s in expected_shapes(site.spec, components))
    return Factors(V=V, U=U, mask=np.tile((np.arange(components) < live).astype(np.float32), (*V.shape[:-2], 1)))


def auto(*pairs: tuple[ConvSite, Factors], cost: Any = None, record: Any = None, **options: Any) -> Plan:
    """A plan with the cheapest forms."""
    factors = {site.name: found for site, found in pairs}
    chosen = PlanOptions(**{"form": FormChoice.AUTO, **options})
    sites = [site for site, _ in pairs]
    return make_plan(sites, (), lambda s: factors[s.name], chosen, cost_model=cost, record=record)
