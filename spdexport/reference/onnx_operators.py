"""ONNX operators in float64 where onnx's own reference is slow, computes in float32 inside, or is wrong.

Each class takes the place of onnx's class of the same name in `onnx_reference`. All tensors of floats that they see are
float64. Where torch is missing, those that need it fall back on onnx's own where that keeps float64, else refuse.
"""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_attention import Attention as StockAttention
from onnx.reference.ops.op_scan import Scan as StockScan

from spdexport.reference.onnx_bounds import Pile
from spdexport.reference.unavailable import UndefinedFormError

if TYPE_CHECKING:
    from types import ModuleType

    from spdexport.conv import Array

REDUCED = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_REDUCED_ONNX = frozenset(onnx.helper.np_dtype_to_tensor_dtype(dtype) for dtype in REDUCED)


def promote(value: Any) -> Any:
    """Return the value with float16, bfloat16 and float32 arrays as float64, in lists too; all else as it is."""
    if isinstance(value, list):
        return [promote(item) for item in value]
    if isinstance(value, np.ndarray | np.generic) and value.dtype in REDUCED:
        return np.asarray(value, dtype=np.float64)
    return value


def torch_or_none() -> ModuleType | None:
    """Return the torch module, where it is installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None


def _required_torch(op: str) -> ModuleType:
    torch = torch_or_none()
    if torch is None:
        raise UndefinedFormError(f"{op} in float64 needs torch, which is not installed")
    return torch


def to_tensor(array: Array) -> Any:
    """Return the array as a torch tensor of the same dtype; only to be called where torch is there."""
    from spdexport.arrays import to_torch  # imports torch, which may be missing

    return to_torch(array)


def run_stock(stock: Any, node: OpRun, *arguments: Any, **attributes: Any) -> tuple[Array, ...]:
    """Return what onnx's own class computes in the place of one of ours."""
    result: tuple[Array, ...] = stock(node.onnx_node, node.run_params)._run(*arguments, **attributes)
    return result


class Cast(OpRun):
    """A cast; one to float16, bfloat16 or float32 gives float64."""

    def _run(self, x: Array, to: int | None = None, **attributes: Any) -> tuple[Array, ...]:
        if to in _REDUCED_ONNX and x.dtype.kind not in "OUS":
            return (x.astype(np.float64),)
        stock = importlib.import_module("onnx.reference.ops.op_cast")
        return (stock.cast_to(x, to, bool(attributes.get("saturate", 1)), attributes.get("round_mode") or "up"),)


class CastLike(OpRun):
    """A cast to the dtype of the second input, which is float64 already where it is a reduced float in the file."""

    def _run(self, x: Array, like: Array, **_: Any) -> tuple[Array, ...]:
        return (x.astype(like.dtype),)


class Attention(OpRun):
    """Attention, with its softmax in float64 whatever precision the file asks for."""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Array, ...]:
        return run_stock(StockAttention, self, *inputs, **{**attributes, "softmax_precision": None})


class BatchNormalization(OpRun):
    """Batch normalization for inference; onnx's own of opsets 6 to 13 computes the training form."""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, var: Array, epsilon: Any = None, **attributes: Any
    ) -> tuple[Array, ...]:
        if attributes.get("training_mode"):
            raise UndefinedFormError("BatchNormalization in training mode")
        # Before opset 9, spatial=0 asks for a scale of each location.
        shape = (*scale.shape, *[1] * (x.ndim - 1 - scale.ndim))
        factor = scale / np.sqrt(var + epsilon)
        return ((x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape),)


class GroupNormalization(OpRun):
    """Group normalization; its scale and bias are for groups before opset 21, for channels from there on."""

    def _run(
        self, x: Array, scale: Array, bias: Array, epsilon: Any = None, num_groups: int = 1, **_: Any
    ) -> tuple[Array, ...]:
        grouped = x.reshape(x.shape[0], num_groups, -1)
        centered = grouped - grouped.mean(axis=2, keepdims=True)
        normal = centered / np.sqrt((centered**2).mean(axis=2, keepdims=True) + epsilon)
        if self.run_params["opsets"][""] < 21:
            return ((normal * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)).reshape(x.shape),)
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (normal.reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape),)


class LogSoftmax(OpRun):
    """The logarithm of softmax, without the underflow of computing softmax first."""

    def _run(self, x: Array, axis: int | None = None) -> tuple[Array, ...]:
        # Before opset 13 all axes from `axis` (default 1) on are one.
        old = self.run_params["opsets"][""] < 13
        given = any(attribute.name == "axis" for attribute in self.onnx_node.attribute)
        first = axis if given and axis is not None else (1 if old else -1)
        rows = x.reshape(*x.shape[:first], -1) if old else x
        over = -1 if old else first
        shifted = rows - rows.max(axis=over, keepdims=True) if rows.size else rows
        out = shifted - np.log(np.exp(shifted).sum(axis=over, keepdims=True))
        return (out.reshape(x.shape),)


class Softmax(LogSoftmax):
    """Softmax, of every opset."""

    def _run(self, x: Array, axis: int | None = None) -> tuple[Array, ...]:
        return (np.exp(super()._run(x, axis)[0]),)


def erf(x: Array) -> Array:
    """Return the error function of each element, in float64."""
    torch = torch_or_none()
    if torch is None:
        return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x))
    return np.asarray(torch.erf(to_tensor(x)).numpy())


class Erf(OpRun):
    """The error function; onnx's own rounds it to float32."""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return (erf(x),)


class Gelu(OpRun):
    """Gelu with the constants of its formula in float64; the function in the standard has them in float32."""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array, ...]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + erf(x / math.sqrt(2))),)


class MeanVarianceNormalization(OpRun):
    """Values less their mean over their deviation plus 1e-9; the function in the standard cannot be run at opset 9."""

    def _run(self, x: Array, axes: Any = None) -> tuple[Array, ...]:
        over = tuple(axes or (0, 2, 3))
        mean = x.mean(axis=over, keepdims=True)
        deviation = np.sqrt(np.maximum((x**2).mean(axis=over, keepdims=True) - mean**2, 0))
        return ((x - mean) / (deviation + 1e-9),)


class HardSwish(OpRun):
    """x * clip(x / 6 + 1/2, 0, 1), with the sixth in float64."""

    def _run(self, x: Array) -> tuple[Array, ...]:
        return (x * np.clip(x / 6 + 0.5, 0, 1),)


class GridSample(OpRun):
    """Sampling at grid points; onnx's own computes coordinates in float32."""

    def _run(
        self,
        x: Array,
        grid: Array,
        align_corners: int | None = None,
        mode: str | None = None,
        padding_mode: str | None = None,
    ) -> tuple[Array, ...]:
        torch = _required_torch("GridSample")
        names = {"linear": "bilinear", "cubic": "bicubic"}  # of opset 20; torch has those of opset 16
        out = torch.nn.functional.grid_sample(
            to_tensor(x),
            to_tensor(grid),
            mode=names.get(mode or "linear", mode),
            padding_mode=padding_mode or "zeros",
            align_corners=bool(align_corners),
        )
        return (out.numpy(),)


class Loop(OpRun):
    """A loop; onnx's own joins scalars that are collected over the iterations in the wrong shape."""

    def need_context(self) -> bool:
        """Return the body may use names from around it."""
        return True

    def _run(
        self,
        trips: Array | None,
        condition: Array | None,
        *initial: Any,
        body: Any = None,
        attributes: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
    ) -> tuple[Any, ...]:
        carried: list[Any] = list(initial)
        pile = Pile()
        collected: list[list[Array]] = [[] for _ in body.output_names[1 + len(initial) :]]
        go_on, step = condition is None or bool(condition), 0
        while go_on and (trips is None or step < int(trips)):
            state = (np.array(step, np.int64), np.array(True), *carried)
            feeds = {**(context or {}), **dict(zip(body.input_names, state, strict=True))}
            keep, *results = body.run(None, feeds, attributes=attributes)
            go_on, step = bool(keep), step + 1
            carried = results[: len(initial)]
            pile.add(results[len(initial) :])
            for values, value in zip(collected, results[len(initial) :], strict=True):
                values.append(value)
        types = body.output_types[1 + len(initial) :]
        return (*carried, *(np.stack(v) if v else _empty(t) for v, t in zip(collected, types, strict=True)))


class Scan(StockScan):
    """A scan, which stops where what it collects becomes too much."""

    def _run(self, *arguments: Any, num_scan_inputs: int = 1, **attributes: Any) -> tuple[Any, ...]:
        if self.run_params["opsets"][""] < 9:
            raise UndefinedFormError("Scan of opset 8, which has a batch")
        self._pile, self._states = Pile(), len(arguments) - num_scan_inputs
        stock: Any = super()
        result: tuple[Any, ...] = stock._run(*arguments, num_scan_inputs=num_scan_inputs, **attributes)
        return result

    def _run_body(self, *arguments: Any, **settings: Any) -> list[Any]:
        stock: Any = super()
        outputs: list[Any] = stock._run_body(*arguments, **settings)
        self._pile.add(outputs[self._states :])
        return outputs


def _empty(declared: onnx.TypeProto) -> Array:
    """What a loop without iterations collects: no rows of the declared type."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(declared.tensor_type.elem_type)
    rows: Array = promote(np.empty((0, *(axis.dim_value for axis in declared.tensor_type.shape.dim)), dtype))
    return rows


class AffineGrid(OpRun):
    """The grid of an affine map; onnx's own gives float32."""

    def _run(self, theta: Array, size: Array, align_corners: int | None = None) -> tuple[Array, ...]:
        torch = _required_torch("AffineGrid")
        shape = [int(n) for n in size]
        return (torch.nn.functional.affine_grid(to_tensor(theta), shape, align_corners=bool(align_corners)).numpy(),)


OPERATORS: tuple[type[OpRun], ...] = (
    AffineGrid,
    Attention,
    BatchNormalization,
    Cast,
    CastLike,
    Erf,
    Gelu,
    GridSample,
    GroupNormalization,
    HardSwish,
    LogSoftmax,
    Loop,
    MeanVarianceNormalization,
    Scan,
    Softmax,
)
