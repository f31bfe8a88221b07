"""The error models of com.microsoft's float operators: those of the standard operators that each is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.reference import rounding
from spdexport.reference.rounding import Affine, Kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spdexport.conv import Array
    from spdexport.reference.rounding_call import Call

_ACTIVATION = Kernel(relative=3.0, absolute=1.5)
"""What the fused activations are off at most: Sigmoid absolutely, Tanh relatively."""

_GELU = Kernel(relative=1.5, of_input=0.7)
_SWISH = Kernel(relative=1.5, of_input=1.5)


def _fused_product(call: Call) -> Array:
    """A product with its bias and what is added, and an activation that hands its errors on."""
    before: Array = call.node.before(*call.inputs)
    size = call.magnitudes.of(call.identity, lambda: call.node.size(*call.inputs))
    terms = call.node.terms(*call.inputs)
    errors = rounding.product(before, size, terms, call.draw)
    if not call.node.has_activation:
        return errors
    moved: Array = call.node.activated(before + errors)
    return np.asarray(moved - call.y + rounding.elementwise(_ACTIVATION, before, call.y, call.draw))


def _of_sum(kernel: Kernel) -> Callable[[Call], Array]:
    """A function of a sum of two inputs; its slope is at most 1.2."""

    def errors(call: Call) -> Array:
        bias = call.input(1)
        total = call.x if bias is None else call.x + bias
        summed = 0.0 if bias is None else 1.2 * call.draw.relative(total)
        return np.asarray(rounding.elementwise(kernel, total, call.y, call.draw) + summed)

    return errors


def _skip_norm(call: Call) -> Array:
    """A layer norm of a sum, whose own roundings are divided by the deviation like all else."""
    centered = call.op == "SkipLayerNormalization"
    x, skip, scale = call.inputs[:3]
    beta = call.input(3) if centered else None
    bias = call.input(4 if centered else 3)
    total = x + skip if bias is None else x + skip + bias
    size = np.abs(x) + np.abs(skip) + (0.0 if bias is None else np.abs(bias))
    epsilon = call.node.attribute("epsilon", 1e-12)
    mean = total.mean(axis=-1, keepdims=True) if centered else 0.0
    inverse = 1 / np.sqrt(((total - mean) ** 2).mean(axis=-1, keepdims=True) + epsilon)
    summed = 2 * call.draw.inner * size * inverse * np.abs(scale) * call.draw.signs(call.y, 3)
    if not centered:
        return np.asarray(_scaled(call, total, scale) + summed)
    rows = total.shape[-1]
    affine = Affine(scale=scale, bias=beta)
    # ONNX Runtime has the variance as the difference of two means.
    found = rounding.normalized(total, call.y, lambda a: a.reshape(-1, rows), epsilon, affine, call.draw, one_pass=True)
    return np.asarray(found + summed)


def _simplified_norm(call: Call) -> Array:
    return _scaled(call, call.x, call.inputs[1])


def _scaled(call: Call, x: Array, scale: Array) -> Array:
    axes = tuple(range(x.ndim - scale.ndim, x.ndim))
    return rounding.scaled_by_norm(x, call.y, axes, call.draw)


def _inverse(call: Call) -> Array:
    """Elimination errs by some ``n u |inverse| |matrix| |inverse|`` (Higham, 14.1)."""
    inverse, matrix = np.abs(call.y), np.abs(call.x)
    size = call.x.shape[-1] * (inverse @ matrix @ inverse)
    return np.asarray(call.draw.unit_rounding * size * call.draw.signs(call.y))


def _of_integers(bias: int, scales: tuple[int, ...]) -> Callable[[Call], Array]:
    """A sum of integers, which is exact, times scales, and a bias: whatever cancels errs by what it was."""

    def errors(call: Call) -> Array:
        given: Any = call.input(bias)
        own = np.zeros(()) if given is None or given.dtype.kind != "f" else np.asarray(given)
        size = np.abs(call.y - own) * (1 + len(scales)) + np.abs(own)
        return np.asarray(call.draw.unit_rounding * size * call.draw.signs(call.y))

    return errors


MICROSOFT_MODELS: Mapping[str, Callable[[Call], Array]] = {
    "BiasGelu": _of_sum(_GELU),
    "DynamicQuantizeMatMul": _of_integers(4, (0, 2)),
    "FastGelu": _of_sum(_GELU),
    "FusedConv": _fused_product,
    "FusedGemm": _fused_product,
    "FusedMatMul": _fused_product,
    "Inverse": _inverse,
    "MatMulIntegerToFloat": _of_integers(6, (2, 3)),
    "QGemm": _of_integers(6, (1, 4)),
    "QuickGelu": _of_sum(_SWISH),
    "SimplifiedLayerNormalization": _simplified_norm,
    "SkipLayerNormalization": _skip_norm,
    "SkipSimplifiedLayerNormalization": _skip_norm,
}
"""By operator; of Gelu, the standard's is taken."""
