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
    applications,
    dense_shape,
    family_shape,
    locations,
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
    # An input narrower than a lane is read as it is.
    assert MacsCost()(site, dense_shape(site)) == 3 * 32 * 100
    # 5 components fill a lane; they are written and read once, in float32.
    assert MacsCost()(site, pair_shape(site, 5)) == (3 * 16 + 16 * 32) * 100 + 8 * 2 * 16 * 100 * 4
    # The sum reads both results and writes a third.
    both = MacsCost()(site, pair_shape(site, 5, FormKind.FACTORIZED_WITH_DELTA)) - MacsCost()(site, pair_shape(site, 5))
    assert both == 3 * 32 * 100 + 8 * 3 * 32 * 100 * 4
    half = replace(site, weight=site.weight.astype(np.float16))
    assert MacsCost()(half, pair_shape(site, 5)) == (3 * 16 + 16 * 32) * 100 + 8 * 2 * 16 * 100 * 2


def test_a_wider_input_counts_in_whole_lanes() -> None:
    site = a_site(ConvSpec.pointwise(17, 20, axes=2))
    assert MacsCost()(site, dense_shape(site)) == 32 * 32 * 100


def test_depthwise_stages_compute_a_lane_of_channels_at_once() -> None:
    site = a_site(replace(WIDE, in_channels=40, out_channels=40, groups=40))
    assert MacsCost()(site, dense_shape(site)) == 48 * 9 * 100
    # k x 1, then 1 x k: 40 channels lie between, in lanes.
    shape = family_shape(site, FormKind.SPATIAL, (1,))
    assert MacsCost()(site, shape) == 48 * (3 + 3) * 100 + 8 * 2 * 48 * 100 * 4


@pytest.mark.parametrize("known", [True, False])
def test_a_kernel_counts_where_it_runs(known: bool) -> None:
    """The first stage of a strided layer has not been strided along the other axis yet."""
    spec = replace(WIDE, stride=(2, 2))
    site = replace(a_site(spec), positions=8 * 8, input_size=(16, 16) if known else None)
    spatial = family_shape(site, FormKind.SPATIAL, (5,))
    assert applications(site, spatial.chains[0]) == (8 * 16, 8 * 8)
    assert shape_macs(site, spatial) == 5 * 32 * 3 * 8 * 16 + 64 * 5 * 3 * 8 * 8
    tucker = family_shape(site, FormKind.TUCKER, (6, 7))
    assert applications(site, tucker.chains[0]) == (16 * 16, 8 * 8, 8 * 8)
    up = replace(a_site(UP), positions=64, input_positions=16, input_size=(4, 4) if known else None)
    assert applications(up, family_shape(up, FormKind.SPATIAL, (5,)).chains[0]) == (4 * 4, 8 * 4)
    assert applications(up, family_shape(up, FormKind.TUCKER, (5, 5)).chains[0]) == (4 * 4, 4 * 4, 8 * 8)


def test_odd_sizes_are_those_that_the_stages_give() -> None:
    spec = replace(WIDE, stride=(2, 3), padding=((0, 1), (2, 0)), dilation=(2, 1))
    site = replace(a_site(spec), positions=6 * 5, input_size=(15, 13))
    assert locations(site, family_shape(site, FormKind.SPATIAL, (5,)).chains[0]) == (15 * 13, 6 * 13, 6 * 5)


def test_the_constants_are_told() -> None:
    told = MacsCost(lane=8, balance=2.5).name
    assert told == "MACs, channels in lanes of 8, 2.5 for each byte moved between stages"
