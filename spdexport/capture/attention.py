"""Attention of queries that have not four axes, which the exporter has no operator for: traced as its formula."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

EXPORTED_AXES = 4
"""The axes of a query (batch, heads, length, width), for which the exporter has attention."""


class PlainAttention(TorchFunctionMode):
    """Within the block, attention with other than four axes is computed from products and a softmax."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute what a function of torch gives."""
        given = dict(kwargs or {})
        if func is torch.nn.functional.scaled_dot_product_attention:
            query = args[0] if args else given["query"]
            if query.ndim != EXPORTED_AXES and not given.get("dropout_p"):
                return attention(*args, **given)
        return func(*args, **given)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Return ``softmax(scale query key^T + mask) value``, as torch documents scaled_dot_product_attention.

    Args:
        query: (..., length, width).
        key: (..., other length, width).
        value: (..., other length, value width).
        attn_mask: Added, or where it is boolean, True for what takes part.
        dropout_p: Of the weights.
        is_causal: Whether a position sees those up to its own only.
        scale: None for one over the root of the width.
        enable_gqa: Whether heads, on the third axis from the end, share keys and values.
    """
    if enable_gqa:
        shared = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(shared, -3) for each in (key, value))
    scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        lengths = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(lengths, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = scores.softmax(-1)
    return (torch.dropout(weights, dropout_p, True) if dropout_p else weights) @ value
