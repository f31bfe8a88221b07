"""What is known of aten operators by name: which are exact, choose, multiply or add up, and elementwise kernels."""

from __future__ import annotations

from spdexport.reference.rounding import Kernel
from spdexport.reference.rounding_onnx import KERNELS as ONNX_KERNELS

EXACT = frozenset((
    "_assert_scalar", "abs", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "amin",
    "arange", "bernoulli", "bucketize", "cat", "ceil", "channel_shuffle", "clamp", "clamp_max", "clamp_min", "clone",
    "concat", "constant_pad_nd", "copy", "copysign", "cummax", "cummin", "dropout", "embedding", "empty",
    "empty_like", "eye", "fill", "flip", "floor", "frac", "full", "full_like", "gather", "grid_sampler_nearest",
    "hardtanh", "im2col", "index", "index_fill", "index_put", "index_select", "isin", "kthvalue", "lift_fresh_copy",
    "masked_fill", "masked_scatter", "masked_select", "max", "max_pool1d", "max_pool2d", "max_pool2d_with_indices",
    "max_pool3d", "max_pool3d_with_indices", "maximum", "median", "min", "minimum", "mode", "nan_to_num", "neg",
    "new_empty", "new_full", "new_ones", "new_zeros", "one_hot", "ones", "ones_like", "pad", "pixel_shuffle",
    "pixel_unshuffle", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "relu", "relu6", "repeat",
    "repeat_interleave", "replication_pad1d", "replication_pad2d", "replication_pad3d", "roll", "rot90", "round",
    "scatter", "select_scatter", "sgn", "sign", "slice_scatter", "sort", "stack", "take", "take_along_dim",
    "threshold", "topk", "tril", "triu", "trunc", "unfold", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "where", "zeros", "zeros_like",
))  # fmt: skip
"""Operators that only move, select or cut off values, beside those whose result is a view."""

DECISIONS = frozenset((
    "_local_scalar_dense", "_to_copy", "argmax", "argmin", "bucketize", "ceil", "eq", "floor", "floor_divide", "fmod",
    "ge", "gt", "item", "le", "lt", "ne", "nonzero", "remainder", "round", "searchsorted", "sign", "sort", "to",
    "topk", "trunc",
))  # fmt: skip
"""Operators that make whole numbers, choices or sizes of what they read."""

PRODUCTS = frozenset((
    "_convolution", "addbmm", "addmm", "addmv", "baddbmm", "bilinear", "bmm", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution", "dot", "einsum", "inner", "linear",
    "matmul", "mm", "mv", "tensordot", "vdot",
))  # fmt: skip

_CELU, _SILU, _GELU = ONNX_KERNELS["Celu"], ONNX_KERNELS["Swish"], ONNX_KERNELS["Gelu"]
KERNELS: dict[str, Kernel] = {
    **{name.lower(): kernel for name, kernel in ONNX_KERNELS.items() if name not in ("Swish", "Pow")},
    "celu": _CELU,
    "erfc": Kernel(absolute=1.2, positive=True),
    "exp2": ONNX_KERNELS["Exp"],
    "expm1": Kernel(relative=1.2, absolute=1.0),  # ONNX has exp(x) - 1
    "gelu": _GELU,
    "hardsigmoid": ONNX_KERNELS["HardSigmoid"],
    "hardswish": ONNX_KERNELS["HardSwish"],
    "log10": Kernel(relative=3.0),
    "log1p": Kernel(relative=2.0, absolute=1.0),  # ONNX has log(1 + x)
    "log2": Kernel(relative=3.0),
    "log_sigmoid": Kernel(relative=3.0, absolute=1.0),
    "silu": _SILU,
    "special_expit": ONNX_KERNELS["Sigmoid"],
}

REDUCTIONS = {
    "logsumexp": "log_sum_exp",
    "mean": "mean",
    "nansum": "sum",
    "sum": "sum",
}
