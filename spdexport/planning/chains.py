"""Forms of several kernels, such as k x 1 and 1 x k: asked for, weighed beside V and U, or repeated from a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from spdexport.cost import family_shape, pair_shape
from spdexport.forms import FAMILIES, FormKind, fold_form
from spdexport.forms.families import NEW, holds, rounded
from spdexport.planning.candidates import Choice, truncation
from spdexport.planning.choices import FormChoice
from spdexport.planning.plan import Weighed
from spdexport.planning.truncation import SLACK, allowed_error, allowed_rank, given_rank

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spdexport.conv import ConvSite, FloatArray
    from spdexport.cost import CostModel
    from spdexport.forms import Family, Form, Ranks
    from spdexport.forms.families import Decomposed
    from spdexport.planning.candidates import Layer
    from spdexport.planning.choices import PlanOptions


def asked(layer: Layer, kind: FormKind, options: PlanOptions) -> Choice:
    """Return the form that the user asked for, at the ranks that the options allow; dense where the layer has none.

    Args:
        layer: The layer.
        kind: The kind of form.
        options: What the user wants.
    """
    family, name = FAMILIES[kind], layer.site.name
    if (reason := family.without(layer.site.spec)) is not None:
        return Choice(form=FormKind.DENSE, reason=f"it has no {kind} form, for {reason}")
    found = _decomposed(layer, family)
    rank, allowed = given_rank(options, name), allowed_error(options, name, layer.sigma)
    ranks = found.exact
    if rank is not None:
        ranks = found.at(rank)
    elif allowed is not None:
        shapes = {ranks: family_shape(layer.site, kind, ranks) for ranks in found.within(allowed)}
        ranks = min(shapes, key=lambda at: sum(spec.out_channels * spec.patch for spec in shapes[at].stages))
    return _chain(layer, family, found, ranks)


def given(site: ConvSite, form: Form) -> Choice:
    """Return the form that a file brings for a layer, and how far its weight is from the layer's."""
    kind, weight = FormKind(form.name), np.asarray(site.weight, dtype=np.float64)
    (chain,) = form.chains
    weights = [np.asarray(stage.weight) for stage in chain]
    ranks = FAMILIES[kind].ranks(site.spec, weights) if kind in FAMILIES else ()  # a dense layer has none
    error = None if holds(weight, form, site.weight.dtype) else _error(weight, form)
    told = "the form of the file of components"
    is_pair = kind is FormKind.RECOMPRESSED
    return Choice(
        form=kind,
        reason=f"{told}, which holds the weight" if error is None else f"{told}, relative error {error:.2g}",
        components=ranks[0] if is_pair else None,
        made=form,
        truncation=error,
        ranks=() if is_pair else ranks,
    )


def cheapest_within(layer: Layer, exact: Choice, options: PlanOptions, cost: CostModel, rough: CostModel) -> Choice:
    """Return the cheapest form whose error the options allow, where that is cheaper than the best exact one.

    Else that one.

    Ranks are raised to what the lanes hold that they are padded to in the file: true components in the place of zeros.

    Args:
        layer: The layer.
        exact: The best exact form.
        options: What the user wants; they allow the layer an error.
        cost: What is to be least.
        rough: What the ranks of each kind are chosen by, for ``cost`` may have to measure.
    """
    site = layer.site
    rank = allowed_rank(options, site.name, layer.sigma)
    assert rank is not None, "an error is allowed"
    if not layer.weight.any():
        return replace(exact, reason=f"{exact.reason}; rank {rank} truncates nothing")
    options_of = list(_truncated(layer, rank, options, cost, rough))
    weighed = (*exact.weighed, *(option.weighed for option in options_of))
    best = min(options_of, key=lambda option: option.weighed.cost, default=None)
    if best is not None and best.weighed.cost < cost(site, exact.shape(site)):
        return replace(best.make(), weighed=weighed)
    nothing = f"rank {rank} truncates nothing"
    why = nothing if rank >= layer.rank.rank else f"not truncated, for rank {rank} would not be cheaper"
    return replace(exact, reason=f"{exact.reason}; {why}", weighed=weighed)


def repeated_chain(layer: Layer, kind: FormKind, ranks: Ranks) -> Choice | None:
    """Return the form of these ranks.

    None where a layer of this geometry has no form of this kind or number of ranks.
    """
    family = FAMILIES[kind]
    if family.without(layer.site.spec) is not None or len(ranks) not in family.numbers:
        return None
    found = _decomposed(layer, family)
    return _chain(layer, family, found, tuple(map(min, ranks, family.largest(layer.site.spec))))


def allows_chain(layer: Layer, kind: FormKind, ranks: Ranks, options: PlanOptions) -> bool:
    """Return whether the options allow this form its error, found on a machine that rounds otherwise."""
    found = _decomposed(layer, FAMILIES[kind])
    rank, allowed = given_rank(options, layer.site.name), allowed_error(options, layer.site.name, layer.sigma)
    if rank is not None and options.form is not FormChoice.AUTO:
        return all(size >= least for size, least in zip(ranks, found.at(rank), strict=False))
    return allowed is not None and bool((found.lost(ranks) <= allowed + SLACK).all())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Option:
    """A truncated form that a layer might take, not yet made."""

    weighed: Weighed
    make: Callable[[], Choice]


def _truncated(layer: Layer, rank: int, options: PlanOptions, cost: CostModel, rough: CostModel) -> Iterator[_Option]:
    """V and U, and the cheapest form of each other kind."""
    site = layer.site
    if rank < layer.rank.rank:
        (size,) = _filled((rank,), (layer.rank.rank,), layer, options)
        price = cost(site, pair_shape(site, size))
        weighed = Weighed(form=FormKind.RECOMPRESSED, components=size, cost=price)
        yield _Option(weighed=weighed, make=partial(truncation, layer, size))
    allowed = allowed_error(options, site.name, layer.sigma)
    assert allowed is not None, "an error is allowed"
    for family in NEW:
        if family.without(site.spec) is not None:
            continue
        found, kind = _decomposed(layer, family), family.kind
        shapes = {
            ranks: family_shape(site, kind, ranks)
            for ranks in (_filled(least, found.exact, layer, options) for least in found.within(allowed))
        }
        costs = {ranks: rough(site, shape) for ranks, shape in shapes.items()}
        ranks = min(costs, key=costs.__getitem__)
        weighed = Weighed(form=kind, components=None, cost=cost(site, shapes[ranks]), ranks=ranks)
        yield _Option(weighed=weighed, make=partial(_chain, layer, family, found, ranks))


def _decomposed(layer: Layer, family: Family) -> Decomposed:
    return family.decompose(layer.weight, layer.site.spec, layer.site.weight.dtype)


def _chain(layer: Layer, family: Family, found: Decomposed, ranks: Ranks) -> Choice:
    """The form at some ranks, raised until each entry holds where the weight as a whole does."""
    site, weight = layer.site, layer.weight
    covers = all(size >= least for size, least in zip(ranks, found.exact, strict=False))
    for at in (ranks, found.exact, found.full) if covers else (ranks,):
        ranks, form = at, family.form(site.spec, found.weights(at), site.bias)
        exact = holds(weight, form, site.weight.dtype)
        if exact:
            break
    told = f"{family.kind} of {'rank' if len(ranks) == 1 else 'ranks'} {' and '.join(map(str, ranks))}"
    error = None if exact else _error(weight, form)
    how = f"{told}, which holds the weight" if exact else f"truncated to {told}, relative error {error:.2g}"
    return Choice(
        form=family.kind,
        reason=f"{how}; {layer.told}",
        made=rounded(form, site.weight.dtype),
        truncation=error,
        ranks=ranks,
    )


def _error(weight: FloatArray, form: Form) -> float:
    """The relative Frobenius error of a form; 1 of a weight of zeros, which no error is relative to."""
    norm = float(np.linalg.norm(weight))
    return float(np.linalg.norm(np.asarray(fold_form(form).weight) - weight)) / norm if norm else 1.0


def _filled(ranks: Ranks, exact: Ranks, layer: Layer, options: PlanOptions) -> Ranks:
    """Ranks raised to whole lanes, as far as there are components to fill them with, where a file is padded to them."""
    spec, lane = layer.site.spec, options.padding
    if spec.axes != 2 or spec.groups != 1:
        return ranks
    return tuple(max(rank, min(-(-rank // lane) * lane, most)) for rank, most in zip(ranks, exact, strict=False))
