"""What a form costs: multiply-accumulates, parameters, and models of cost that a plan is chosen by. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from spdexport.forms.families import FAMILIES
from spdexport.forms.kinds import FormKind
from spdexport.forms.pair import pair_specs

if TYPE_CHECKING:
    from spdexport.conv import ConvSite, ConvSpec
    from spdexport.forms import Form
    from spdexport.forms.families import Ranks

LANE_WIDTH = 16
"""Channels that a convolution on a CPU computes together: the block of ONNX Runtime's NCHWc kernels with AVX-512 (8
without), and of the columns that its matrix products pack."""

MACS_PER_BYTE = 8.0
"""The machine balance: multiply-accumulates that one CPU core does while one byte of activations moves through memory.

Some 50 G of them a second for each core, to 6 GB/s. ResNet-50 with one component in every layer takes a fifth of the
dense model's time on such a machine, and this constant makes a fifth of it.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormShape:
    """A form without its numbers: what its cost depends on.

    Attributes:
        name: As ``Form.name``.
        chains: The geometry of each stage of each chain.
        extra: Numbers that the form stores beside its weights: masks and biases.
    """

    name: str
    chains: tuple[tuple[ConvSpec, ...], ...]
    extra: int = 0

    @classmethod
    def of(cls, form: Form) -> Self:
        """Return the shape of a form."""
        extra = sum(values.size for stage in form.stages for values in (stage.mask, stage.bias) if values is not None)
        chains = tuple(tuple(stage.spec for stage in chain) for chain in form.chains)
        return cls(name=form.name, chains=chains, extra=extra)

    @property
    def stages(self) -> tuple[ConvSpec, ...]:
        """All stages of all chains, in the order in which they run."""
        return tuple(spec for chain in self.chains for spec in chain)


def dense_shape(site: ConvSite) -> FormShape:
    """Return the layer as it is."""
    return FormShape(name=FormKind.DENSE, chains=((site.spec,),), extra=0 if site.bias is None else site.bias.size)


def pair_shape(site: ConvSite, components: int, kind: FormKind = FormKind.FACTORIZED) -> FormShape:
    """V and U with so many components in each group, with the dense delta beside them where the kind says so."""
    pair = pair_specs(site.spec, components)
    chains = (pair, (site.spec,)) if kind is FormKind.FACTORIZED_WITH_DELTA else (pair,)
    return FormShape(name=kind, chains=chains, extra=0 if site.bias is None else site.bias.size)


def family_shape(site: ConvSite, kind: FormKind, ranks: Ranks) -> FormShape:
    """Return a form of one of the ``FAMILIES``, at some ranks."""
    specs = FAMILIES[kind].specs(site.spec, ranks)
    return FormShape(name=kind, chains=(specs,), extra=0 if site.bias is None else site.bias.size)


def locations(site: ConvSite, chain: tuple[ConvSpec, ...]) -> tuple[int, ...]:
    """Return how many locations one sample has in front of each stage of a chain, and behind the last.

    A stage that has the layer's own geometry is where the layer is, so that what is in front of it has the input's
    locations. Else they follow from the sizes of the layer's input, or, where those are not known, from the strides.
    """
    sizes = site.input_size if site.spec.axes else None
    found = [site.positions]
    for spec in reversed(chain):
        found.append(_in_front(spec, found[-1]))
    found.reverse()
    if sizes is not None and len(sizes) == site.spec.axes:
        for index, spec in enumerate(chain[:-1]):
            sizes = tuple(_behind(spec, axis, size) for axis, size in enumerate(sizes))
            found[index + 1] = math.prod(sizes)
        found[0] = math.prod(site.input_size or ())
    return tuple(found)


def _in_front(spec: ConvSpec, behind: int) -> int:
    steps = math.prod(spec.stride)
    return max(behind // steps, 1) if spec.transposed else behind * steps


def _behind(spec: ConvSpec, axis: int, size: int) -> int:
    """The locations that a stage gives along an axis."""
    reach, (before, after) = spec.dilation[axis] * (spec.kernel[axis] - 1), spec.padding[axis]
    if spec.transposed:
        return max(spec.stride[axis] * (size - 1) + reach + 1 - before - after + spec.output_padding[axis], 0)
    return max((size + before + after - reach - 1) // spec.stride[axis] + 1, 0)


def applications(site: ConvSite, chain: tuple[ConvSpec, ...]) -> tuple[int, ...]:
    """Return how often one sample takes the kernel of each stage of a chain."""
    places = locations(site, chain)
    return tuple(
        site.applications if index == 0 and spec.moves == site.spec.moves else places[index + (not spec.transposed)]
        for index, spec in enumerate(chain)
    )


def shape_macs(site: ConvSite, shape: FormShape) -> int:
    """Multiply-accumulates of a form of this layer, for one sample."""
    return sum(
        dense_macs(spec, times)
        for chain in shape.chains
        for spec, times in zip(chain, applications(site, chain), strict=True)
    )


def shape_parameters(shape: FormShape) -> int:
    """Return numbers that a form stores: weights, masks and biases."""
    return sum(math.prod(spec.weight_shape) for spec in shape.stages) + shape.extra


class CostModel(Protocol):
    """What a plan is chosen by: from a layer's geometry and a form's to a number, of which less is better."""

    @property
    def name(self) -> str:
        """What is counted, and with which constants: a plan tells it."""

    @property
    def unit(self) -> str:
        """What the numbers count."""

    def __call__(self, site: ConvSite, shape: FormShape) -> float:
        """The cost of this form for one sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MacsCost:
    """Multiply-accumulates as a machine does them, and what it does while activations move between stages.

    Channels count as whole lanes, input and output of each stage, in each group; but an input of fewer channels than a
    lane, as images have, is read as it is, and a depthwise stage computes a lane of its channels at once::

        work    = applications * groups * lanes(in / groups) * lanes(out / groups) * prod(kernel)
                  applications * lanes(channels) * prod(kernel)                         of a depthwise stage
        lanes(n) = ceil(n / lane) * lane
        traffic = bytes of the activations that the form writes and reads again between its stages
        cost    = sum of work + balance * traffic

    The layer's own input and output move in every form alike and are left out; the addition of a second chain reads and
    writes the output once more.

    Attributes:
        lane: The lane width; 1 counts channels one by one.
        balance: Multiply-accumulates for each byte that moves.
    """

    lane: int = LANE_WIDTH
    balance: float = MACS_PER_BYTE

    @property
    def name(self) -> str:
        """Told with both constants."""
        return f"MACs, channels in lanes of {self.lane}, {self.balance:g} for each byte moved between stages"

    @property
    def unit(self) -> str:
        """Multiply-accumulates."""
        return "MACs"

    def __call__(self, site: ConvSite, shape: FormShape) -> float:
        """The formula of the class, for one sample."""
        work = moved = 0
        for chain in shape.chains:
            places = locations(site, chain)
            for index, (spec, times) in enumerate(zip(chain, applications(site, chain), strict=True)):
                work += times * self._work(spec, is_first=index == 0) * math.prod(spec.kernel)
                if index:
                    moved += 2 * self._read(spec) * places[index]
        moved += 3 * site.spec.groups * self._lanes(site.spec.group_out) * site.positions * (len(shape.chains) - 1)
        return work + self.balance * moved * site.weight.itemsize

    def _work(self, spec: ConvSpec, *, is_first: bool) -> int:
        """The products of one location under one tap."""
        if _is_plain_depthwise(spec):
            return self._lanes(spec.out_channels)
        inner, outer = spec.in_channels // spec.groups, self._lanes(spec.group_out)
        as_it_is = is_first and spec.groups == 1 and inner < self.lane
        return spec.groups * (inner if as_it_is else self._lanes(inner)) * outer

    def _read(self, spec: ConvSpec) -> int:
        """The channels of a stage's input, as they lie in memory."""
        if _is_plain_depthwise(spec):
            return self._lanes(spec.in_channels)
        return spec.groups * self._lanes(spec.in_channels // spec.groups)

    def _lanes(self, channels: int) -> int:
        return -(-channels // self.lane) * self.lane


def _is_plain_depthwise(spec: ConvSpec) -> bool:
    return spec.is_depthwise and spec.group_out == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterCost:
    """The numbers that a form stores."""

    name: str = "parameters"
    unit: str = "parameters"

    def __call__(self, site: ConvSite, shape: FormShape) -> float:  # noqa: ARG002  (the layer does not matter)
        """Weights, masks and biases."""
        return shape_parameters(shape)


def dense_macs(spec: ConvSpec, applications: int) -> int:
    """Multiply-accumulates of one dense layer for one sample: out * patch * applications of the kernel.

    Args:
        spec: The layer's geometry.
        applications: ``ConvSite.applications``: output locations, or input locations of a transposed convolution.
    """
    return spec.out_channels * spec.patch * applications
