"""What a form costs: multiply-accumulates, parameters and bytes. Pure arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spdexport.conv import ConvSpec
    from spdexport.forms import Form


def dense_macs(spec: ConvSpec, positions: int) -> int:
    """Multiply-accumulates of one dense layer for one sample: out * patch * output locations."""
    return spec.out_channels * spec.patch * positions


def factorized_macs(spec: ConvSpec, components: int, positions: int) -> int:
    """Multiply-accumulates of V and U for one sample: groups * C * (patch + out / groups) * output locations."""
    return spec.groups * components * (spec.patch + spec.group_out) * positions


def form_macs(form: Form, positions: int) -> int:
    """Multiply-accumulates of a form whose stages all run at the layer's output locations, for one sample."""
    return sum(dense_macs(stage.spec, positions) for stage in form.stages)


def form_parameters(form: Form) -> int:
    """Numbers that the form stores: weights, masks and biases."""
    return sum(
        array.size for stage in form.stages for array in (stage.weight, stage.mask, stage.bias) if array is not None
    )
