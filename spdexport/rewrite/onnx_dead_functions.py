"""What elementwise operators make of constants, in float64: the numbers that channels without anything live carry."""

from __future__ import annotations

import math
from functools import reduce
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx_ir as ir

    from spdexport.conv import FloatArray

Operands: TypeAlias = "Sequence[FloatArray | None]"
Function: TypeAlias = "Callable[[ir.Node, Operands], FloatArray]"

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _unary(function: Callable[[FloatArray], FloatArray]) -> Function:
    return lambda _, operands: function(_given(operands, 0))


def _folded(function: Callable[[FloatArray, FloatArray], FloatArray]) -> Function:
    return lambda _, operands: reduce(function, [x for x in operands if x is not None])


def _given(operands: Operands, index: int) -> FloatArray:
    value = operands[index]
    assert value is not None, "the operand is not optional"
    return value


def _sigmoid(x: FloatArray) -> FloatArray:
    return np.asarray(np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))))


def _softplus(x: FloatArray) -> FloatArray:
    return np.asarray(np.logaddexp(x, 0.0))


def _clip(node: ir.Node, operands: Operands) -> FloatArray:
    x, *bounds = operands
    assert x is not None, "Clip has data"
    least, most = (*bounds, None, None)[:2]
    for bound, name, function in ((least, "min", np.maximum), (most, "max", np.minimum)):
        attribute = node.attributes.get(name)  # before opset 11
        value = np.float64(attribute.as_float()) if attribute is not None else bound
        x = x if value is None else function(x, value)
    return np.asarray(x)


def _gelu(node: ir.Node, operands: Operands) -> FloatArray:
    x = _given(operands, 0)
    if node.attributes.get_string("approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


def _elu(node: ir.Node, operands: Operands) -> FloatArray:
    x = _given(operands, 0)
    return np.asarray(np.where(x > 0, x, node.attributes.get_float("alpha", 1.0) * np.expm1(np.minimum(x, 0))))


def _celu(node: ir.Node, operands: Operands) -> FloatArray:
    x, alpha = _given(operands, 0), node.attributes.get_float("alpha", 1.0)
    return np.asarray(np.maximum(x, 0) + np.minimum(0, alpha * np.expm1(np.minimum(x, 0) / alpha)))


def _selu(node: ir.Node, operands: Operands) -> FloatArray:
    x = _given(operands, 0)
    alpha, gamma = node.attributes.get_float("alpha", 1.67326319), node.attributes.get_float("gamma", 1.05070102)
    return np.asarray(gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))))


def _leaky(node: ir.Node, operands: Operands) -> FloatArray:
    x = _given(operands, 0)
    return np.asarray(np.where(x < 0, node.attributes.get_float("alpha", 0.01) * x, x))


def _hard_sigmoid(node: ir.Node, operands: Operands) -> FloatArray:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return np.asarray(np.clip(alpha * _given(operands, 0) + beta, 0, 1))


def _prelu(_: ir.Node, operands: Operands) -> FloatArray:
    x, slope = _given(operands, 0), _given(operands, 1)
    return np.asarray(np.where(x < 0, slope * x, x))


def _mean(_: ir.Node, operands: Operands) -> FloatArray:
    known = [x for x in operands if x is not None]
    return np.asarray(reduce(np.add, known) / len(known))


FUNCTIONS: Mapping[str, Function | None] = {
    "Abs": _unary(np.abs),
    "Add": _folded(np.add),
    "Cast": _unary(lambda x: x),
    "Ceil": None,
    "Celu": _celu,
    "Clip": _clip,
    "Div": _folded(np.divide),
    "Dropout": lambda _, operands: _given(operands, 0),
    "Elu": _elu,
    "Erf": _unary(_erf),
    "Exp": _unary(np.exp),
    "Floor": None,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Identity": _unary(lambda x: x),
    "LeakyRelu": _leaky,
    "Log": _unary(np.log),
    "Max": _folded(np.maximum),
    "Mean": _mean,
    "Min": _folded(np.minimum),
    "Mish": _unary(lambda x: x * np.tanh(_softplus(x))),
    "Mul": _folded(np.multiply),
    "Neg": _unary(np.negative),
    "PRelu": _prelu,
    "Pow": _folded(np.power),
    "Reciprocal": _unary(np.reciprocal),
    "Relu": _unary(lambda x: np.maximum(x, 0.0)),
    "Round": None,
    "Selu": _selu,
    "Sigmoid": _unary(_sigmoid),
    "Sign": None,
    "Softplus": _unary(_softplus),
    "Softsign": _unary(lambda x: x / (1 + np.abs(x))),
    "Sqrt": _unary(np.sqrt),
    "Sub": _folded(np.subtract),
    "Sum": _folded(np.add),
    "Tanh": _unary(np.tanh),
}
"""Elementwise operators with what they make of numbers; None for those that jump, where rounding would decide."""


def evaluated(node: ir.Node, operands: Operands) -> FloatArray | None:
    """Return the result of an elementwise operator on constants, float64.

    None where it is not told by the numbers alone.
    """
    function = FUNCTIONS[node.op_type]
    if function is None:
        return None
    with np.errstate(all="ignore"):  # what is not finite is not taken for a constant
        return np.asarray(function(node, operands), dtype=np.float64)
