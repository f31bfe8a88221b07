"""Verification of masks that are known only at run time: which are drawn, what is right, and what V and U must be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import torch

from spdexport.arrays import to_numpy
from spdexport.factors import absorb_mask, delta, u_filters, unit_rounding, v_filters
from spdexport.forms import DeltaUse, Role
from spdexport.names import layer_of_call
from spdexport.reference.masked_reference import evaluate_masked
from spdexport.reference.noise import Noise
from spdexport.rewrite.onnx_scopes import initializer_named
from spdexport.verification.frame import AnyCase
from spdexport.verification.result import EdgeResult, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import onnx_ir as ir

    from spdexport.conv import Array
    from spdexport.forms import LiveInput
    from spdexport.planning import Decision, Plan
    from spdexport.reference.masked_reference import Evaluate, Masked

KINDS = ("left out", "random", "zero", "binary", "one", "beyond 0 and 1")
"""What run-time masks are drawn as, case after case; the two that say most come first."""

GATE_ROUNDINGS = 16
"""Times the unit rounding by which a gate is shaken to see if its threshold decides the same."""


class MaskedCase(AnyCase, Protocol):
    """A case that may have masks."""

    @property
    def given(self) -> Mapping[str, Array]:
        """The masks by the names that the file has for them."""


C = TypeVar("C", bound=MaskedCase)


class MaskedModel(ABC, Generic[C]):
    """A model with masks that are known only at run time, as it is verified.

    Args:
        plan: The decisions.
        required: Whether the file has no default for an input that is left out.
    """

    def __init__(self, plan: Plan, *, required: bool) -> None:
        self.plan, self.required = plan, required

    @abstractmethod
    def dense(self, case: C) -> Evaluate:
        """Return the model with the source's own weights, on a case without its masks."""

    @abstractmethod
    def effective(self, case: C) -> Evaluate:
        """Return the same with the plan's effective weights."""

    @abstractmethod
    def shapes(self, case: C) -> Mapping[str, tuple[int, ...]]:
        """Return the shapes of the masks for a case, by their keywords."""

    @abstractmethod
    def masked(self, case: C, name: str, given: Mapping[str, Array], *, omitted: bool) -> C:
        """Return a case with masks, by the names that the file has for them."""

    @property
    def decisions(self) -> Sequence[Decision]:
        """The layers whose masks are known only at run time."""
        return [d for d in self.plan.decisions if d.run_time is not None]

    def cases(self, plain: Iterable[C], seed: int) -> Iterator[C]:
        """Return each case with masks; without run-time masks, as it is."""
        inputs = self.plan.runtime_inputs
        for number, case in enumerate(plain):
            if not inputs:
                yield self.masked(case, case.name, {}, omitted=False)
                continue
            kind = KINDS[number % len(KINDS)]
            if kind == "left out" and self.required:
                kind = "one"
            shapes = self.shapes(case)
            random = np.random.default_rng([seed, number, 1])
            dtypes = {d.site.weight.dtype for d in self.decisions}
            dtype = max(dtypes, key=lambda kind: kind.itemsize)
            given = {i.name: _draw(kind, i, shapes[i.keyword], random).astype(dtype) for i in inputs}
            yield self.masked(case, f"{case.name}, masks {kind}", given, omitted=kind == "left out")

    def expected(self, case: C, watch: Callable[[str, torch.Tensor], None] | None = None) -> Masked:
        """Return what is right, from the definition of the components."""
        return evaluate_masked(self.dense(case), self.effective(case), self.decisions, case.given, watch=watch)

    def is_undecided(self, case: C, found: Masked, unit_rounding: float) -> bool:
        """Return whether an importance is so near the threshold of its gate that rounding may decide about the mask."""
        if not found.passed:
            return False
        for seed in (1, 2):
            noise = Noise(seed=seed, unit_rounding=GATE_ROUNDINGS * unit_rounding)
            shaken = evaluate_masked(self.dense(case), self.effective(case), self.decisions, case.given, noise=noise)
            if not found.has_same_gates(shaken):
                return True
        return False

    def right(
        self, case: C, unit_rounding: float, names: Sequence[str]
    ) -> tuple[str | None, Mapping[str, Array] | None]:
        """Return why nothing can be judged on a case, and else what is right there.

        Args:
            case: The case.
            unit_rounding: Of the model's dtype.
            names: Of its outputs; the last ones are those of importances and activations.
        """
        found = self.expected(case)
        if self.is_undecided(case, found, unit_rounding):
            return "an importance is so near the threshold of its gate that rounding decides", None
        own = [to_numpy(v) for v in found.outputs if isinstance(v, torch.Tensor)]
        # In a file they have these names; of a program alone the outputs are numbered.
        further = zip(names[len(own) :], self.plan.runtime_outputs, strict=True)
        shown = {name: to_numpy(found.further[output]) for name, output in further}
        return None, {**dict(zip(names, own, strict=False)), **shown}

    def first_divergent(
        self, case: C, evaluated: Callable[[Callable[[str, torch.Tensor], None]], object]
    ) -> str | None:
        """Return the first masked layer whose output in the intended model is not what is right.

        Args:
            case: The case that showed the fault.
            evaluated: Runs the intended model on it, in float64, with a watcher of values by the keys of sites.
        """
        nodes = {d.site.node: d.site.name for d in self.decisions}
        right: dict[str, Array] = {}
        wrong: dict[str, bool] = {}

        def remember(name: str, value: torch.Tensor) -> None:
            if name in nodes:
                right[name] = to_numpy(value)

        def compare(name: str, value: torch.Tensor) -> None:
            if name in right:
                exact, mine = right[name], to_numpy(value)
                size = float(np.abs(exact).max(initial=0.0))
                u = unit_rounding(np.dtype(np.float32))
                wrong[name] = mine.shape != exact.shape or bool((np.abs(mine - exact) > 64 * u * size).any())

        self.expected(case, remember)
        evaluated(compare)
        return next((nodes[name] for name in right if wrong.get(name)), None)


def _draw(kind: str, wanted: LiveInput, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Values of one input, float64."""
    binary: Array = (random.random(shape) < 0.5).astype(np.float64)
    match kind:
        case "random":
            return binary if wanted.role is Role.ROUTING else random.random(shape)
        case "binary":
            return binary
        case "beyond 0 and 1":
            return np.zeros(shape) if wanted.role is Role.ROUTING else 3 * random.random(shape) - 1
        case "zero":
            return np.ones(shape) if wanted.role is Role.ROUTING else np.zeros(shape)
        case _:
            return np.ones(shape)


def factors_fault(file: ir.Model, plan: Plan) -> EdgeResult | None:
    """Return the weights edge as a failure, where V, U or the delta of a masked layer is not the plan's.

    None where they are.

    V and the delta are in the file as they are in the plan, bit for bit. So is U, unless a batch norm was folded into
    it: then each of its output channels has one factor.
    """
    for decision in plan.decisions:
        if decision.run_time is None or decision.factors is None:
            continue
        spec, layer = decision.site.spec, layer_of_call(decision.site.name)
        factors = absorb_mask(decision.factors)
        parts = {"V": v_filters(factors, spec), "U": u_filters(factors, spec)}
        if decision.layer.delta is DeltaUse.KEPT:
            parts["delta"] = delta(decision.site.weight, decision.factors, spec)
        for part, right in parts.items():
            stored = initializer_named(file, f"{layer}.{part}")
            if stored is None or stored.const_value is None or (spec.transposed and part != "U"):
                continue  # under another name it is compared with the export
            mine = stored.const_value.numpy()
            right = right.astype(decision.site.weight.dtype)
            # A linear layer's weight may be stored transposed, for a plain matrix product; a batch norm is folded
            # into the last layer before it, and behind a sum there is none.
            ways = (right,) if spec.axes else (right, right.T)
            scaled = part == "U" and "delta" not in parts
            if not any(_agrees(mine, way, scaled=scaled) for way in ways):
                return EdgeResult(
                    edge="weights",
                    status=Status.FAIL,
                    noise_ratio=float("inf"),
                    first_divergence=decision.site.name,
                    reason=f"{part} of {layer} in the file is not that of its components",
                )
    return None


def _agrees(mine: Array, right: Array, *, scaled: bool) -> bool:
    if mine.shape != right.shape:
        return False
    if np.array_equal(mine, right):
        return True
    if not scaled:
        return False
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (mine, right))
    norms = (b * b).sum(axis=1)
    scale = np.divide((a * b).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)
    bound = 4 * unit_rounding(mine.dtype) * np.abs(scale[:, None] * b).max(axis=1, keepdims=True, initial=0.0)
    return bool((np.abs(a - scale[:, None] * b) <= bound).all())
