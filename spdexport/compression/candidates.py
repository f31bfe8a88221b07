"""The forms that a layer might take under a budget: what each costs, and what it loses on the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from spdexport.compression.decomposition import EXACT
from spdexport.compression.metric import Metric
from spdexport.compression.separable import SeparableDecomposition, decomposed
from spdexport.cost import LANE_WIDTH, FormShape, MacsCost, ParameterCost, dense_shape, family_shape
from spdexport.forms import Form, FormKind, dense, fold_form
from spdexport.forms.families import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from spdexport.compression.decomposition import Decomposition
    from spdexport.compression.moments import Moments
    from spdexport.conv import ConvSite, ConvSpec, FloatArray
    from spdexport.cost import CostModel
    from spdexport.forms.families import Ranks

STEPS = 24
"""Ranks of each stage that are weighed, at most. Of 2,048 channels they lie 96 apart."""

SMALL = (1, 2, 4, 8)
"""Ranks below a lane that are weighed too: a narrow layer, or one that counts channels one by one, has no other."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """One form of a layer, weighed; its numbers are worked out when they are asked for.

    Attributes:
        kind: The kind.
        ranks: Channels of each group between the stages; () for dense.
        error: tr(D S D') / tr(W S W'), D the error of the weight and S the covariance of its input with a ridge.
        cost: By the cost model.
        shape: The geometry of the stages.
        make: Returns the form, fitted on the moments that the candidates were weighed on, in the layer's own dtype.
    """

    kind: FormKind
    ranks: Ranks
    error: float
    cost: float
    shape: FormShape
    make: Callable[[], Form]


def layer_candidates(
    site: ConvSite,
    moments: Moments,
    cost: CostModel,
    *,
    foreign: Iterable[Form] = (),
    screen: CostModel | None = None,
    lane: int = LANE_WIDTH,
) -> tuple[Candidate, ...]:
    """Return what a layer might be: dense first, then what costs less, no form in vain.

    A form is in vain where another of its kind costs no more by ``screen`` and errs no more: those are not weighed by
    ``cost``, which may be a measurement.

    Args:
        site: The layer.
        moments: Of what it reads, with or without targets.
        cost: What the candidates are weighed by.
        foreign: Forms of other origin that might stand in the layer's place, such as its masked components.
        screen: The model that tells which forms are in vain; if None the cost itself where it is counted, and where it
            is measured multiply-accumulates in lanes.
        lane: Ranks are multiples of this, for a machine does such a rank in the time of any smaller one that needs as
            many lanes. The smallest rank that loses nothing is weighed whatever it is.
    """
    if screen is None:
        screen = cost if isinstance(cost, MacsCost | ParameterCost) else MacsCost(lane=lane)
    spec, dtype = site.spec, site.weight.dtype
    metric = Metric.of(moments)
    weight = grouped_weight(site.weight, spec)
    whole = dense_shape(site)
    found = [
        Candidate(
            kind=FormKind.DENSE,
            ranks=(),
            error=0.0,
            cost=cost(site, whole),
            shape=whole,
            make=partial(dense, spec, site.weight, site.bias),
        )
    ]
    limit = screen(site, whole)
    for kind in kinds_of(spec):
        grid = [
            r
            for r in ranks(FAMILIES[kind].largest(spec)[0], lane)
            if screen(site, family_shape(site, kind, (r,))) < limit
        ]
        if not grid:
            continue
        made = decomposed(weight, spec, metric, kind, max(grid))
        options = _options(made, grid, lane)
        for chosen, error in _useful(options, partial(_price, screen, site, kind), limit):
            shape = family_shape(site, kind, chosen)
            found.append(
                Candidate(
                    kind=kind,
                    ranks=chosen,
                    error=error,
                    cost=cost(site, shape),
                    shape=shape,
                    make=partial(made.form, chosen, site.bias, dtype),
                )
            )
    found += [_foreign(site, form, weight, metric, cost) for form in foreign]
    return tuple(found)


def kinds_of(spec: ConvSpec) -> tuple[FormKind, ...]:
    """Return the kinds of chains that a layer of this geometry may take."""
    return tuple(kind for kind, family in FAMILIES.items() if family.without(spec) is None)


def ranks(most: int, lane: int) -> tuple[int, ...]:
    """Return the ranks up to ``most`` that are weighed: small ones, and multiples of ``lane``, ``STEPS`` at most."""
    multiples = most // lane
    step = -(-multiples // STEPS) if multiples else 1
    return tuple(r for r in SMALL if r < min(lane, most + 1)) + tuple(range(lane, most + 1, lane * step))


def grouped_weight(weight: np.ndarray, spec: ConvSpec) -> FloatArray:
    """Return a weight of ``spec.weight_shape`` in float64, of shape (groups, out / groups, patch)."""
    return np.asarray(weight, dtype=np.float64).reshape(spec.groups, spec.group_out, spec.patch)


def _price(cost: CostModel, site: ConvSite, kind: FormKind, ranks: Ranks) -> float:
    return cost(site, family_shape(site, kind, ranks))


def _options(made: Decomposition | SeparableDecomposition, grid: Sequence[int], lane: int) -> list[tuple[Ranks, float]]:
    """Ranks of a decomposition and their errors; of those that lose nothing the smallest."""
    errors = made.errors

    def with_exact(values: Sequence[int], exact: int | None) -> list[int]:
        if exact is None:
            return list(values)
        return sorted({r for r in values if r < exact} | {exact})

    known = with_exact([r for r in grid if r <= len(errors)], made.exact)
    options: list[tuple[Ranks, float]] = [((r,), float(errors[r - 1])) for r in known]
    if isinstance(made, SeparableDecomposition) or made.kind is not FormKind.TUCKER:
        return options
    outer = made.outer_errors
    exact = next((int(p) + 1 for p in np.flatnonzero(outer[-1] <= EXACT)), None) if made.exact else None
    sides = with_exact(ranks(made.spec.group_out, lane), exact)
    return options + [((r, p), float(outer[r - 1, p - 1])) for r in known for p in sides if p < made.spec.group_out]


def _useful(
    options: Iterable[tuple[Ranks, float]], price: Callable[[Ranks], float], limit: float
) -> list[tuple[Ranks, float]]:
    """The options that cost less than ``limit``, and err less than every one that costs no more; the dearest first.

    Of equal price and error it is the smallest ranks.
    """
    priced = sorted((price(ranks), 0.0 if error <= EXACT else error, ranks) for ranks, error in options)
    useful: list[tuple[Ranks, float]] = []
    least = float("inf")
    for cost, error, chosen in priced:
        if cost < limit and error < least:
            useful.append((chosen, error))
            least = error
    return useful[::-1]


def _foreign(site: ConvSite, form: Form, weight: FloatArray, metric: Metric, cost: CostModel) -> Candidate:
    """A form of other origin, as it is but for its bias, which makes good what its weight does to the mean.

    Raises:
        CannotComposeError: Its chains are not one layer.
    """
    stage = fold_form(form)
    changed = grouped_weight(np.asarray(stage.weight), site.spec)
    off = weight - changed
    size = metric.size(weight)
    shape = FormShape.of(form)
    narrow = form.chains[0][0].spec.out_channels // site.spec.groups
    return Candidate(
        kind=FormKind(form.name),
        ranks=(narrow,),
        error=min(metric.size(off) / size, 1.0) if size > 0 else 0.0,
        cost=cost(site, shape),
        shape=shape,
        make=partial(with_bias, form, shifted_bias(site, changed, metric.mean)),
    )


def shifted_bias(site: ConvSite, changed: FloatArray, mean: FloatArray) -> FloatArray:
    """Return the bias that keeps the mean of the output where it was: b + (W - W') mu."""
    off = grouped_weight(site.weight, site.spec) - changed
    bias = 0.0 if site.bias is None else np.asarray(site.bias, dtype=np.float64)
    return np.asarray((off @ mean[..., None]).ravel() + bias)


def with_bias(form: Form, bias: FloatArray) -> Form:
    """Return the form with another bias, on the last stage of its first chain."""
    (*front, last), *others = form.chains
    moved = replace(last, bias=bias.astype(np.asarray(last.weight).dtype))
    return replace(form, chains=((*front, moved), *others))
