"""Layers as a rewriter would list them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spdexport.arrays import to_numpy
from spdexport.conv import ConvSite, ConvSpec

if TYPE_CHECKING:
    import torch


def conv_spec(inputs: int, outputs: int, kernel: int = 3, *, groups: int = 1) -> ConvSpec:
    return ConvSpec(
        in_channels=inputs,
        out_channels=outputs,
        kernel=(kernel, kernel),
        stride=(1, 1),
        padding=((1, 1), (1, 1)),
        dilation=(1, 1),
        groups=groups,
    )


def site(name: str, spec: ConvSpec, weight: torch.Tensor, *, padding_mode: str = "zeros") -> ConvSite:
    return ConvSite(name=name, spec=spec, weight=to_numpy(weight), bias=None, node=name, padding_mode=padding_mode)
