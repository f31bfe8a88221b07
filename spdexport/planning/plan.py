"""The plan: which form each layer takes, with what it costs and why; and the forms, made from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.factors import delta, effective_weight
from spdexport.forms import Form, dense, factorized

if TYPE_CHECKING:
    from collections.abc import Iterable

    from spdexport.conv import Array, ConvSite, FloatArray, Skipped
    from spdexport.factors import Factors


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
