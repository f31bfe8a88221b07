"""Hypothesis strategies for forms of every kind: chains of stages that are one layer of a given geometry."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from spdexport.conv import ConvSpec
from spdexport.forms import Form, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

FORMS = ("factorized", "factorized+delta", "spatial", "tucker2", "cp", "two chains")


@st.composite
def geometries(draw: st.DrawFn, *, symmetric: bool) -> ConvSpec:
    """A convolution, transposed or not, over one to three axes, ``symmetric`` padding being what torch has."""
    axes = draw(st.integers(1, 3))

    def each(*values: int) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from(values)) for _ in range(axes))

    groups, transposed = draw(st.sampled_from((1, 1, 2))), draw(st.booleans())
    before, stride = each(0, 1, 2), each(1, 2, 3)
    return ConvSpec(
        in_channels=groups * draw(st.integers(1, 3)),
        out_channels=groups * draw(st.integers(1, 3)),
        kernel=each(1, 2, 3),
        stride=stride,
        padding=tuple(zip(before, before if symmetric else each(0, 1, 2), strict=True)),
        dilation=each(1, 2),
        groups=groups,
        transposed=transposed,
        output_padding=tuple(draw(st.integers(0, s - 1)) for s in stride) if transposed else (),
    )


@st.composite
def forms(draw: st.DrawFn, spec: ConvSpec) -> Form:
    """A form of the layer, with a bias or none; masks where the form has them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    name = draw(st.sampled_from(FORMS))
    inner = spec.groups * draw(st.integers(1, 3))

    def stage(given: ConvSpec, part: str, *, last: bool = False) -> Stage:
        mask = rng.standard_normal(given.out_channels) if part == "V" and draw(st.booleans()) else None
        bias = rng.standard_normal(given.out_channels) if last and draw(st.booleans()) else None
        return Stage(spec=given, weight=rng.standard_normal(given.weight_shape), mask=mask, bias=bias, name=part)

    def pointwise(into: int, out: int) -> ConvSpec:
        return ConvSpec.pointwise(into, out, axes=spec.axes, groups=spec.groups)

    def along(axes: Sequence[int], into: int, out: int, groups: int) -> ConvSpec:
        """The layer's geometry on these axes, and nothing on the others."""

        def kept(values: Sequence[object], nothing: object) -> tuple[object, ...]:
            return tuple(value if axis in axes else nothing for axis, value in enumerate(values))

        return replace(
            spec, in_channels=into, out_channels=out, groups=groups, kernel=kept(spec.kernel, 1),
            stride=kept(spec.stride, 1), padding=kept(spec.padding, (0, 0)), dilation=kept(spec.dilation, 1),
            output_padding=kept(spec.output_padding, 0),
        )  # fmt: skip

    chain = (
        stage(replace(spec, out_channels=inner), "V"),
        stage(pointwise(inner, spec.out_channels), "U", last=True),
    )
    match name:
        case "factorized":
            return Form(name=name, chains=(chain,))
        case "factorized+delta":
            return Form(name=name, chains=(chain, (stage(spec, "delta"),)))
        case "two chains":
            more = stage(replace(spec, out_channels=inner), "A"), stage(pointwise(inner, spec.out_channels), "B")
            return Form(name=name, chains=(chain, more))
        case "spatial":
            into, out = [spec.in_channels] + [inner] * (spec.axes - 1), [inner] * (spec.axes - 1) + [spec.out_channels]
            steps = [along([axis], into[axis], out[axis], spec.groups) for axis in range(spec.axes)]
            last = spec.axes - 1
            return Form(name=name, chains=(tuple(stage(s, f"step{i}", last=i == last) for i, s in enumerate(steps)),))
        case "tucker2":
            core = replace(spec, in_channels=inner, out_channels=inner)
            return Form(
                name=name,
                chains=((
                    stage(pointwise(spec.in_channels, inner), "first"), stage(core, "core"),
                    stage(pointwise(inner, spec.out_channels), "last", last=True),
                ),),
            )  # fmt: skip
        case _:
            depthwise = (stage(along([axis], inner, inner, inner), f"axis{axis}") for axis in range(spec.axes))
            return Form(
                name="cp",
                chains=((
                    stage(pointwise(spec.in_channels, inner), "first"), *depthwise,
                    stage(pointwise(inner, spec.out_channels), "last", last=True),
                ),),
            )  # fmt: skip
