"""The plan: which form each layer takes, with what it costs and why; and the forms, made from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.factors import Factors, delta, effective_weight
from spdexport.forms import DeltaUse, Form, FormKind, RunTime, dense, factorized, fold_form, variable_form
from spdexport.gates import GlobalShare
from spdexport.planning.choices import FormChoice, PlanOptions
from spdexport.rewrite.dense_pass import GateReads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spdexport.conv import Array, ConvSite, ConvSpec, FloatArray, Skipped
    from spdexport.forms import LiveInput, Ranks


SCHEMA_VERSION = 1
"""Of the plan as JSON: a change of its names raises it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A form that a layer might take, with its cost.

    Attributes:
        form: As ``LayerPlan.form``.
        components: Those of V and U, in each group; None for a form without.
        cost: In the unit of the plan's cost model.
        ranks: As ``LayerPlan.ranks``.
    """

    form: FormKind
    components: int | None
    cost: float
    ranks: Ranks = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What truncating a layer would give.

    Attributes:
        rank: Components that keep ``ENERGY`` of the squared singular values.
        macs: Multiply-accumulates of the cheapest form when they are kept; those of the plan where nothing is gained.
        paying_rank: The most components that cost less than the form of the plan; None where no number does.
        paying_error: The relative Frobenius error of the effective weight with that many.
    """

    rank: int
    macs: int
    paying_rank: int | None
    paying_error: float | None


ENERGY = 0.999
"""The energy that ``Gain`` is told for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """The decision for one layer.

    Attributes:
        name: As ``ConvSite.name``.
        kind: ``conv2d``, ``linear``, ...
        geometry: ``ConvSpec.describe()``.
        form: Its kind.
        components: C as the source has it; None for a layer without factors.
        live: Components whose mask is not zero.
        rank: The numerical rank of the effective weight, before any truncation.
        break_even: Components below which V and U cost less than the dense layer.
        macs_before: Multiply-accumulates of the dense layer, for one sample.
        macs_after: Those of the form.
        delta_ratio: Norm of the weight delta over the weight's norm.
        delta: What became of the weight delta.
        masked: Whether a mask names the layer.
        reason: Why this form, in one clause.
        kept: Components of the V and U that stand in the model, in each group; None where none do.
        truncation: The relative Frobenius error of a truncated effective weight; None where it is exact.
        truncated_to: The rank of that weight, where it is truncated as V and U.
        params_before: Numbers that the dense layer stores.
        params_after: Numbers that the form stores.
        weighed: The forms that ``auto`` chose from, dense first; empty where the form was given.
        gain: What truncating would give, where ``auto`` looked for it.
        ranks: Channels between the stages of a spatial or Tucker-2 form, in each group; empty for other forms.
        given: Whether the form came from a file of chains as it is.
    """

    name: str
    kind: str
    geometry: str
    form: FormKind
    components: int | None
    live: int | None
    rank: int | None
    break_even: float
    macs_before: int
    macs_after: int
    delta_ratio: float | None
    delta: DeltaUse
    masked: bool
    reason: str
    kept: int | None = None
    truncation: float | None = None
    truncated_to: int | None = None
    params_before: int = 0
    params_after: int = 0
    weighed: tuple[Weighed, ...] = ()
    gain: Gain | None = None
    ranks: Ranks = ()
    given: bool = False

    @property
    def is_decomposed(self) -> bool:
        """Whether the layer has components or a form of its own, rather than being left alone."""
        return self.components is not None or self.given

    def as_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """A layer, what was decided for it, and the factors that it takes.

    Attributes:
        site: The layer.
        layer: The decision.
        factors: V, U and mask as the source has them; None for a layer that is left alone, or whose form is given.
        made: A form made from the effective weight, exact or truncated, in the layer's dtype, or given by a file of
            chains; None where the plan has no use for one.
        run_time: What of the layer is known only at run time; None for nothing. The effective weight is then that of
            masks of ones.
    """

    site: ConvSite
    layer: LayerPlan
    factors: Factors | None
    made: Form | None = None
    run_time: RunTime | None = None

    @property
    def is_decomposed(self) -> bool:
        """Whether the layer has factors or a form of its own, rather than being left alone."""
        return self.factors is not None or self.made is not None

    @property
    def bias(self) -> Array | None:
        """The bias of the layer in the model that is made: its own, the very array, unless a given form has another."""
        return self.site.bias if self.made is None else self.made.stages[-1].bias

    @property
    def keep_delta(self) -> bool:
        """Whether the effective weight includes the delta.

        One that is only rounding is in no form. It belongs to the layer's own weight, which stands as it is without a
        mask; with one it does not count, or components that are all masked out would leave it behind.
        """
        if self.layer.delta is DeltaUse.NONE:
            return self.factors is None or self.factors.mask is None
        return self.layer.delta is DeltaUse.KEPT

    @property
    def changes(self) -> bool:
        """Whether weight or bias are not the layer's own: by mask, edit, truncation, given form, or left-out delta."""
        if self.factors is None:
            return self.layer.truncation is not None or self.bias is not self.site.bias
        is_other = self.factors.mask is not None or self.factors.is_edited
        return is_other or not self.keep_delta or self.layer.truncation is not None

    def effective(self) -> FloatArray:
        """Return the dense weight that the layer stands for, float64, shape ``site.spec.weight_shape``."""
        if self.layer.truncation is not None:
            assert self.made is not None, "a truncated weight is that of its form"
            return np.asarray(fold_form(self.made).weight, dtype=np.float64)
        if self.factors is None or not self.changes:
            return np.asarray(self.site.weight, dtype=np.float64)
        return effective_weight(self.site.weight, self.factors, self.site.spec, keep_delta=self.keep_delta)

    def dense_form(self) -> Form:
        """Return the dense form with the effective weight, rounded to the layer's dtype."""
        return dense(self.site.spec, self.effective().astype(self.site.weight.dtype), self.bias)

    def build_form(self, *, keep_masks: bool) -> Form | None:
        """Return the form that the plan names; None where the layer stays as it is."""
        if not self.is_decomposed:
            return None
        if self.layer.form is FormKind.DENSE:
            return self.dense_form()
        if self.made is not None:
            return self.made
        assert self.factors is not None, "what was not made comes from the source"
        if self.layer.form is FormKind.CONSTANT:
            # One zero component: ONNX has no convolution without channels.
            nothing = masked_out(self.site)
            return replace(factorized(self.site.spec, nothing, self.site.bias), name=FormKind.CONSTANT)
        kept: Array | None = None
        if self.layer.delta is DeltaUse.KEPT:
            kept = delta(self.site.weight, self.factors, self.site.spec).astype(self.site.weight.dtype)
        if self.run_time is not None:
            return variable_form(
                self.site.spec,
                self.factors,
                self.site.bias,
                mask=self.run_time.mask,
                delta=kept,
                delta_mask=self.run_time.delta_mask,
                routing=self.run_time.routing,
            )
        return factorized(self.site.spec, self.factors, self.site.bias, delta=kept, keep_mask=keep_masks)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """The decisions for all layers of a model, in graph order, and the layers that are left alone.

    Attributes:
        decisions: For each layer that a form can replace.
        skipped: The others.
        options: What the user wanted.
        cost: The name of the cost model.
        unit: What its numbers count.
    """

    decisions: tuple[Decision, ...]
    skipped: tuple[Skipped, ...]
    options: PlanOptions
    cost: str = ""
    unit: str = ""

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
    def params_before(self) -> int:
        """Numbers that all listed layers store, dense."""
        return sum(layer.params_before for layer in self.layers)

    @property
    def params_after(self) -> int:
        """The same in the forms chosen."""
        return sum(layer.params_after for layer in self.layers)

    @property
    def bytes_saved(self) -> int:
        """What the forms chosen take less than the dense layers, in the layers' own dtypes; negative for more."""
        return sum((d.layer.params_before - d.layer.params_after) * d.site.weight.itemsize for d in self.decisions)

    @property
    def approximates(self) -> bool:
        """Whether masks or dropped deltas change the function on purpose."""
        return any(decision.changes for decision in self.decisions)

    @property
    def chains(self) -> tuple[tuple[ConvSpec, ...], ...]:
        """The geometries of the stages of all forms of several kernels."""
        made = [d.made for d in self.decisions if d.made is not None and d.layer.ranks]
        return tuple(tuple(stage.spec for stage in chain) for form in made for chain in form.chains)

    @property
    def runtime_inputs(self) -> tuple[LiveInput, ...]:
        """The inputs that the model gets beside its own, in the order of the layers; calls of one layer share them."""
        found = [i for d in self.decisions if d.run_time is not None for i in d.run_time.inputs]
        return tuple(dict.fromkeys(found))

    @property
    def runtime_outputs(self) -> tuple[str, ...]:
        """The names of the outputs that the model gets behind its own, in their order."""
        masks = [d.run_time.mask for d in self.decisions if d.run_time is not None]
        names = []
        for mask in masks:
            names += [f"ci/{mask.layer}"] * mask.shows_importance + [f"activation/{mask.layer}"] * mask.shows_activation
        return tuple(dict.fromkeys(names))

    @property
    def trims(self) -> bool:
        """Whether dead channels are removed from an ONNX file: where nothing of it is to stay as it was given."""
        at_run_time = any(d.run_time is not None for d in self.decisions)
        return self.options.form is FormChoice.AUTO and not self.options.keep_masks and not at_run_time

    @property
    def exactly_gated(self) -> tuple[str, ...]:
        """The nodes of layers whose inputs in the dense model importances come from."""
        found = [d.site.node for d in self.decisions if d.run_time is not None and d.run_time.reads_dense]
        share = self.global_share
        return tuple(dict.fromkeys([*found, *(one.site.node for one in (() if share is None else share.inputs))]))

    @property
    def gate_reads(self) -> GateReads:
        """What exact gates read of the dense model."""
        gated = self.exactly_gated
        changed = [d.site.node for d in self.decisions if d.changes] if gated else ()
        return GateReads(changed=changed, gated=gated, share=self.global_share)

    @property
    def global_share(self) -> GlobalShare | None:
        """What one function of all layers gives for the first that is masked; None where layers have their own."""
        gates = [d.run_time.mask.gate for d in self.decisions if d.run_time is not None]
        return next((gate for gate in gates if isinstance(gate, GlobalShare)), None)

    def forms(self) -> Iterable[tuple[ConvSite, Form]]:
        """Yield each layer that changes with its form, made one at a time."""
        for decision in self.decisions:
            form = decision.build_form(keep_masks=self.options.keep_masks)
            if form is not None:
                yield decision.site, form

    def dense_forms(self) -> Iterable[tuple[ConvSite, Form]]:
        """Yield each layer whose effective weight is not its own, in dense form.

        Matrix products that take another form are here too: they become linear layers as they do in that form, so that
        the two programs can be compared.
        """
        for decision in self.decisions:
            if decision.changes or (decision.is_decomposed and decision.site.is_product):
                yield decision.site, decision.dense_form()

    def as_json(self) -> dict[str, Any]:
        """Options and layers, without any path or array: also what a plan file holds."""
        return {
            "schema_version": SCHEMA_VERSION,
            "cost": {"model": self.cost, "unit": self.unit},
            "options": asdict(self.options),
            "layers": [layer.as_json() for layer in self.layers],
            "skipped": [asdict(s) for s in self.skipped],
        }


def masked_out(site: ConvSite) -> Factors:
    """Return one component of zeros."""
    spec = site.spec
    groups = (spec.groups,) if spec.groups > 1 else ()
    dtype = site.weight.dtype
    return Factors(V=np.zeros((*groups, spec.patch, 1), dtype), U=np.zeros((*groups, 1, spec.group_out), dtype))
