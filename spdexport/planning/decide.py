"""Deciding which form each layer takes. Pure: nothing is rewritten here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spdexport import cost
from spdexport.conv import ConvSite, Skipped
from spdexport.cost import CostModel, MacsCost, ParameterCost
from spdexport.errors import UsageError
from spdexport.factors import Factors, break_even, delta_is_rounding, delta_ratio
from spdexport.forms import DeltaUse, Form, FormKind
from spdexport.planning.candidates import Choice, Layer, cheapest, literal, live, truncation
from spdexport.planning.chains import asked, cheapest_within, given
from spdexport.planning.choices import Delta, FormChoice, Objective, PlanOptions
from spdexport.planning.live_masks import NOTHING_LIVE, LiveCost, LiveMasks, live_costs, truncates_live
from spdexport.planning.patterns import check_patterns, matches
from spdexport.planning.plan import Decision, LayerPlan, Plan
from spdexport.planning.repeat import repeated
from spdexport.planning.truncation import allowed_rank, check_ranks, check_truncation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spdexport.forms import RunTime
    from spdexport.planning.record import LayerRecord, PlanRecord

FactorSource = Callable[[ConvSite], Factors | Form | Skipped | None]
"""Gives a layer's factors, or its whole form; or why it has none; or None, where it has nothing to say about it."""


def pure_cost(options: PlanOptions) -> CostModel:
    """Return the cost model of an objective that needs no measurement; one that measures is given to ``make_plan``."""
    return ParameterCost() if options.optimize_for is Objective.PARAMS else MacsCost(lane=options.lane_width)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Known:
    """All that is known of a layer before its form is chosen.

    Attributes:
        site: The layer.
        factors: V, U and mask; None for a layer that is left alone.
        reason: Why it is left alone.
        delta: What becomes of the weight delta.
        run_time: What of its masks is known only at run time; None for nothing.
        given: The form that a file brings for it, in the place of factors; None for none.
    """

    site: ConvSite
    factors: Factors | None
    reason: str = ""
    delta: DeltaUse = DeltaUse.NONE
    run_time: RunTime | None = None
    given: Form | None = None


def make_plan(
    sites: Sequence[ConvSite],
    skipped: Sequence[Skipped],
    source: FactorSource,
    options: PlanOptions,
    *,
    live_masks: LiveMasks = NOTHING_LIVE,
    others: Iterable[str] = (),
    cost_model: CostModel | None = None,
    record: PlanRecord | None = None,
) -> Plan:
    """Decide for every site.

    Args:
        sites: The layers of the model.
        skipped: Layers that no form can replace; passed on to the plan.
        source: Where factors come from.
        options: What the user wants.
        live_masks: What of the masks is known only at run time: such a layer has one form, its own V and U.
        others: What else may be excluded: names of components that no layer of the model has.
        cost_model: What ``auto`` chooses by; ``pure_cost`` if None.
        record: A plan to repeat, whose options are ``options``.

    Raises:
        UsageError: A pattern matches nothing, or options contradict each other.
        PlanError: The plan to repeat does not fit the layers.
    """
    names = [s.name for s in sites] + [s.name for s in skipped]
    check_patterns(options.layers, [s.name for s in sites], "--layers")
    check_patterns(options.exclude, [*names, *others], "--exclude")
    if sites and all(_left_out(site.name, options) for site in sites):
        raise UsageError(
            "No layer is left to decompose.",
            where="--layers" if options.layers else "--exclude",
            hint="Name fewer layers to leave alone; spdexport inspect lists them all.",
        )
    check_truncation(options)
    check_ranks(options, [s.name for s in sites])
    model = pure_cost(options) if cost_model is None else cost_model
    if record is not None:
        record.check(sites)
    known = [_known(site, source, options, live_masks) for site in sites]
    live_masks.check([(layer.site, layer.run_time) for layer in known if layer.factors is not None])
    costs = live_costs([(layer.site, layer.factors, layer.run_time) for layer in known])
    decisions = [_decide(layer, options, model, record, beside) for layer, beside in zip(known, costs, strict=True)]
    name, unit = (model.name, model.unit) if record is None else record.cost
    return Plan(decisions=tuple(decisions), skipped=tuple(skipped), options=options, cost=name, unit=unit)


def _left_out(layer: str, options: PlanOptions) -> str | None:
    """Why the patterns of ``options`` leave a layer alone; None where they do not."""
    if matches(layer, options.exclude):
        return "excluded by --exclude"
    return "not named by --layers" if options.layers and not matches(layer, options.layers) else None


def _check_without(site: ConvSite, record: PlanRecord | None) -> None:
    layer = None if record is None else record.of(site)
    if record is not None and record.strict and layer is not None and layer.components is not None:
        raise record.misfit(
            f"The layer {site.name!r} has components in the plan, and none here.",
            "Give the --components that the plan was made with.",
        )


def _given(site: ConvSite, form: Form, record: PlanRecord | None, beside: LiveCost) -> Decision:
    """A layer whose form comes from a file as it is."""
    choice = given(site, form)
    recorded = None if record is None or not record.strict else record.of(site)
    if record is not None and recorded is not None:
        wanted = (recorded.form, recorded.kept, recorded.ranks)
        if wanted != (choice.form, choice.components, choice.ranks):
            raise record.misfit(
                f"The layer {site.name!r} has another form in the plan than in the components.",
                "Give the --components that the plan was made with.",
            )
    shape = cost.FormShape.of(form)
    layer = replace(
        _untouched(site, choice.reason, beside),
        form=choice.form,
        macs_after=cost.shape_macs(site, shape) + beside.macs,
        params_after=cost.shape_parameters(shape) + beside.parameters,
        kept=choice.components,
        truncation=choice.truncation,
        ranks=choice.ranks,
        given=True,
    )
    return Decision(site=site, layer=layer, factors=None, made=form)


def _untouched(site: ConvSite, reason: str, beside: LiveCost) -> LayerPlan:
    shape = cost.dense_shape(site)
    macs, parameters = cost.shape_macs(site, shape), cost.shape_parameters(shape)
    return LayerPlan(
        name=site.name,
        kind=site.kind,
        geometry=site.spec.describe(),
        form=FormKind.DENSE,
        components=None,
        live=None,
        rank=None,
        break_even=break_even(site.spec, site.upsampling),
        macs_before=macs,
        macs_after=macs + beside.macs,
        delta_ratio=None,
        delta=DeltaUse.NONE,
        masked=False,
        reason=reason,
        params_before=parameters,
        params_after=parameters + beside.parameters,
    )


def _known(site: ConvSite, source: FactorSource, options: PlanOptions, live_masks: LiveMasks) -> _Known:
    reason = _left_out(site.name, options)
    factors = source(site) if reason is None else None
    if factors is None:
        return _Known(site=site, factors=None, reason=reason or "it has no components")
    if isinstance(factors, Skipped):
        return _Known(site=site, factors=None, reason=factors.reason)
    if isinstance(factors, Form):
        return _Known(site=site, factors=None, given=factors)
    factors = live_masks.masked(site.name, factors)
    if delta_is_rounding(site.weight, factors, site.spec):
        use = DeltaUse.NONE
    elif options.delta is Delta.KEEP or (options.delta is Delta.AUTO and factors.mask is None):
        use = DeltaUse.KEPT
    else:
        use = DeltaUse.DROPPED
    run_time = live_masks.of(site, factors, keeps_delta=use is DeltaUse.KEPT)
    return _Known(site=site, factors=factors, delta=use, run_time=run_time)


def _decide(
    known: _Known, options: PlanOptions, model: CostModel, record: PlanRecord | None, beside: LiveCost
) -> Decision:
    site, factors, run_time = known.site, known.factors, known.run_time
    if known.given is not None:
        return _given(site, known.given, record, beside)
    if factors is None:
        _check_without(site, record)
        return Decision(site=site, layer=_untouched(site, known.reason, beside), factors=None)
    layer = Layer.of(site, factors, known.delta)
    recorded = None if record is None else _recorded(layer, record)
    if run_time is not None:
        if _is_truncated(layer, options, model, record, recorded):
            raise truncates_live()
        choice = live(layer, run_time)
    elif record is None:
        choice = _choose(layer, options, model)
    else:
        choice = repeated(layer, recorded, record, options)
    dense, shape = cost.dense_shape(site), choice.shape(site)
    gain = None
    if run_time is None:
        gain = None if recorded is None else recorded.gain
        if options.form is FormChoice.AUTO and not options.truncates and record is None and not site.is_lookup:
            gain = layer.gain(model, shape)
    return Decision(
        site=site,
        factors=factors,
        made=choice.made,
        run_time=run_time,
        layer=LayerPlan(
            name=site.name,
            kind=site.kind,
            geometry=site.spec.describe(),
            form=choice.form,
            components=factors.components,
            live=factors.live,
            rank=layer.rank.rank,
            break_even=break_even(site.spec, site.upsampling),
            macs_before=cost.shape_macs(site, dense),
            macs_after=cost.shape_macs(site, shape) + beside.macs,
            delta_ratio=delta_ratio(site.weight, factors, site.spec),
            delta=known.delta,
            masked=factors.mask is not None,
            reason=choice.reason,
            kept=choice.components,
            truncation=choice.truncation,
            truncated_to=choice.truncated_to,
            params_before=cost.shape_parameters(dense),
            params_after=cost.shape_parameters(shape) + _mask_size(known, choice, options) + beside.parameters,
            weighed=choice.weighed,
            gain=gain,
            ranks=choice.ranks,
        ),
    )


def _mask_size(known: _Known, choice: Choice, options: PlanOptions) -> int:
    """The numbers of a fixed mask that stays visible; what a live one stores is among its own costs."""
    factors = known.factors
    if factors is None or factors.mask is None or known.run_time is not None:
        return 0
    return factors.effective_mask.size if options.keep_masks and choice.form.is_literal else 0


def _recorded(layer: Layer, record: PlanRecord) -> LayerRecord | None:
    """What a plan says of a layer that has components here."""
    found = record.of(layer.site)
    name = layer.site.name
    if not record.strict:
        return None if found is None or found.components is None else found
    assert found is not None, "the plan was checked"
    if found.components is None:
        raise record.misfit(f"The layer {name!r} has no components in the plan, and {layer.factors.components} here.")
    if found.delta != layer.delta:
        raise record.misfit(
            f"The weight delta of {name!r} is {found.delta} in the plan, and {layer.delta} here.",
            "Give the --components and --masks that the plan was made with.",
        )
    return found


def _is_truncated(
    layer: Layer, options: PlanOptions, model: CostModel, record: PlanRecord | None, recorded: LayerRecord | None
) -> bool:
    """Whether the weight would be truncated if the mask were fixed; what a file says of itself asks for nothing."""
    if record is not None:
        return record.strict and recorded is not None and recorded.truncated_to is not None
    return options.truncates and _choose(layer, options, model).truncation is not None


def _choose(layer: Layer, options: PlanOptions, model: CostModel) -> Choice:
    visible = options.keep_masks and layer.factors.mask is not None
    rank = None
    if options.truncates:
        rank = allowed_rank(options, layer.site.name, layer.sigma)
    if layer.site.is_lookup and not options.truncates:
        return Choice(form=FormKind.DENSE, reason="an embedding's effective weight is looked up, which costs nothing")
    if layer.site.is_lookup:
        options = replace(options, form=FormChoice.DENSE)
    if options.form is FormChoice.AUTO and not visible:
        exact = cheapest(layer, model)
        return exact if rank is None else cheapest_within(layer, exact, options, model, pure_cost(options))
    if (kind := options.form.chain) is not None:
        return asked(layer, kind, options)
    if rank is not None and rank < layer.rank.rank:
        choice = truncation(layer, rank)
        if options.form is FormChoice.DENSE:
            return replace(choice, form=FormKind.DENSE, components=None)
        return choice
    if options.form is FormChoice.DENSE:
        return Choice(form=FormKind.DENSE, reason="--form dense")
    return literal(layer, keep_masks=options.keep_masks, note="; its mask stays visible" if visible else "")
