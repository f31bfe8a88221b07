from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from planning.models import WIDE, a_site

from spdexport.conv import ConvSite, ConvSpec
from spdexport.cost import (
    FormShape,
    MacsCost,
    ParameterCost,
    dense_shape,
    pair_shape,
    shape_macs,
    shape_parameters,
)
from spdexport.factors import break_even
from spdexport.forms import FormKind, dense, factorized
from spdexport.lowrank import svd_factors

UP = ConvSpec(
    in_channels=32, out_channels=16, kernel=(4, 4), stride=(2, 2), padding=((1, 1),) * 2, dilation=(1, 1),
    transposed=True,
)  # fmt: skip


def sites() -> list[ConvSite]:
    grouped = replace(WIDE, groups=2)
    upsampled = replace(a_site(UP), positions=64, input_positions=16)
    return [a_site(), a_site(grouped), upsampled, a_site(ConvSpec.pointwise(32, 48, axes=0))]


@pytest.mark.parametrize("site", sites(), ids=lambda site: site.spec.describe())
def test_shapes_are_those_of_the_forms(site: ConvSite) -> None:
    factors = svd_factors(site.weight, site.spec)
    rest = np.zeros(site.spec.weight_shape, np.float32)
    assert FormShape.of(dense(site.spec, site.weight, site.bias)) == dense_shape(site)
    for delta in (None, rest):
        form = factorized(site.spec, factors, site.bias, delta=delta)
        shape = pair_shape(site, factors.components, FormKind(form.name))
        assert FormShape.of(form) == shape
        stored = [a for stage in form.stages for a in (stage.weight, stage.mask, stage.bias) if a is not None]
        assert shape_parameters(shape) == ParameterCost()(site, shape) == sum(a.size for a in stored)


@pytest.mark.parametrize("site", sites(), ids=lambda site: site.spec.describe())
def test_at_break_even_both_forms_cost_the_same(site: ConvSite) -> None:
    even = break_even(site.spec, site.upsampling)
    one = shape_macs(site, pair_shape(site, 1))
    assert even * one == pytest.approx(shape_macs(site, dense_shape(site)))


def test_a_transposed_convolution_of_nothing_breaks_even_somewhere() -> None:
    site = next(site for site in sites() if site.spec.transposed)
    assert break_even(site.spec, replace(site, positions=0, input_positions=0).upsampling) > 0


def test_counted_one_by_one_and_without_traffic_the_cost_is_the_macs() -> None:
    pure = MacsCost(lane=1, balance=0.0)
    for site in sites():
        for shape in (dense_shape(site), pair_shape(site, 5), pair_shape(site, 5, FormKind.FACTORIZED_WITH_DELTA)):
            assert pure(site, shape) == shape_macs(site, shape)


def test_lanes_and_traffic() -> None:
    site = a_site(ConvSpec.pointwise(3, 20, axes=2))
    assert MacsCost()(site, dense_shape(site)) == 16 * 32 * 100
    # 5 components fill a lane; they are written and read once, in float32.
    assert MacsCost()(site, pair_shape(site, 5)) == (16 * 16 + 16 * 32) * 100 + 8 * 2 * 16 * 100 * 4
    # The sum reads both results and writes a third.
    both = MacsCost()(site, pair_shape(site, 5, FormKind.FACTORIZED_WITH_DELTA)) - MacsCost()(site, pair_shape(site, 5))
    assert both == 16 * 32 * 100 + 8 * 3 * 32 * 100 * 4
    half = replace(site, weight=site.weight.astype(np.float16))
    assert MacsCost()(half, pair_shape(site, 5)) == (16 * 16 + 16 * 32) * 100 + 8 * 2 * 16 * 100 * 2


def test_the_constants_are_told() -> None:
    told = MacsCost(lane=8, balance=2.5).name
    assert told == "MACs, channels in lanes of 8, 2.5 for each byte moved between stages"
