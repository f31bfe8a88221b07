"""The plan: which form each layer takes, with what it costs and why. Pure decisions; nothing is rewritten here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport import cost
from spdexport.conv import ConvSite, Skipped
from spdexport.errors import UsageError
from spdexport.factors import (
    Factors,
    absorb_mask,
    break_even,
    delta,
    delta_is_rounding,
    delta_ratio,
    drop_dead,
    effective_rank,
    effective_weight,
)
from spdexport.forms import Form, dense, factorized
from spdexport.names import did_you_mean, layer_of_call

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from spdexport.conv import Array, FloatArray

FactorSource = Callable[[ConvSite], Factors | Skipped | None]
"""Gives a layer's factors; or why it has none; or None, where the source has nothing to say about the layer."""


class Delta(StrEnum):
    """What becomes of a weight delta."""

    AUTO = "auto"
    KEEP = "keep"
    DROP = "drop"


class FormChoice(StrEnum):
    """Which form the layers with factors take."""

    FACTORIZED = "factorized"
    DENSE = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What the user wants of the plan.

    Attributes:
        form: The form of layers that have factors.
        delta: ``auto`` keeps the delta of layers without a mask and drops it for layers with one.
        keep_masks: Whether masks stay visible as multiplications.
        layers: Patterns (fnmatch) of the layers to decompose; empty for all.
        exclude: Patterns of layers to leave alone.
    """

    form: FormChoice = FormChoice.FACTORIZED
    delta: Delta = Delta.AUTO
    keep_masks: bool = False
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """The decision for one layer.

    Attributes:
        name: As ``ConvSite.name``.
        kind: ``conv2d``, ``linear``, ...
        geometry: ``ConvSpec.describe()``.
        form: ``dense``, ``factorized``, ``factorized+delta``.
        components: C as the source has it; None for a layer without factors.
        live: Components whose mask is not zero.
        rank: The numerical rank of V diag(m) U.
        break_even: Components below which V and U cost less than the dense layer.
        macs_before: Multiply-accumulates of the dense layer, for one sample.
        macs_after: Those of the form.
        delta_ratio: Norm of the weight delta over the weight's norm.
        delta: ``kept``, ``dropped``, or ``none`` where it is only rounding or there are no factors.
        masked: Whether a mask names the layer.
        reason: Why this form, in one clause.
    """

    name: str
    kind: str
    geometry: str
    form: str
    components: int | None
    live: int | None
    rank: int | None
    break_even: float
    macs_before: int
    macs_after: int
    delta_ratio: float | None
    delta: str
    masked: bool
    reason: str

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """A layer, what was decided for it, and the factors that it takes."""

    site: ConvSite
    layer: LayerPlan
    factors: Factors | None

    @property
    def keep_delta(self) -> bool:
        """Whether the effective weight includes the delta.

        One that is only rounding is in no form. It belongs to the layer's own weight, which stands as it is without a
        mask; with one it does not count, or components that are all masked out would leave it behind.
        """
        if self.layer.delta == "none":
            return self.factors is None or self.factors.mask is None
        return self.layer.delta == "kept"

    @property
    def changes(self) -> bool:
        """Whether the effective weight is another than the layer's own: through a mask, or a delta left out."""
        return self.factors is not None and (self.factors.mask is not None or not self.keep_delta)

    def effective(self) -> FloatArray:
        """The dense weight that the layer stands for, float64, shape ``site.spec.weight_shape``."""
        if self.factors is None or not self.changes:
            return np.asarray(self.site.weight, dtype=np.float64)
        return effective_weight(self.site.weight, self.factors, self.site.spec, keep_delta=self.keep_delta)

    def dense_form(self) -> Form:
        """The dense form with the effective weight, rounded to the layer's dtype."""
        return dense(self.site.spec, self.effective().astype(self.site.weight.dtype), self.site.bias)

    def build_form(self, *, keep_masks: bool) -> Form | None:
        """The form that the plan names; None where the layer stays as it is."""
        if self.factors is None:
            return None
        if self.layer.form == "dense":
            return self.dense_form()
        kept: Array | None = None
        if self.layer.delta == "kept":
            kept = delta(self.site.weight, self.factors, self.site.spec).astype(self.site.weight.dtype)
        return factorized(self.site.spec, self.factors, self.site.bias, delta=kept, keep_mask=keep_masks)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """The decisions for all layers of a model, in graph order, and the layers that are left alone."""

    decisions: tuple[Decision, ...]
    skipped: tuple[Skipped, ...]
    options: PlanOptions

    @property
    def layers(self) -> tuple[LayerPlan, ...]:
        """The decisions without their arrays."""
        return tuple(d.layer for d in self.decisions)

    @property
    def macs_before(self) -> int:
        """Multiply-accumulates of all listed layers, dense, for one sample."""
        return sum(layer.macs_before for layer in self.layers)

    @property
    def macs_after(self) -> int:
        """The same in the forms chosen."""
        return sum(layer.macs_after for layer in self.layers)

    @property
    def approximates(self) -> bool:
        """Whether masks or dropped deltas change the function on purpose."""
        return any(decision.changes for decision in self.decisions)

    def forms(self) -> Iterable[tuple[ConvSite, Form]]:
        """Each layer that changes with its form, made one at a time."""
        for decision in self.decisions:
            form = decision.build_form(keep_masks=self.options.keep_masks)
            if form is not None:
                yield decision.site, form

    def dense_forms(self) -> Iterable[tuple[ConvSite, Form]]:
        """Each layer whose effective weight is not its own, in dense form.

        Matrix products that take another form are here too: they become linear layers as they do in that form, so that
        the two programs can be compared.
        """
        for decision in self.decisions:
            if decision.changes or (decision.factors is not None and decision.site.is_product):
                yield decision.site, decision.dense_form()

    def as_json(self) -> dict[str, Any]:
        """Options and layers, without any path or array."""
        return {
            "options": asdict(self.options),
            "layers": [layer.as_json() for layer in self.layers],
            "skipped": [asdict(s) for s in self.skipped],
        }


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a layer's name, or its name without a call number, matches one of the patterns."""
    return any(fnmatchcase(name, p) or fnmatchcase(layer_of_call(name), p) for p in patterns)


def check_patterns(patterns: Sequence[str], names: Iterable[str], option: str) -> None:
    """Refuse a pattern that matches nothing: it is a typing error.

    Raises:
        UsageError: Names the pattern and some layers.
    """
    names = list(names)
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in names):
            raise UsageError(
                f"The pattern {pattern!r} matches no layer.", where=option, hint=did_you_mean(pattern, names)
            )


def make_plan(
    sites: Sequence[ConvSite],
    skipped: Sequence[Skipped],
    source: FactorSource,
    options: PlanOptions,
    *,
    others: Iterable[str] = (),
) -> Plan:
    """Decide for every site.

    Args:
        sites: The layers of the model.
        skipped: Layers that no form can replace; passed on to the plan.
        source: Where factors come from.
        options: What the user wants.
        others: What else may be excluded: names of components that no layer of the model has.

    Raises:
        UsageError: A pattern matches nothing.
    """
    names = [s.name for s in sites] + [s.name for s in skipped]
    check_patterns(options.layers, [s.name for s in sites], "--layers")
    check_patterns(options.exclude, [*names, *others], "--exclude")
    decisions: list[Decision] = []
    for site in sites:
        if matches(site.name, options.exclude):
            found: Factors | Skipped | None = Skipped(
                name=site.name, kind=site.spec.kind, reason="excluded by --exclude"
            )
        elif options.layers and not matches(site.name, options.layers):
            found = Skipped(name=site.name, kind=site.spec.kind, reason="not named by --layers")
        else:
            found = source(site)
        if found is None:
            found = Skipped(name=site.name, kind=site.spec.kind, reason="it has no components")
        if isinstance(found, Skipped):
            decisions.append(Decision(site=site, layer=_untouched(site, found.reason), factors=None))
        else:
            decisions.append(_decide(site, found, options))
    return Plan(decisions=tuple(decisions), skipped=tuple(skipped), options=options)


def _untouched(site: ConvSite, reason: str) -> LayerPlan:
    macs = cost.dense_macs(site.spec, site.applications)
    return LayerPlan(
        name=site.name,
        kind=site.spec.kind,
        geometry=site.spec.describe(),
        form="dense",
        components=None,
        live=None,
        rank=None,
        break_even=break_even(site.spec, site.upsampling),
        macs_before=macs,
        macs_after=macs,
        delta_ratio=None,
        delta="none",
        masked=False,
        reason=reason,
    )


def _decide(site: ConvSite, factors: Factors, options: PlanOptions) -> Decision:
    spec, masked = site.spec, factors.mask is not None
    before = cost.dense_macs(spec, site.applications)
    if delta_is_rounding(site.weight, factors, spec):
        what = "none"
    elif options.delta is Delta.KEEP or (options.delta is Delta.AUTO and not masked):
        what = "kept"
    else:
        what = "dropped"
    kept = factors.components if options.keep_masks else max(factors.live, 1)
    even = break_even(spec, site.upsampling)
    pair = cost.factorized_macs(spec, kept, site.positions, site.applications)
    if options.form is FormChoice.DENSE:
        form, after, reason = "dense", before, "--form dense"
    else:
        form, after = "factorized", pair
        reason = f"{factors.live} live of {factors.components} components, break-even {math.floor(even)}"
        if what == "kept":
            form, after = "factorized+delta", pair + before
            reason += "; the weight delta is added back"
    return Decision(
        site=site,
        factors=factors,
        layer=LayerPlan(
            name=site.name,
            kind=spec.kind,
            geometry=spec.describe(),
            form=form,
            components=factors.components,
            live=factors.live,
            rank=effective_rank(absorb_mask(drop_dead(factors))),
            break_even=even,
            macs_before=before,
            macs_after=after,
            delta_ratio=delta_ratio(site.weight, factors, spec),
            delta=what,
            masked=masked,
            reason=reason,
        ),
    )
