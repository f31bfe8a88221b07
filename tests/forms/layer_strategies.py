"""Hypothesis strategies for layers: geometry, weights and factors in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from hypothesis import strategies as st
from torch.nn import functional

from spdexport.conv import ConvSpec, stored_weight
from spdexport.factors import Factors, expected_shapes

if TYPE_CHECKING:
    from spdexport.conv import Array, FloatArray
    from spdexport.forms import Stage


@dataclass(frozen=True)
class Layer:
    spec: ConvSpec
    weight: Array
    bias: Array | None
    rng: np.random.Generator


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    """Linear layers, and convolutions over one to three axes with any stride, padding, dilation and groups.

    A third of the convolutions are transposed.
    """
    axes = draw(st.integers(0, 3))
    small = st.integers(1, 3)

    def each(values: st.SearchStrategy[int]) -> tuple[int, ...]:
        return tuple(draw(values) for _ in range(axes))

    groups = draw(st.sampled_from((1, 1, 2, 3))) if axes else 1
    transposed = axes > 0 and draw(st.sampled_from((False, False, True)))
    return ConvSpec(
        in_channels=groups * draw(st.integers(1, 4)),
        out_channels=groups * draw(st.integers(1, 4)),
        kernel=each(small),
        stride=each(small),
        padding=tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(axes)),
        dilation=each(st.integers(1, 2)),
        groups=groups,
        transposed=transposed,
        output_padding=each(st.integers(0, 1)) if transposed else (),
    )


@st.composite
def layers(draw: st.DrawFn, dtype: type[np.floating] = np.float64) -> Layer:
    """Weights of full rank, of rank one, with blocks of zeros, or all zero; of any size."""
    spec = draw(specs())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = rng.standard_normal(spec.weight_shape)
    match draw(st.sampled_from(("full", "full", "rank one", "sparse", "zero"))):
        case "rank one":
            weight = np.multiply.outer(rng.standard_normal(spec.out_channels), weight[0])
        case "sparse":
            weight = weight * (rng.random(spec.weight_shape) < 0.4)
        case "zero":
            weight = np.zeros(spec.weight_shape)
    weight = weight * draw(st.sampled_from((1.0, 1e-6, 1e6)))
    bias = rng.standard_normal(spec.out_channels) if draw(st.booleans()) else None
    return Layer(spec=spec, weight=weight.astype(dtype), bias=bias, rng=rng)


@st.composite
def masked_factors(draw: st.DrawFn, spec: ConvSpec) -> Factors:
    """V and U that have nothing to do with a weight; masks with zeros, fractions and negative values, or none."""
    components = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    v_shape, u_shape = expected_shapes(spec, components)
    factors = Factors(V=rng.standard_normal(v_shape), U=rng.standard_normal(u_shape))
    shape = (*v_shape[:-2], components)
    values = draw(
        st.lists(st.sampled_from((0.0, 0.0, 1.0, 0.5, -0.25)), min_size=(n := int(np.prod(shape))), max_size=n)
    )
    return replace(factors, mask=np.array(values).reshape(shape)) if draw(st.booleans()) else factors


def run(stage: Stage, x: torch.Tensor) -> torch.Tensor:
    """What a stage computes, by PyTorch's own convolutions in float64."""
    spec = stage.spec
    weight = torch.from_numpy(np.ascontiguousarray(stage.weight, dtype=np.float64))
    if spec.transposed:
        y = _transposed(spec, weight, x)
    elif spec.axes:
        pads = [p for before_after in reversed(spec.padding) for p in before_after]
        conv = (functional.conv1d, functional.conv2d, functional.conv3d)[spec.axes - 1]
        y = conv(functional.pad(x, pads), weight, stride=spec.stride, dilation=spec.dilation, groups=spec.groups)
    else:
        y = functional.linear(x, weight)
    column = (-1, *(1,) * spec.axes)
    if stage.mask is not None:
        y = y * torch.from_numpy(np.asarray(stage.mask, dtype=np.float64)).reshape(column)
    if stage.bias is not None:
        y = y + torch.from_numpy(np.asarray(stage.bias, dtype=np.float64)).reshape(column)
    return y


def _transposed(spec: ConvSpec, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """PyTorch's transposed convolution without padding, which is then cropped and padded."""
    stored = torch.from_numpy(np.ascontiguousarray(stored_weight(weight.numpy(), spec)))
    conv = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[spec.axes - 1]
    y = conv(x, stored, stride=spec.stride, dilation=spec.dilation, groups=spec.groups)
    # Locations are added before the output is cropped: a small output may have more to crop than it has.
    y = functional.pad(y, [m for extra in reversed(spec.output_padding) for m in (0, extra)])
    return functional.pad(y, [-p for before_after in reversed(spec.padding) for p in before_after])


def example_input(spec: ConvSpec, rng: np.random.Generator) -> torch.Tensor:
    """Two samples that are at least as large as the dilated kernel."""
    sizes = [(k - 1) * d + 1 + int(rng.integers(0, 3)) for k, d in zip(spec.kernel, spec.dilation, strict=True)]
    if spec.transposed:
        sizes = [size + sum(crop) for size, crop in zip(sizes, spec.padding, strict=True)]
    return torch.from_numpy(rng.standard_normal((2, spec.in_channels, *sizes)))


def close(actual: FloatArray | torch.Tensor, expected: FloatArray | torch.Tensor, scale: float | None = None) -> bool:
    """Equal to 1e-12 of the largest expected value, or of ``scale`` where sums may cancel."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    scale = np.abs(expected).max(initial=0.0) if scale is None else scale
    return actual.shape == expected.shape and bool((np.abs(actual - expected) <= 1e-12 * scale).all())
