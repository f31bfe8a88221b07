"""Composition and sums of stages: the same function as the two in float64, and what is declined would not be."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_strategies import close, run

from spdexport.conv import ConvSpec
from spdexport.forms import Stage, compose
from spdexport.forms.base import CannotComposeError
from spdexport.forms.compose import add, appends_pointwise, overlaps

if TYPE_CHECKING:
    from collections.abc import Iterator

quick = settings(max_examples=100)


@st.composite
def geometries(draw: st.DrawFn, axes: int, into: int, out: int) -> ConvSpec:
    """A convolution, transposed or not, with small kernels that are often one wide."""

    def each(*values: int) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from(values)) for _ in range(axes))

    transposed = draw(st.booleans())
    common = math.gcd(into, out)
    return ConvSpec(
        in_channels=into,
        out_channels=out,
        kernel=each(1, 1, 2, 3),
        stride=each(1, 1, 2, 3),
        padding=tuple(zip(each(0, 0, 1, 2), each(0, 0, 1, 2), strict=True)),
        dilation=each(1, 1, 2),
        groups=draw(st.sampled_from([g for g in range(1, common + 1) if common % g == 0])),
        transposed=transposed,
        output_padding=each(0, 0, 1) if transposed else (),
    )


@st.composite
def stages(draw: st.DrawFn, axes: int, into: int, out: int, *, full: bool = False) -> Stage:
    spec = draw(geometries(axes, into, out))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.standard_normal(out) if draw(st.booleans()) else None
    bias = 1 + rng.random(out) if full or draw(st.booleans()) else None
    return Stage(spec=spec, weight=rng.standard_normal(spec.weight_shape), mask=mask, bias=bias)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Stage, Stage]:
    axes = draw(st.integers(1, 2))
    into, middle, out = (draw(st.sampled_from((1, 2, 4, 6))) for _ in range(3))
    return draw(stages(axes, into, middle)), draw(stages(axes, middle, out))


def inputs(channels: int, axes: int) -> Iterator[torch.Tensor]:
    """Inputs of all sizes that matter: of each remainder by every stride, at least as large as kernels and crops."""
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 20) if axes == 1 else range(4, 18):
        yield torch.randn(1, channels, *(size,) * axes, generator=generator, dtype=torch.float64)


IDENTITY = {
    (n, axes): Stage(spec=ConvSpec.pointwise(n, n, axes=axes, groups=n), weight=np.ones((n, 1, *(1,) * axes)))
    for n in (1, 2, 4, 6)
    for axes in (1, 2)
}


def chain(first: Stage, second: Stage, x: torch.Tensor) -> torch.Tensor | None:
    """What the two compute; None where the input is too small for them."""
    try:
        y = run(first, x)
        z = run(second, y) if min(y.shape[2:]) > 0 else None
    except RuntimeError:
        return None
    return None if z is None or min(z.shape[2:]) < 1 else z


def naive(first: Stage, second: Stage) -> Stage:
    """What the formulas for strides, taps, padding and bias give where their conditions are not looked at."""
    a, b = first.spec, second.spec
    axes = range(a.axes)
    if a.transposed != b.transposed:
        b = replace(b, transposed=a.transposed, output_padding=())
    bare = (((0, 0),) * a.axes, (0,) * a.axes if a.transposed else ())
    one, two = (replace(s, padding=bare[0], output_padding=bare[1]) for s in (a, b))
    folded = compose(replace(first, spec=one, bias=None), replace(second, spec=two, bias=None))
    scale = b.stride if a.transposed else a.stride
    inner, outer = (a, b) if a.transposed else (b, a)
    padding = tuple(
        (scale[i] * inner.padding[i][0] + outer.padding[i][0], scale[i] * inner.padding[i][1] + outer.padding[i][1])
        for i in axes
    )
    extra = tuple(scale[i] * a.output_padding[i] + b.output_padding[i] for i in axes) if a.transposed else ()
    bias = second.bias
    if first.bias is not None:
        ones = second.weight.sum(axis=tuple(range(2, second.weight.ndim)))
        mixed = (ones.reshape(b.groups, b.group_out, -1) @ first.bias.reshape(b.groups, -1, 1)).reshape(-1)
        mixed = mixed if second.mask is None else mixed * second.mask
        bias = mixed if bias is None else mixed + bias
    return Stage(spec=replace(folded.spec, padding=padding, output_padding=extra), weight=folded.weight, bias=bias)


@quick
@given(pairs())
def test_a_composition_is_the_same_function_and_a_declined_one_would_not_be(pair: tuple[Stage, Stage]) -> None:
    first, second = pair
    try:
        stage, is_composed = compose(first, second), True
    except CannotComposeError:
        stage, is_composed = naive(first, second), False
    found = [(chain(first, second, x), x) for x in inputs(first.spec.in_channels, first.spec.axes)]
    found = [(right, x) for right, x in found if right is not None]
    assert found
    if is_composed:
        assert stage.spec.groups == math.gcd(first.spec.groups, second.spec.groups)
        assert all(close(run(stage, x), right, scale=1e3) for right, x in found)
    else:
        # One that cannot even run on such an input is wrong, too.
        got = [(chain(stage, IDENTITY[second.spec.out_channels, x.ndim - 2], x), right) for right, x in found]
        assert not all(y is not None and close(y, right, scale=1e3) for y, right in got)


@quick
@given(st.data())
def test_a_sum_is_the_same_function_wherever_the_two_are_of_one_size(data: st.DataObject) -> None:
    """One geometry is drawn, and another one that gives as many outputs: other kernels, dilations and groups."""
    a = data.draw(stages(1, 4, 2))
    b = data.draw(stages(1, 4, 2))
    spec = replace(
        b.spec, stride=a.spec.stride, transposed=a.spec.transposed,
        output_padding=(0,) if a.spec.transposed else (), padding=((0, 0),),
    )  # fmt: skip

    def loss(s: ConvSpec) -> int:
        return s.dilation[0] * (s.kernel[0] - 1) - sum(s.padding[0]) + sum(s.output_padding)

    before = data.draw(st.integers(0, 2))
    after = loss(spec) - loss(a.spec) - before
    assume(after >= 0)
    b = replace(b, spec=replace(spec, padding=((before, after),)))
    total = add(a, b)
    for x in inputs(4, 1):
        try:
            right = run(a, x) + run(b, x)
        except RuntimeError:
            continue
        assert right.shape[-1] == 0 or close(run(total, x), right, scale=1e3)


def test_a_sum_of_other_sizes_is_declined() -> None:
    with pytest.raises(CannotComposeError, match="what is added to it has another size along axis 0"):
        add(ones(FOUR), ones(WIDE))
    with pytest.raises(CannotComposeError, match="other channels or axes"):
        add(ones(FOUR), ones(ConvSpec.pointwise(4, 2, axes=1)))


def test_a_sum_of_one_geometry_keeps_it() -> None:
    spec = ConvSpec(
        in_channels=2, out_channels=2, kernel=(3, 1), stride=(2, 1), padding=((1, 1), (1, 1)), dilation=(1, 1),
        transposed=True, output_padding=(1, 0),
    )  # fmt: skip
    a, b = (Stage(spec=s, weight=np.ones(s.weight_shape)) for s in (spec, replace(spec, groups=2)))
    assert add(a, a).spec == spec
    assert add(a, b).spec == spec


def test_a_1x1_convolution_beside_a_3x3_one_is_its_middle_tap() -> None:
    """The re-parametrization of RepVGG: neither kernel nor padding grows."""
    three = ConvSpec(
        in_channels=2, out_channels=2, kernel=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1)
    )
    one = Stage(spec=ConvSpec.pointwise(2, 2, axes=2), weight=np.ones((2, 2, 1, 1)))
    zero = Stage(spec=three, weight=np.zeros(three.weight_shape))
    for total in (add(zero, one), add(one, zero)):
        assert total.spec == three
        weight = np.asarray(total.weight)
        assert weight.sum() == 4
        assert (weight[:, :, 1, 1] == 1).all()


FOUR = ConvSpec.pointwise(4, 4, axes=1)
WIDE = replace(FOUR, kernel=(3,))
UP = replace(FOUR, kernel=(2,), stride=(2,), transposed=True)
DOWN = replace(FOUR, kernel=(2,), stride=(2,))


def ones(spec: ConvSpec, *, bias: bool = False) -> Stage:
    return Stage(spec=spec, weight=np.ones(spec.weight_shape), bias=np.ones(spec.out_channels) if bias else None)


@pytest.mark.parametrize(
    ("first", "second", "bias", "reason"),
    [
        (FOUR, replace(WIDE, padding=((1, 1),)), True, "the second pads with zeros what the bias is added to"),
        (WIDE, replace(WIDE, padding=((1, 1),)), False, "the second pads along axis 0, where the first would go on"),
        (WIDE, replace(FOUR, padding=((0, 1),)), False, "the second pads along axis 0, where the first would go on"),
        (FOUR, UP, True, "of which the transposed convolution adds up more at some places"),
        (
            replace(UP, padding=((1, 1),)),
            replace(WIDE, transposed=True),
            False,
            "crops what the second would spread along axis 0",
        ),
        (DOWN, UP, False, "strides keep the two from being one kind"),
        (FOUR, ConvSpec.pointwise(3, 4, axes=1), False, "4 channels come out of the first and 3 go into the second"),
        (FOUR, ConvSpec.pointwise(4, 4, axes=2), False, "different numbers of spatial axes"),
    ],
)
def test_stages_that_do_not_compose(first: ConvSpec, second: ConvSpec, bias: bool, reason: str) -> None:
    with pytest.raises(CannotComposeError, match=reason):
        compose(ones(first, bias=bias), ones(second))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (FOUR, replace(WIDE, padding=((1, 1),)), replace(WIDE, padding=((1, 1),))),
        (WIDE, replace(FOUR, stride=(2,)), replace(WIDE, stride=(2,))),
        (replace(FOUR, stride=(2,)), WIDE, replace(WIDE, stride=(2,), dilation=(2,))),
        (WIDE, WIDE, replace(WIDE, kernel=(5,))),
        (UP, FOUR, UP),
        (FOUR, UP, UP),
        (replace(FOUR, transposed=True), WIDE, WIDE),
        (UP, UP, replace(UP, kernel=(4,), stride=(4,))),
    ],
)
def test_geometries_of_compositions(first: ConvSpec, second: ConvSpec, expected: ConvSpec) -> None:
    assert compose(ones(first), ones(second)).spec == expected


def test_a_bias_of_zeros_is_none() -> None:
    first = replace(ones(FOUR), bias=np.zeros(4))
    padded = ones(replace(WIDE, padding=((1, 1),)))
    assert not compose(first, padded).bias.any()


def test_kernels_along_different_axes_do_not_overlap() -> None:
    spec = ConvSpec(in_channels=4, out_channels=4, kernel=(3, 1), stride=(1, 1), padding=((0, 0),) * 2, dilation=(1, 1))
    assert not overlaps(spec, replace(spec, kernel=(1, 3)))
    assert overlaps(spec, spec)


def test_what_appends_a_pointwise_stage() -> None:
    assert appends_pointwise(WIDE, FOUR)
    assert appends_pointwise(WIDE, replace(FOUR, groups=4))
    assert not appends_pointwise(replace(WIDE, groups=2), FOUR)
    assert not appends_pointwise(FOUR, WIDE)
