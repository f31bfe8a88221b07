"""Evaluation of a model with masks that are known only at run time: straight from the definition, in float64.

Each masked layer of the dense program is computed from V and U as the components are defined, with the components on
the last axis, and not as the rewriter places them::

    a = V conv x                          the activations of the components
    m = input mask * importance * mask of the location
    y = (a * m) diag(fixed mask) U + bias + delta mask * (delta conv x)
    y = W conv x + bias                   where the routing is 0
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.nn import functional

from spdexport.arrays import to_numpy
from spdexport.conv import stored_weight
from spdexport.factors import delta, v_filters
from spdexport.forms import DeltaUse, GateMode
from spdexport.gates import GlobalShare, evaluate_global
from spdexport.gates import evaluate as evaluate_gate
from spdexport.reference.torch_reference import evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch.export import ExportedProgram

    from spdexport.conv import Array, ConvSite, ConvSpec
    from spdexport.forms import LiveInput, VariableMask
    from spdexport.planning import Decision
    from spdexport.reference.noise import Noise

_CONVOLUTIONS: tuple[Callable[..., torch.Tensor], ...] = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED: tuple[Callable[..., torch.Tensor], ...] = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masked:
    """What a masked model computes, in float64.

    Attributes:
        outputs: The model's own, flattened in their order.
        further: The importances and activations that were asked for, by the names of these outputs.
        passed: Which importances are above the threshold of their gate, by layer, for each time that it runs; empty
            without a threshold.
    """

    outputs: Sequence[Any]
    further: Mapping[str, torch.Tensor]
    passed: Mapping[str, Sequence[torch.Tensor]]

    def has_same_gates(self, other: Masked) -> bool:
        """Return whether every threshold decides alike in both."""
        return all(
            len(masks) == len(other.passed.get(layer, ())) and all(map(torch.equal, masks, other.passed[layer]))
            for layer, masks in self.passed.items()
        )


@dataclass(slots=True)
class _Found:
    """What is collected while a program runs."""

    noise: Noise | None = None
    data: dict[str, torch.Tensor] = field(default_factory=dict)
    shared: dict[str, Array] = field(default_factory=dict)
    further: dict[str, torch.Tensor] = field(default_factory=dict)
    passed: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def rounded(self, values: torch.Tensor, size: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return values with simulated rounding, where it is asked for: ``size`` is |W| |x|."""
        if self.noise is None:
            return values
        generator = torch.Generator().manual_seed(self.noise.seed + len(self.passed))
        normal = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        return values + self.noise.unit_rounding * size() * normal


class Evaluate(Protocol):
    """A model on some inputs, in float64, whose layers others may compute: by the keys that their sites have."""

    def __call__(
        self,
        replaced: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
        *,
        watch: Callable[[str, torch.Tensor], None] | None = None,
        noise: Noise | None = None,
    ) -> Sequence[Any]:
        """Return its outputs, flattened in their order; ``watch`` is shown values as they come."""


def of_program(program: ExportedProgram, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Evaluate:
    """Return the evaluation of a program on some inputs."""

    def evaluated(
        replaced: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
        *,
        watch: Callable[[str, torch.Tensor], None] | None = None,
        noise: Noise | None = None,
    ) -> Sequence[Any]:
        return evaluate(program, args, kwargs, watch=watch, noise=noise, replaced=replaced)

    return evaluated


def evaluate_masked(
    dense: Evaluate,
    effective: Evaluate,
    decisions: Sequence[Decision],
    given: Mapping[str, Array],
    *,
    watch: Callable[[str, torch.Tensor], None] | None = None,
    noise: Noise | None = None,
) -> Masked:
    """Evaluate a model with masks.

    Args:
        dense: The model with its own weights, whose activations exact gates read.
        effective: The model in which all other layers have their effective weights.
        decisions: The layers with masks that are known only at run time.
        given: The masks that are inputs, by their names (``mask/conv1``).
        watch: As for ``evaluate``.
        noise: As for ``evaluate``.
    """
    found = _Found(noise=noise)
    layers = {d.site.node: d for d in decisions}
    exact = [d for d in decisions if _is_exact(d)]
    if exact:
        share = next((g for d in exact if d.run_time and isinstance(g := d.run_time.mask.gate, GlobalShare)), None)
        sites = [d.site for d in exact] if share is None else [one.site for one in share.inputs]
        dense({site.node: _recording(site, found) for site in sites}, noise=noise)
        if share is not None:
            read = {one.layer: one.read(to_numpy(found.data[one.site.node])) for one in share.inputs}
            found.shared = evaluate_global(share.function, read)

    def masked(decision: Decision) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda data: layer_output(decision, data, given, found)

    replaced = {node: masked(decision) for node, decision in layers.items()}
    outputs = effective(replaced, watch=watch, noise=noise)
    return Masked(outputs=outputs, further=found.further, passed=found.passed)


def _is_exact(decision: Decision) -> bool:
    run_time = decision.run_time
    return run_time is not None and run_time.mask.gate is not None and run_time.mask.mode is GateMode.EXACT


def _recording(site: ConvSite, found: _Found) -> Callable[[torch.Tensor], torch.Tensor]:
    """The dense layer, which remembers what it read."""

    def run(data: torch.Tensor) -> torch.Tensor:
        found.data[site.node] = data
        return _dense(site, data)

    return run


def layer_output(
    decision: Decision, data: torch.Tensor, given: Mapping[str, Array], found: _Found | None = None
) -> torch.Tensor:
    """Return the output of a masked layer, by the formulas of the module.

    Args:
        decision: The layer.
        data: Its input, float64.
        given: The masks that are inputs, by their names.
        found: Gets importances and activations, and has what the dense pass read.
    """
    site, factors, run_time = decision.site, decision.factors, decision.run_time
    assert factors is not None, "a masked layer has components"
    assert run_time is not None, "a masked layer has a mask"
    found = _Found() if found is None else found
    spec, mask = site.spec, run_time.mask
    V = v_filters(factors, spec).astype(np.float64)

    def activations(x: torch.Tensor) -> torch.Tensor:
        if site.is_lookup:
            return torch.from_numpy(V.T)[x]
        values = convolve(x, torch.from_numpy(V), spec)
        return _last(found.rounded(values, lambda: convolve(x.abs(), torch.from_numpy(np.abs(V)), spec)), spec)

    a = read = activations(data)
    m = torch.ones((), dtype=torch.float64)
    if mask.gate is not None:
        source = found.data[site.node] if mask.mode is GateMode.EXACT else data
        read = activations(source)
        importance = torch.from_numpy(_importance(mask, read, source, found))
        if mask.shows_importance:
            found.further[f"ci/{mask.layer}"] = importance
        if mask.threshold is not None:
            threshold = float(np.asarray(mask.threshold).astype(site.weight.dtype))
            passes = importance > threshold
            found.passed.setdefault(mask.layer, []).append(passes)
            importance = passes.double()
        m = m * importance
    if mask.shows_activation:
        found.further[f"activation/{mask.layer}"] = read
    if mask.input is not None:
        m = m * _given(mask.input, given, a.ndim)
    if mask.located is not None:
        m = m * torch.from_numpy(np.asarray(mask.located, dtype=np.float64))
    masked = (a * m).unflatten(-1, (spec.groups, factors.components))
    U = factors.U.astype(np.float64) * factors.effective_mask[..., None]
    blocks = torch.from_numpy(U.reshape(spec.groups, factors.components, spec.group_out))
    y = torch.einsum("...gc,gco->...go", masked, blocks).flatten(-2)
    if site.bias is not None:
        y = y + torch.from_numpy(site.bias.astype(np.float64))
    if decision.layer.delta is DeltaUse.KEPT:
        left = torch.from_numpy(delta(site.weight, factors, spec))
        rest = left.T[data] if site.is_lookup else _last(convolve(data, left, spec), spec)
        if run_time.delta_mask is not None and run_time.delta_mask.input is not None:
            rest = rest * _given(run_time.delta_mask.input, given, y.ndim)
        y = y + rest
    y = _first(y, spec)
    if run_time.routing is not None:
        routing = _given(run_time.routing, given, y.ndim)
        y = torch.where(_first(routing, spec) != 0, y, _dense(site, data))
    return y


def _given(wanted: LiveInput, given: Mapping[str, Array], rank: int) -> torch.Tensor:
    """An input with as many axes as a value with the components last: (batch, [1, ...] or locations, C or 1)."""
    values = torch.from_numpy(np.asarray(given[wanted.name], dtype=np.float64))
    if not wanted.channels:
        values = values[..., None]
    return values.reshape(values.shape[0], *(1,) * (rank - values.ndim), *values.shape[1:])


def _importance(mask: VariableMask, activations: torch.Tensor, data: torch.Tensor, found: _Found) -> Array:
    assert mask.gate is not None, "the mask has a gate"
    if isinstance(mask.gate, GlobalShare):
        return found.shared[mask.gate.layer]
    return evaluate_gate(mask.gate, to_numpy(activations), to_numpy(data))


def _dense(site: ConvSite, data: torch.Tensor) -> torch.Tensor:
    spec = site.spec
    weight = torch.from_numpy(site.weight.astype(np.float64))
    if site.is_lookup:
        return weight.T[data]
    y = convolve(data, weight, spec)
    if site.bias is None:
        return y
    bias = torch.from_numpy(site.bias.astype(np.float64))
    return y + (bias.reshape(-1, *(1,) * spec.axes) if spec.axes else bias)


def convolve(data: torch.Tensor, weight: torch.Tensor, spec: ConvSpec) -> torch.Tensor:
    """Return a convolution or linear layer by its geometry; the output channels are the weight's.

    Args:
        data: (batch, in, *locations); (batch, *locations, in) without spatial axes.
        weight: (out, in / groups, *kernel), in the layout of ``ConvSpec``.
        spec: The geometry, of whatever number of output channels.
    """
    if not spec.axes:
        return data @ weight.T
    if not spec.transposed:
        padding = [side for pair in reversed(spec.padding) for side in pair]
        return _CONVOLUTIONS[spec.axes - 1](
            functional.pad(data, padding), weight, stride=spec.stride, dilation=spec.dilation, groups=spec.groups
        )
    own = replace(spec, out_channels=weight.shape[0])
    stored = torch.from_numpy(np.ascontiguousarray(stored_weight(weight.numpy(), own)))
    whole = _TRANSPOSED[spec.axes - 1](data, stored, stride=spec.stride, dilation=spec.dilation, groups=spec.groups)
    # The padding of a transposed convolution crops; the output padding is zeros behind, before that.
    crops = [
        side
        for (before, after), extra in reversed(list(zip(spec.padding, spec.output_padding, strict=True)))
        for side in (-before, extra - after)
    ]
    return functional.pad(whole, crops)


def _last(values: torch.Tensor, spec: ConvSpec) -> torch.Tensor:
    """Channels to the last axis."""
    return values.movedim(1, -1) if spec.axes else values


def _first(values: torch.Tensor, spec: ConvSpec) -> torch.Tensor:
    """Channels from the last axis to where the layer has them."""
    return values.movedim(-1, 1) if spec.axes else values
