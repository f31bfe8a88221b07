"""The error model of each aten operator; `rounding` has the models, and where they come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spdexport.reference import rounding
from spdexport.reference.noise import FLOAT32, Draw, Magnitudes, rounds, with_errors
from spdexport.reference.operators_torch import EXACT, KERNELS, PRODUCTS, REDUCTIONS
from spdexport.reference.rounding import Affine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from spdexport.conv import Array

UNIT_ROUNDINGS = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Of the types that a cast may round to."""

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell")
CELLS = (("lstm", 2), ("lstm_cell", 1))
"""Where the state of a cell is among the outputs."""

NEAREST, BICUBIC = 1, 2
"""The modes of grid_sampler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a node of a program.

    Attributes:
        target: The operator.
        identity: The node's name, and how often it ran before.
        arguments: By the names of the operator's schema, floats in float64.
        y: The first output.
        draw: Of the call.
        magnitudes: What the runs of one case share.
    """

    target: Any
    identity: tuple[str, int]
    arguments: Mapping[str, Any]
    y: Array
    draw: Draw
    magnitudes: Magnitudes

    def array(self, name: str) -> Array | None:
        """Return a tensor among the arguments; None where it is not given."""
        value = self.arguments.get(name)
        return array_of(value) if isinstance(value, torch.Tensor) else None

    @property
    def x(self) -> Array:
        """What is computed on; float64."""
        for name in ("self", "input", "query"):
            found = self.array(name)
            if found is not None:
                return found.astype(np.float64) if found.dtype.kind in "biu" else found
        return np.zeros(())

    def again(self, /, **changed: Any) -> Array:
        """Return the first output of the operator with other arguments."""
        result = self.target(**{**self.arguments, **changed})
        return array_of(result[0] if isinstance(result, tuple | list) else result)


def array_of(tensor: torch.Tensor) -> Array:
    """Return a tensor as an array, which is not to be written to."""
    array: Array = tensor.detach().resolve_conj().resolve_neg().numpy()
    return array


def operator_of(target: Any) -> str | None:
    """Return the name of an aten operator without namespace and overload, ``add`` for ``aten::add_`` too.

    None for others.
    """
    if not isinstance(target, torch._ops.OpOverload):
        return None
    name: str = target._schema.name.split("::")[-1]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def is_exact(target: Any) -> bool:
    """Return whether the results of a call have no errors of their own."""
    name = operator_of(target)
    views = name is None or any(r.alias_info is not None and not r.alias_info.is_write for r in target._schema.returns)
    return views or name in EXACT


def with_rounding(call: Call, result: Any) -> Any:
    """Return the result of a call, a tensor or several, with the errors of one rounding."""
    several = isinstance(result, tuple | list)
    found: list[Any] = []
    states: list[Array] = []
    for index, value in enumerate(result if several else [result]):
        array = array_of(value) if isinstance(value, torch.Tensor) else None
        if array is None or not rounds(array):
            found.append(value)
            continue
        with np.errstate(all="ignore"):
            if operator_of(call.target) in RECURRENT:
                states = states or _off_states(call)
                errors = states[index] - array + _of_gates(call, array, index)
            else:
                errors = call.draw.relative(array) if index else _errors(call)
        found.append(torch.from_numpy(with_errors(array, errors)))
    return type(result)(found) if several else found[0]


def _errors(call: Call) -> Array:
    name = operator_of(call.target)
    model = MODELS.get(name or "")
    return call.draw.relative(call.y) if model is None else model(call)


def _kernel(call: Call) -> Array:
    kernel = KERNELS[operator_of(call.target) or ""]
    return rounding.elementwise(kernel, call.x, call.y, call.draw)


def _size(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_size(v) if isinstance(v, torch.Tensor) else v for v in value]
    return value.abs() if isinstance(value, torch.Tensor) else value


def _product(call: Call) -> Array:
    sizes = {name: _size(value) for name, value in call.arguments.items()}
    sizes |= {name: abs(sizes[name]) for name in ("alpha", "beta") if isinstance(sizes.get(name), int | float)}
    magnitude = call.magnitudes.of(call.identity, lambda: call.again(**sizes))
    return rounding.product(call.y, magnitude, _terms(call), call.draw, growth=_growth(call))


def _growth(call: Call) -> float:
    """How far a product of two computed operands may be off, where all that it adds up is equal."""
    name = operator_of(call.target) or ""
    if name == "einsum":
        values = [array_of(value) for value in call.arguments["tensors"]]
        return rounding.summation_growth(call.arguments["equation"], values, call.y, call.draw)
    if name not in ("bmm", "matmul"):
        return 0.0
    second = call.array("mat2" if name == "bmm" else "other")
    assert second is not None, "a product has two operands"
    return rounding.matmul_growth(call.x, second, call.y, call.draw)


def _terms(call: Call) -> int:
    """The number of products in each sum; 1 where it is not told."""
    weight = call.array("weight")
    name = operator_of(call.target) or ""
    if name == "einsum":
        return rounding.contracted(call.arguments["equation"], [list(v.shape) for v in call.arguments["tensors"]])
    if weight is not None and weight.ndim > 1:
        outs = weight.shape[1] if "transpose" in name or call.arguments.get("transposed") else weight.shape[0]
        return int(weight.size // max(outs, 1))
    for operand in ("mat1", "batch1", "self"):
        first = call.array(operand)
        if first is not None and first.ndim and name not in ("tensordot", "addmv"):
            return int(first.shape[-1])
    return 1


def _axes(call: Call, x: Array) -> tuple[int, ...]:
    dims = call.arguments.get("dim")
    listed = [dims] if isinstance(dims, int) else list(dims or [])
    return tuple(int(d) % max(x.ndim, 1) for d in listed) or tuple(range(x.ndim))


def _reduction(call: Call) -> Array:
    kind = REDUCTIONS[operator_of(call.target) or ""]
    return rounding.reduction(kind, call.x, call.y, _axes(call, call.x), call.draw)


def _norm(call: Call) -> Array:
    order = call.arguments.get("ord", call.arguments.get("p", 2))
    order = 2 if order is None else order
    if order not in (1, 2):
        return call.draw.relative(call.y) * np.float64(4)
    return rounding.reduction("l1" if order == 1 else "l2", call.x, call.y, _axes(call, call.x), call.draw)


def _spread(call: Call) -> Array:
    root = (operator_of(call.target) or "").startswith("std")
    return rounding.spread(call.x, call.y, _axes(call, call.x), call.draw, root=root)


def _prod(call: Call) -> Array:
    return call.draw.relative(call.y) * np.float64(max(call.x.size / max(call.y.size, 1), 1.0) ** 0.5)


def _cumsum(call: Call) -> Array:
    return rounding.running_sum(call.x, call.y, int(call.arguments["dim"]), call.draw) if call.x.ndim else call.x * 0


def _pool(call: Call) -> Array:
    return rounding.windows(call.x, call.y, lambda x: call.again(self=torch.from_numpy(x)), call.draw)


def _adaptive_pool(call: Call) -> Array:
    sizes = call.arguments["output_size"]
    count = 1 if isinstance(sizes, int) else len(sizes)
    if all(n == 1 for n in call.y.shape[call.y.ndim - count :]):
        axes = tuple(range(call.x.ndim - count, call.x.ndim))
        return rounding.reduction("mean", call.x, call.y, axes, call.draw)
    return _pool(call)


def _softmax(call: Call) -> Array:
    if not call.x.ndim:
        return np.zeros(())
    model = rounding.log_softmax if "log" in (operator_of(call.target) or "") else rounding.softmax
    return model(call.x, call.y, int(call.arguments["dim"]), call.draw)


def _by_channel(values: Array | None, x: Array) -> Array | None:
    return None if values is None else values.reshape(1, -1, *[1] * (x.ndim - 2))


def _batch_norm(call: Call) -> Array:
    x, mean, var = call.x, call.array("running_mean"), call.array("running_var")
    training = call.arguments.get("training") or call.arguments.get("use_input_stats")
    affine = Affine(scale=_by_channel(call.array("weight"), x), bias=_by_channel(call.array("bias"), x))
    if mean is None or var is None or training:
        if "instance" not in (operator_of(call.target) or ""):
            return call.draw.relative(call.y) * np.float64(4)
        return _normalized(call, lambda a: a.reshape(x.shape[0] * x.shape[1], -1), affine)
    scale = np.ones(()) if affine.scale is None else affine.scale
    bias = np.zeros(()) if affine.bias is None else affine.bias
    centre, spread = _by_channel(mean, x), _by_channel(var, x)
    assert centre is not None, "there are statistics"
    assert spread is not None, "there are statistics"
    return rounding.batch_norm(x, call.y, centre, scale / np.sqrt(spread + _epsilon(call)), bias, call.draw)


def _epsilon(call: Call) -> float:
    found = call.arguments.get("eps", call.arguments.get("epsilon"))
    return 1e-5 if found is None else float(found)


def _normalized(call: Call, rows: Callable[[Array], Array], affine: Affine) -> Array:
    x = np.ascontiguousarray(call.x)
    return rounding.normalized(x, call.y, rows, _epsilon(call), affine, call.draw)


def _group_norm(call: Call) -> Array:
    x = call.x
    groups = call.arguments.get("num_groups", call.arguments.get("group", 1))
    affine = Affine(scale=_by_channel(call.array("weight"), x), bias=_by_channel(call.array("bias"), x))
    return _normalized(call, lambda a: a.reshape(x.shape[0] * int(groups), -1), affine)


def _layer_norm(call: Call) -> Array:
    count = int(np.prod([int(n) for n in call.arguments["normalized_shape"]]))
    affine = Affine(scale=call.array("weight"), bias=call.array("bias"))
    return _normalized(call, lambda a: a.reshape(-1, count), affine)


def _rms_norm(call: Call) -> Array:
    axes = tuple(range(call.x.ndim - len(call.arguments["normalized_shape"]), call.x.ndim))
    return rounding.scaled_by_norm(call.x, call.y, axes, call.draw)


def _attention(call: Call) -> Array:
    """Queries and keys off by as much as their product; values by as much as theirs."""
    factor = float(call.x.shape[-1]) ** 0.5
    value = call.arguments["value"]
    size = call.magnitudes.of(call.identity, lambda: call.again(value=value.abs()))
    off = {name: _off(call, call.arguments[name], factor, salt) for salt, name in enumerate(("query", "key"), 1)}
    errors = call.again(**off) - call.y
    return errors + 2 * call.draw.unit_rounding * size * call.draw.signs(call.y)


def _off_states(call: Call) -> list[Array]:
    """All outputs of a recurrent layer whose operands and states are a little off."""
    off = {name: _off(call, value, 2.0, salt) for salt, (name, value) in enumerate(call.arguments.items(), 1)}
    result = call.target(**off)
    return [array_of(value) for value in (result if isinstance(result, tuple | list) else [result])]


def _of_gates(call: Call, state: Array, index: int) -> Array:
    """The absolute errors of gates, of what they multiply; the cell of an LSTM is as large as all that went in."""
    size = 3 * call.draw.inner
    is_cell = (operator_of(call.target), index) in CELLS
    if is_cell:
        given = call.arguments.get("hx")
        cells = [state, *([array_of(given[1])] if isinstance(given, list | tuple) and len(given) > 1 else [])]
        size *= max(float(np.abs(cell).max(initial=1.0)) for cell in cells)
    return np.asarray(size * call.draw.signs(state))


def _off(call: Call, value: Any, factor: float, salt: int) -> Any:
    if isinstance(value, list | tuple):
        return [_off(call, v, factor, salt + 100 * n) for n, v in enumerate(value, 1)]
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.float64:
        return value
    found = call.draw.perturbed(array_of(value), factor, salt)
    return torch.from_numpy(np.asarray(found))


def _interpolated(call: Call) -> Array:
    if call.arguments.get("interpolation_mode") == NEAREST:
        return np.zeros(())
    cubic = "bicubic" in (operator_of(call.target) or "") or call.arguments.get("interpolation_mode") == BICUBIC
    return rounding.interpolated(call.x, call.y, max(call.x.ndim - 2, 1), call.draw, cubic=cubic)


def _cast(call: Call) -> Array:
    """A cast to fewer bits than the model has; others are exact."""
    u = UNIT_ROUNDINGS.get(call.arguments.get("dtype") or torch.float64, 0.0)
    if call.draw.unit_rounding < FLOAT32 or u <= call.draw.unit_rounding:
        return np.zeros(())
    return replace(call.draw, unit_rounding=u).relative(call.y)


def _fourier(call: Call) -> Array:
    dims = call.arguments.get("dim", -1)
    axis = dims if isinstance(dims, int) else (list(dims or [-1]))[-1]
    return rounding.fourier(call.x, call.y, int(axis), call.draw)


MODELS: Mapping[str, Callable[[Call], Array]] = {
    **dict.fromkeys(KERNELS, _kernel),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax"), _softmax),
    **dict.fromkeys(("special_softmax", "special_log_softmax"), _softmax),
    **dict.fromkeys(("norm", "linalg_vector_norm", "frobenius_norm"), _norm),
    **dict.fromkeys(("var", "std", "var_mean", "std_mean"), _spread),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _pool),
    **dict.fromkeys(
        ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d"), _adaptive_pool
    ),
    **dict.fromkeys(
        ("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
         "cudnn_batch_norm", "_batch_norm_no_update", "instance_norm"),
        _batch_norm,
    ),
    **dict.fromkeys(("group_norm", "native_group_norm"), _group_norm),
    **dict.fromkeys(("layer_norm", "native_layer_norm"), _layer_norm),
    **dict.fromkeys(("rms_norm", "_fused_rms_norm"), _rms_norm),
    **dict.fromkeys(
        ("scaled_dot_product_attention", "_scaled_dot_product_attention_math",
         "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
         "_scaled_dot_product_efficient_attention"),
        _attention,
    ),
    **dict.fromkeys(
        ("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
         "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d"),
        _interpolated,
    ),
    **dict.fromkeys(
        ("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "_fft_r2c", "_fft_c2c", "_fft_c2r", "stft"), _fourier
    ),
    "cumsum": _cumsum,
    "prod": _prod,
    "to": _cast,
    "_to_copy": _cast,
}  # fmt: skip
"""Those of all other operators that round are ``u |y|``."""
