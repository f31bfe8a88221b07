from __future__ import annotations

import numpy as np
import pytest
import torch
from source_layers import conv_spec, site

from spdexport.conv import ConvSite, ConvSpec, Skipped
from spdexport.factors import Factors, delta_is_rounding
from spdexport.sources.svd import svd_source


def test_every_layer_of_the_digits_model(sites: list[ConvSite]) -> None:
    for layer in sites:
        factors = svd_source(layer)
        assert isinstance(factors, Factors)
        assert factors.V.dtype == layer.weight.dtype
        assert delta_is_rounding(layer.weight, factors, layer.spec)


@pytest.mark.parametrize("spec", [conv_spec(8, 8, groups=8), conv_spec(8, 16, 1, groups=8), conv_spec(8, 4, groups=4)])
def test_groups_of_rank_one_are_skipped(spec: ConvSpec) -> None:
    skipped = svd_source(site("dw", spec, torch.randn(spec.weight_shape)))
    assert isinstance(skipped, Skipped)
    assert (skipped.name, skipped.kind) == ("dw", "conv2d")
    assert "rank one already" in skipped.reason


def test_groups_of_higher_rank_are_not() -> None:
    spec = conv_spec(8, 16, groups=4)
    factors = svd_source(site("grouped", spec, torch.randn(spec.weight_shape)))
    assert factors.V.shape == (4, 18, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_skipped(value: float) -> None:
    spec = conv_spec(2, 2)
    weight = torch.ones(spec.weight_shape)
    weight[0, 0, 0, 0] = value
    skipped = svd_source(site("broken", spec, weight))
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "its weight holds NaN or infinity"
