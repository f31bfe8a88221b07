"""The error model of each ONNX operator; `rounding` has the models, and where they come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.factors import unit_rounding
from spdexport.reference import rounding
from spdexport.reference.noise import FLOAT32, Draw, rounds, with_errors
from spdexport.reference.rounding import Affine, Kernel
from spdexport.reference.rounding_microsoft import MICROSOFT_MODELS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spdexport.conv import Array
    from spdexport.reference.rounding_call import Call

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The products whose second operand may be a layer's weight."""

EXACT = frozenset((
    "Abs", "Bernoulli", "BitCast", "Ceil", "CenterCropPad", "Clip", "Compress", "Concat",
    "ConcatFromSequence", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout", "Expand", "EyeLike", "Flatten",
    "Floor", "Gather", "GatherElements", "GatherND", "GlobalMaxPool", "Hardmax", "Identity", "If", "Loop", "Max",
    "MaxPool", "MaxRoiPool", "MaxUnpool", "Min", "Mod", "Neg", "NhwcMaxPool", "NonMaxSuppression", "OneHot", "Optional",
    "OptionalGetElement", "Pad", "ReduceMax", "ReduceMin", "Relu", "Reshape", "ReverseSequence", "Round", "Scan",
    "Scatter", "ScatterElements", "ScatterND", "SequenceAt", "SequenceConstruct", "SequenceInsert", "Sign",
    "Slice", "SpaceToDepth", "Split", "SplitToSequence", "Squeeze", "TensorScatter", "ThresholdedRelu", "Tile",
    "TopK", "Transpose", "Trilu", "Unique", "Unsqueeze", "Where",
))  # fmt: skip
"""Operators that only move, select or cut off values, or whose subgraphs have errors of their own."""

SHAPES = frozenset(("Shape", "Size"))

DECISIONS = frozenset((
    "ArgMax", "ArgMin", "BitwiseAnd", "Cast", "CastLike", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual",
    "Hardmax", "If", "IsInf", "IsNaN", "Less", "LessOrEqual", "Loop", "Mod", "NonZero", "OneHot", "QuantizeLinear",
    "Range", "Resize", "Round", "Sign", "TopK", "Upsample",
))  # fmt: skip
"""Operators that make whole numbers, choices or sizes of what they read."""

KERNELS: dict[str, Kernel] = {
    "Acos": Kernel(relative=1.5, absolute=1.0),
    "Acosh": Kernel(relative=1.5, absolute=1.0),
    "Asin": Kernel(relative=1.5),
    "Asinh": Kernel(relative=1.5),
    "Atan": Kernel(relative=3.0),
    "Atanh": Kernel(relative=1.5),
    "Celu": Kernel(absolute=0.7),
    "Cos": Kernel(relative=1.0, absolute=1.0),
    "Cosh": Kernel(relative=1.5),
    "Elu": Kernel(absolute=0.7),
    "Erf": Kernel(relative=1.2),
    "Exp": Kernel(relative=1.2, positive=True),
    "Gelu": Kernel(relative=1.5, of_input=0.7),
    "HardSigmoid": Kernel(absolute=0.5, positive=True),
    "HardSwish": Kernel(relative=1.5, of_input=0.7),
    "Log": Kernel(relative=2.0),
    "Mish": Kernel(relative=5.0),
    "Pow": Kernel(relative=1.2),
    "Selu": Kernel(relative=1.5, absolute=1.5),
    "Sigmoid": Kernel(absolute=1.5, positive=True),
    "Sin": Kernel(absolute=1.0),
    "Sinh": Kernel(relative=1.5),
    "Softplus": Kernel(relative=3.0, positive=True),
    "Softsign": Kernel(relative=1.5),
    "Swish": Kernel(relative=1.5, of_input=1.5),
    "Tan": Kernel(relative=2.0),
    "Tanh": Kernel(relative=3.0),
}
"""In unit roundings, about half of what ONNX Runtime 1.31's kernels on the CPU were seen to be off over -100 to 80."""

RECURRENT = ("GRU", "LSTM", "RNN")
CELL, GIVEN_CELL = 2, 6
"""Where an LSTM has the state of its cell, among its outputs and its inputs."""

REDUCTIONS = {
    "GlobalAveragePool": "mean",
    "GlobalLpPool": "l2",
    "ReduceL1": "l1",
    "ReduceL2": "l2",
    "ReduceLogSum": "log_sum",
    "ReduceLogSumExp": "log_sum_exp",
    "ReduceMean": "mean",
    "ReduceSum": "sum",
    "ReduceSumSquare": "sum_square",
}


def with_rounding(call: Call, outputs: Sequence[Any]) -> list[Any]:
    """Return the outputs of a call with the errors of one rounding."""
    found = list(outputs)
    with np.errstate(all="ignore"):
        states = _of_states(call, outputs) if call.op in RECURRENT else []
        for index, value in enumerate(found):
            if not rounds(value):
                continue
            own = states[index] if states else None
            if own is None:
                own = call.draw.relative(value) if index else _errors(call)
            found[index] = with_errors(value, own)
    return found


def _errors(call: Call) -> Array:
    model = MODELS.get(call.op)
    if model is not None and rounds(call.x):
        return model(call)
    return call.draw.relative(call.y)


def _kernel(call: Call) -> Array:
    return rounding.elementwise(KERNELS[call.op], call.x, call.y, call.draw)


def _product(call: Call) -> Array:
    def size() -> Array:
        sizes = [None if value is None else np.abs(value) for value in call.inputs]
        product: Array = call.again(sizes[:2])[0]
        magnitude = np.abs(product)
        if len(sizes) > 2 and sizes[2] is not None:
            # The bias by itself, since Gemm's alpha and beta may differ in sign.
            magnitude += np.abs(call.again(sizes)[0] - product)
        return magnitude

    W = call.inputs[1]
    if call.op in ("Conv", "ConvTranspose"):
        terms = W.size // max(W.shape[0 if call.op == "Conv" else 1], 1)
    else:
        terms = call.x.shape[0 if call.op == "Gemm" and call.attribute("transA", 0) else -1] if call.x.ndim else 1
    growth = rounding.matmul_growth(call.x, W, call.y, call.draw) if call.op == "MatMul" else 0.0
    return rounding.product(call.y, call.magnitudes.of(call.identity, size), terms, call.draw, growth=growth)


def _einsum(call: Call) -> Array:
    def size() -> Array:
        product: Array = call.again([np.abs(value) for value in call.inputs])[0]
        return product

    equation = str(call.attribute("equation", ""))
    terms = rounding.contracted(equation, [value.shape for value in call.inputs])
    growth = rounding.summation_growth(equation, call.inputs, call.y, call.draw) if terms > rounding.SHORT else 0.0
    return rounding.product(call.y, call.magnitudes.of(call.identity, size), terms, call.draw, growth=growth)


def _reduction(call: Call) -> Array:
    x = call.x
    if call.op.startswith("Global"):
        axes = tuple(range(2, x.ndim))
    else:
        given = call.input(1) if len(call.inputs) > 1 else call.attribute("axes", None)
        listed = [] if given is None else [int(axis) % x.ndim for axis in np.reshape(given, -1)]
        if not listed and call.attribute("noop_with_empty_axes", 0):
            return call.draw.relative(call.y)
        axes = tuple(dict.fromkeys(listed)) or tuple(range(x.ndim))
    return rounding.reduction(REDUCTIONS[call.op], x, call.y, axes, call.draw)


def _several(factor: float) -> Callable[[Call], Array]:
    """Errors of some roundings one after another."""
    return lambda call: factor * call.draw.relative(call.y)


def _factors_of_product(call: Call) -> Array:
    count = call.x.size / max(call.y.size, 1)
    return call.draw.relative(call.y) * np.float64(max(count, 1.0) ** 0.5)


def _cumsum(call: Call) -> Array:
    axis = int(np.reshape(call.inputs[1], -1)[0])
    return rounding.running_sum(call.x, call.y, axis, call.draw, reverse=bool(call.attribute("reverse", 0)))


def _average_pool(call: Call) -> Array:
    return rounding.windows(call.x, call.y, lambda x: call.again([x])[0], call.draw)


def _lp_pool(call: Call) -> Array:
    return call.draw.relative(call.y) * np.float64(max(np.prod(call.attribute("kernel_shape", [1])) / 16, 1.0))


def _softmax(call: Call) -> Array:
    x, y = call.x, call.y
    if call.version < 13:  # all axes from `axis` on are one
        axis = int(call.attribute("axis", 1)) % max(x.ndim, 1)
        x, y = x.reshape(*x.shape[:axis], -1), y.reshape(*x.shape[:axis], -1)
        axis = -1
    else:
        axis = int(call.attribute("axis", -1))
    model = rounding.softmax if call.op == "Softmax" else rounding.log_softmax
    return model(x, y, axis, call.draw).reshape(call.y.shape)


def _by_channel(values: Array, x: Array) -> Array:
    return values.reshape(1, -1, *[1] * (x.ndim - 2))


def _batch_norm(call: Call) -> Array:
    x, scale, bias, mean, var = call.inputs[:5]
    factor = scale / np.sqrt(var + call.attribute("epsilon", 1e-5))
    centre, factor, shift = (_by_channel(values, x) for values in (mean, factor, bias))
    return rounding.batch_norm(x, call.y, centre, factor, shift, call.draw)


def _instance_norm(call: Call) -> Array:
    x, scale, bias = call.inputs[:3]
    affine = Affine(scale=_by_channel(scale, x), bias=_by_channel(bias, x))
    return rounding.normalized(
        x,
        call.y,
        lambda a: a.reshape(x.shape[0] * x.shape[1], -1),
        call.attribute("epsilon", 1e-5),
        affine,
        call.draw,
    )


def _group_norm(call: Call) -> Array:
    x, scale, bias = call.inputs[:3]
    groups = int(call.attribute("num_groups", 1))
    each = x.shape[1] // scale.size  # before opset 21, scale and bias are for groups
    affine = Affine(scale=_by_channel(np.repeat(scale, each), x), bias=_by_channel(np.repeat(bias, each), x))
    return rounding.normalized(
        x,
        call.y,
        lambda a: a.reshape(x.shape[0] * groups, -1),
        call.attribute("epsilon", 1e-5),
        affine,
        call.draw,
        one_pass=True,
    )


def _layer_norm(call: Call) -> Array:
    x, scale, bias = call.x, call.input(1), call.input(2)
    count = int(np.prod(x.shape[int(call.attribute("axis", -1)) % x.ndim :]))
    affine = Affine(scale=scale, bias=bias)
    epsilon = call.attribute("epsilon", 1e-5)
    return rounding.normalized(x, call.y, lambda a: a.reshape(-1, count), epsilon, affine, call.draw)


def _mean_variance(call: Call) -> Array:
    axes = [int(axis) % call.x.ndim for axis in call.attribute("axes", [0, 2, 3])]
    order = [axis for axis in range(call.x.ndim) if axis not in axes] + axes
    x, y = (np.ascontiguousarray(a.transpose(order)) for a in (call.x, call.y))
    count = int(np.prod([call.x.shape[axis] for axis in axes]))
    none = Affine(scale=None, bias=None)
    errors = rounding.normalized(x, y, lambda a: a.reshape(-1, count), 1e-9, none, call.draw, one_pass=True)
    return errors.transpose(np.argsort(order))


def _lp_norm(call: Call) -> Array:
    return rounding.scaled_by_norm(call.x, call.y, (int(call.attribute("axis", -1)) % call.x.ndim,), call.draw)


def _rms_norm(call: Call) -> Array:
    axes = tuple(range(int(call.attribute("axis", -1)) % call.x.ndim, call.x.ndim))
    return rounding.scaled_by_norm(call.x, call.y, axes, call.draw)


def _of_states(call: Call, outputs: Sequence[Any]) -> list[Array]:
    """The errors of all outputs of a recurrent layer: what it makes of operands and states that are a little off.

    Gates have absolute errors, of what they multiply: the state of a cell is as large as the sum of all that went in.
    """
    found: list[Array] = []
    for output, off in zip(outputs, _backward(call, range(len(call.inputs)), 2.0), strict=True):
        size = 3 * call.draw.inner
        if len(found) == CELL:
            states = [value for value in (output, call.input(GIVEN_CELL)) if value is not None]
            size *= max(float(np.abs(state).max(initial=1.0)) for state in states)
        found.append(off - output + size * call.draw.signs(output))
    return found


def _attention(call: Call) -> Array:
    """Queries and keys off by as much as their product; values by as much as theirs."""
    heads = call.attribute("q_num_heads", 1) if call.x.ndim == 3 else 1
    factor = (call.x.shape[-1] / max(int(heads), 1)) ** 0.5
    values = [*call.inputs[:2], np.abs(call.inputs[2]), *call.inputs[3:]]
    size = call.magnitudes.of(call.identity, lambda: call.again(values)[0])
    errors: Array = _backward(call, range(2), factor)[0] - call.y
    return errors + 2 * call.draw.unit_rounding * size * call.draw.signs(call.y)


def _backward(call: Call, operands: Sequence[int], factor: float) -> Sequence[Any]:
    """The outputs of a node whose operands are a little off."""
    off = [
        call.draw.perturbed(value, factor, salt=1 + index) if index in operands else value
        for index, value in enumerate(call.inputs)
    ]
    return call.again(off)


def _interpolated(call: Call) -> Array:
    if call.attribute("mode", "linear" if call.op == "GridSample" else "nearest") == "nearest":
        return np.zeros(())
    cubic = call.attribute("mode", "") in ("cubic", "bicubic")
    return rounding.interpolated(call.x, call.y, max(call.x.ndim - 2, 1), call.draw, cubic=cubic)


def _cast(call: Call) -> Array:
    """A cast to fewer bits than the model has; others are exact."""
    to = call.attribute("to", None)
    dtype = None if to is None else _float_of(int(to))
    if dtype is None or call.draw.unit_rounding < FLOAT32 or unit_rounding(dtype) <= call.draw.unit_rounding:
        return np.zeros(())
    return Draw(unit_rounding=unit_rounding(dtype), key=call.draw.key).relative(call.y)


def _float_of(element: int) -> np.dtype[Any] | None:
    import ml_dtypes
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(element)
    return dtype if dtype.kind == "f" or dtype == ml_dtypes.bfloat16 else None


def _fourier(call: Call) -> Array:
    axis = call.input(2) if call.version >= 20 else call.attribute("axis", 1)
    place = -2 if axis is None else int(np.reshape(axis, -1)[0])
    return rounding.fourier(call.x, call.y, place, call.draw)


MODELS: Mapping[str, Callable[[Call], Array]] = {
    **dict.fromkeys(KERNELS, _kernel),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(REDUCTIONS, _reduction),
    "Attention": _attention,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "CumSum": _cumsum,
    "DFT": _fourier,
    "Einsum": _einsum,
    "GridSample": _interpolated,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _several(4.0),
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _softmax,
    "LpNormalization": _lp_norm,
    "LpPool": _lp_pool,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_norm,
    "ReduceProd": _factors_of_product,
    "Resize": _interpolated,
    "RoiAlign": _several(8.0),
    "Softmax": _softmax,
    "Upsample": _interpolated,
    **MICROSOFT_MODELS,
}
"""Those of all other operators that round are ``u |y|``."""
