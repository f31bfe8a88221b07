"""What a form costs: multiply-accumulates, parameters and bytes. Pure arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spdexport.conv import ConvSpec
    from spdexport.forms import Form


def dense_macs(spec: ConvSpec, applications: int) -> int:
    """Multiply-accumulates of one dense layer for one sample: out * patch * applications of the kernel.

    Args:
        spec: The layer's geometry.
        applications: ``ConvSite.applications``: output locations, or input locations of a transposed convolution.
    """
    return spec.out_channels * spec.patch * applications


def factorized_macs(spec: ConvSpec, components: int, positions: int, applications: int | None = None) -> int:
    """Multiply-accumulates of V and U for one sample: groups * C * (patch * applications + out / groups * positions).

    Args:
        spec: The layer's geometry.
        components: C.
        positions: Output locations, where U runs.
        applications: How often V's kernel is applied; None where that is the same.
    """
    applications = positions if applications is None else applications
    return spec.groups * components * (spec.patch * applications + spec.group_out * positions)


def form_macs(form: Form, positions: int, applications: int | None = None) -> int:
    """Multiply-accumulates of a form, for one sample: the first stage of each chain has the layer's own geometry.

    The others run at the layer's output locations, ``positions``; the first ones' kernels are applied ``applications``
    times, where that is another number.
    """
    applications = positions if applications is None else applications
    return sum(
        dense_macs(stage.spec, positions if index else applications)
        for chain in form.chains
        for index, stage in enumerate(chain)
    )


def form_parameters(form: Form) -> int:
    """Numbers that the form stores: weights, masks and biases."""
    return sum(
        array.size for stage in form.stages for array in (stage.weight, stage.mask, stage.bias) if array is not None
    )
