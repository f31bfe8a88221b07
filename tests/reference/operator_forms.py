"""Single nodes in many forms: every opset that changed them, their attributes, ranks and types.

What onnx's own cases leave out: old opsets, options in combination, optional inputs and outputs, and the operators of
com.microsoft.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Form(NamedTuple):
    """One node; its first input is fed, the others are initializers."""

    op: str
    opset: int
    inputs: list[Any]
    attributes: dict[str, Any] | None = None
    outputs: Any = 1
    domain: str = ""

    def __str__(self) -> str:
        shapes = [None if value is None else (np.shape(value), np.asarray(value).dtype.name) for value in self.inputs]
        return f"{self.domain} {self.op} of opset {self.opset} with {self.attributes} on {shapes}"

    def model(self) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
        """The model, and what it is fed."""
        names = [f"i{k}" if value is not None else "" for k, value in enumerate(self.inputs)]
        outputs = [f"o{k}" for k in range(self.outputs)] if isinstance(self.outputs, int) else self.outputs
        node = helper.make_node(self.op, names, outputs, domain=self.domain, **(self.attributes or {}))
        (first, x), *rest = [(n, self._held(v)) for n, v in zip(names, self.inputs, strict=True) if n]
        fed = helper.make_tensor_value_info(first, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        given = [onnx.ValueInfoProto(name=name) for name in outputs if name]
        graph = helper.make_graph([node], "g", [fed], given, [numpy_helper.from_array(v, n) for n, v in rest])
        opsets = [helper.make_opsetid("", self.opset)] + ([helper.make_opsetid(self.domain, 1)] if self.domain else [])
        return helper.make_model(graph, opset_imports=opsets, ir_version=8 if self.opset < 21 else 10), {first: x}

    def _held(self, value: Any) -> np.ndarray:
        """An input; signed weights of a product with unsigned values in seven bits.

        With eight, ONNX Runtime's sums of two products may leave 16 bits on processors without VNNI.
        """
        array = np.asarray(value)
        is_mixed = array.dtype == np.int8 and array.ndim > 1 and np.asarray(self.inputs[0]).dtype == np.uint8
        return array >> 1 if is_mixed else array


def f(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def integers(seed: int, low: int, high: int, shape: tuple[int, ...], dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def z(value: int, dtype: type = np.uint8) -> np.ndarray:
    return np.array(value, dtype)


x3, x4, x5 = f(2, 3, 7), f(2, 3, 6, 5), f(1, 2, 3, 4, 5)
s, sv = np.float32(0.037), np.array([0.03, 0.5, 0.011], np.float32)
qa, qb = integers(3, 0, 255, (3, 4)), integers(4, 0, 255, (4, 5))
w, d = f(4, 3, 3, 2), f(3, 4)
no = np.zeros(0, np.float32)
p = [np.abs(f(3, seed=k)) + 0.1 for k in range(4)]


def quantization() -> Iterator[Form]:
    for op in (10, 13, 19, 21, 23):
        for zt in (np.uint8, np.int8, None) + ((np.int16, np.uint16) if op >= 21 else ()):
            yield Form("QuantizeLinear", op, [x4, s] + ([np.array(7, zt)] if zt else []))
            if op >= 13:
                for ax in (1, -3):
                    yield Form(
                        "QuantizeLinear", op, [x4, sv] + ([np.array([7, 0, 100], zt)] if zt else []), {"axis": ax}
                    )
                yield Form("QuantizeLinear", op, [f(4, 3), sv] + ([np.array([7, 0, 100], zt)] if zt else []))
        for qt in (np.uint8, np.int8, np.int32) + ((np.int16, np.uint16) if op >= 21 else ()):
            q = integers(1, 0, 100, (2, 3, 4, 5), qt)
            yield Form("DequantizeLinear", op, [q, s])
            if qt != np.int32:
                yield Form("DequantizeLinear", op, [q, s, np.array(7, qt)])
            if op >= 13:
                yield Form(
                    "DequantizeLinear",
                    op,
                    [q, sv] + ([] if qt == np.int32 else [np.array([7, 0, 50], qt)]),
                    {"axis": 1},
                )
                yield Form("DequantizeLinear", op, [q, sv], {"axis": -3})
                yield Form("DequantizeLinear", op, [q.reshape(2, 3, -1), sv])
        if op >= 21:
            q = integers(1, 0, 100, (4, 6), np.uint8)
            yield Form("DequantizeLinear", op, [q, np.abs(f(4, 2)) + 0.1, q[:, :2]], {"axis": 1, "block_size": 3})
            yield Form("QuantizeLinear", op, [f(4, 6), np.abs(f(4, 2)) + 0.1, q[:, :2]], {"axis": 1, "block_size": 3})
    for op in (19, 21):
        yield Form("QuantizeLinear", op, [x4.astype(np.float16), np.float16(0.1), np.array(3, np.uint8)])
        yield Form("DequantizeLinear", op, [q.astype(np.int8), np.float16(0.1), np.array(3, np.int8)])
    yield Form(
        "QuantizeLinear",
        13,
        [np.array([-1000, 1000, 0.5, 1.5, 2.5, -0.5], np.float32), np.float32(1), np.array(3, np.int8)],
    )
    yield Form("QuantizeLinear", 13, [np.arange(12, dtype=np.int32), np.float32(2.5), np.array(3, np.int8)])
    yield Form("DynamicQuantizeLinear", 11, [x4], None, 3)


def integer_products() -> Iterator[Form]:
    a = integers(1, 0, 255, (2, 4, 5), np.uint8)
    b = integers(2, -128, 127, (2, 5, 3), np.int8)
    yield Form("MatMulInteger", 10, [a, b])
    yield Form("MatMulInteger", 10, [a, b, np.array(3, np.uint8), np.array(-4, np.int8)])
    yield Form("MatMulInteger", 10, [a[0], b[0].astype(np.uint8), np.array(3, np.uint8), np.array([4, 2, 1], np.uint8)])
    ci = integers(1, 0, 255, (1, 4, 6, 6), np.uint8)
    wi = integers(2, 0, 255, (6, 2, 3, 3), np.uint8)
    yield Form(
        "ConvInteger",
        10,
        [ci, wi, np.array(120, np.uint8), np.array(9, np.uint8)],
        {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
    )
    yield Form("ConvInteger", 10, [ci, np.concatenate([wi, wi], 1)], {})
    yield Form(
        "ConvInteger", 10, [ci, np.concatenate([wi, wi], 1), np.array(120, np.uint8)], {"auto_pad": "SAME_UPPER"}
    )
    for wt, op in ((np.uint8, 10), (np.int8, 10)):
        w = integers(2, 0, 100, (6, 2, 3, 3), wt)

        yield Form(
            "QLinearConv",
            op,
            [
                ci,
                s,
                z(120),
                w,
                np.float32(0.02),
                z(5, wt),
                np.float32(3.1),
                z(100),
                np.arange(-3, 3, dtype=np.int32) * 1000,
            ],
            {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1]},
        )
        yield Form(
            "QLinearConv",
            op,
            [ci, s, z(120), w, (np.arange(6) + 1).astype(np.float32) * 0.003, np.zeros(6, wt), np.float32(3.1), z(100)],
            {"group": 2},
        )
    yield Form(
        "QLinearMatMul", 10, [qa, np.float32(0.02), z(100), qb, np.float32(0.03), z(90), np.float32(0.1), z(128)]
    )
    yield Form(
        "QLinearMatMul",
        10,
        [
            qa,
            np.float32(0.02),
            z(100),
            qb.astype(np.int8),
            np.array([0.03, 0.02, 0.01, 0.05, 0.04], np.float32),
            np.array([1, 2, 3, 4, 5], np.int8),
            np.float32(0.1),
            z(128),
        ],
    )


def resizing() -> Iterator[Form]:
    for mode in ("nearest", "linear"):
        for sc in ([1, 1, 2, 2], [1, 1, 1.5, 2.3], [1, 1, 3, 1]):
            yield Form("Upsample", 7, [x4], {"mode": mode, "scales": [float(v) for v in sc]})
            yield Form("Upsample", 9, [x4, np.array(sc, np.float32)], {"mode": mode})
            yield Form("Resize", 10, [x4, np.array(sc, np.float32)], {"mode": mode})
        yield Form("Resize", 10, [x4, np.array([1, 1, 0.6, 0.7], np.float32)], {"mode": mode})
    for op in (11, 13, 18, 19):
        cts = (
            ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize"]
            + (["half_pixel_symmetric"] if op >= 19 else [])
            + (["tf_half_pixel_for_nn"] if op == 11 else [])
        )
        for ct in cts:
            roi = np.array([0, 0, 0.1, 0.2, 1, 1, 0.9, 1.2], np.float32) if ct == "tf_crop_and_resize" else no
            for sc in ([1, 1, 2, 2], [1, 1, 0.6, 0.7], [1, 1, 1.3, 2.4]):
                sc = np.array(sc, np.float32)
                for nm in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
                    yield Form(
                        "Resize",
                        op,
                        [x4, roi, sc],
                        {"mode": "nearest", "nearest_mode": nm, "coordinate_transformation_mode": ct},
                    )
                yield Form("Resize", op, [x4, roi, sc], {"mode": "linear", "coordinate_transformation_mode": ct})
                if op in (11, 19):
                    for ex in (0, 1):
                        yield Form(
                            "Resize",
                            op,
                            [x4, roi, sc],
                            {
                                "mode": "cubic",
                                "coordinate_transformation_mode": ct,
                                "cubic_coeff_a": -0.5,
                                "exclude_outside": ex,
                            },
                        )
            for size in ([2, 3, 12, 10], [2, 3, 3, 3], [2, 3, 1, 1], [2, 3, 7, 9]):
                for mode in ("nearest", "linear", "cubic"):
                    yield Form(
                        "Resize",
                        op,
                        [x4, roi if len(roi) else no, no, i64(*size)],
                        {"mode": mode, "coordinate_transformation_mode": ct},
                    )
            if ct == "tf_crop_and_resize":
                yield Form(
                    "Resize",
                    op,
                    [x4, roi, no, i64(2, 3, 7, 9)],
                    {"mode": "linear", "coordinate_transformation_mode": ct, "extrapolation_value": 10.0},
                )
    for op in (18, 19):
        for mode in ("linear", "cubic"):
            for sc in ([1, 1, 0.5, 0.6], [1, 1, 2, 0.3]):
                for ex in (0, 1):
                    yield Form(
                        "Resize",
                        op,
                        [x4, None, np.array(sc, np.float32)],
                        {"mode": mode, "antialias": 1, "exclude_outside": ex},
                    )
                yield Form(
                    "Resize",
                    op,
                    [x4, None, np.array(sc, np.float32)],
                    {"mode": mode, "antialias": 1, "coordinate_transformation_mode": "align_corners"},
                )
        for pol in ("stretch", "not_larger", "not_smaller"):
            yield Form(
                "Resize",
                op,
                [x4, None, None, i64(9, 7)],
                {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": pol},
            )
            yield Form(
                "Resize",
                op,
                [x4, None, None, i64(9, 7)],
                {"mode": "nearest", "axes": [3, 2], "keep_aspect_ratio_policy": pol},
            )
        yield Form("Resize", op, [x4, None, np.array([2, 1.5], np.float32)], {"mode": "linear", "axes": [2, 3]})
        yield Form("Resize", op, [x4, None, np.array([2.0, 1.5], np.float32)], {"mode": "nearest", "axes": [-1, -2]})
    for op in (11, 13, 19):
        for mode in ("nearest", "linear"):
            yield Form("Resize", op, [x3, no, np.array([1, 1, 1.7], np.float32)], {"mode": mode})
            yield Form("Resize", op, [x5, no, np.array([1, 1, 2, 1.5, 0.7], np.float32)], {"mode": mode})
        yield Form(
            "Resize",
            op,
            [x4.transpose(0, 2, 3, 1).copy(), no, np.array([1, 2, 1.5, 1], np.float32)],
            {"mode": "linear"},
        )
        yield Form(
            "Resize",
            op,
            [x4.transpose(0, 2, 3, 1).copy(), no, np.array([1, 2, 1.5, 1], np.float32)],
            {"mode": "nearest"},
        )
        yield Form("Resize", op, [x4[0, 0].copy(), no, np.array([2, 1.5], np.float32)], {"mode": "linear"})
        yield Form(
            "Resize", op, [(x4 * 50).astype(np.uint8), no, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "nearest"}
        )
        yield Form(
            "Resize",
            op,
            [(np.abs(x4) * 50).astype(np.uint8), no, np.array([1, 1, 2, 1.5], np.float32)],
            {"mode": "linear"},
        )


def softmaxes() -> Iterator[Form]:
    xh = np.round(f(2, 3, 4, 5))
    for o in ("Hardmax", "Softmax", "LogSoftmax"):
        for op in (7, 11, 13):
            yield Form(o, op, [xh])
            for ax in (0, 1, 2, 3) + ((-1, -2) if op >= 11 else ()):
                yield Form(o, op, [xh], {"axis": ax})


def batch_norms() -> Iterator[Form]:
    ps = [np.abs(f(3, 6, 5, seed=k)) + 0.1 for k in range(4)]
    yield Form("BatchNormalization", 7, [x4, *p])
    yield Form("BatchNormalization", 7, [x4, *ps], {"spatial": 0, "epsilon": 0.01})
    yield Form("BatchNormalization", 8, [x4, *p], {"spatial": 1})
    yield Form("BatchNormalization", 7, [f(4, 3), *p])
    yield Form("BatchNormalization", 9, [f(4, 3), *p])
    yield Form("BatchNormalization", 15, [f(4, 3, 2), *p])
    for op in (9, 14, 15):
        yield Form("BatchNormalization", op, [x4, *p])


def padding() -> Iterator[Form]:
    for mode in ("constant", "reflect", "edge"):
        for pads in (
            [0, 0, 1, 2, 0, 0, 2, 1],
            [0, 0, -1, 2, 0, 0, 2, -1],
            [0, 0, -1, -2, 0, 0, -2, -1],
            [1, 0, 1, 0, 0, 2, 0, 0],
            [0, -1, 0, 0, 0, -1, 0, 3],
        ):
            if mode == "reflect" and pads[0]:
                pads[0] = 0
                pads[5] = 1
            yield Form("Pad", 2, [x4], {"mode": mode, "pads": pads})
            yield Form("Pad", 7, [x4], {"mode": mode, "pads": pads, "value": 1.5})
            for op in (11, 13, 18, 19, 21):
                yield Form(
                    "Pad", op, [x4, i64(*pads)] + ([np.float32(2)] if mode == "constant" else []), {"mode": mode}
                )
    for op in (19, 21):
        yield Form("Pad", op, [x4, i64(0, 0, 4, 2, 0, 0, 2, 8)], {"mode": "wrap"})
        yield Form("Pad", op, [x4, i64(0, 0, 4, -2, 0, 0, -1, 3)], {"mode": "wrap"})
    for op in (18, 19):
        yield Form("Pad", op, [x4, i64(1, 2, 0, 3), None, i64(2, -1)])
        yield Form("Pad", op, [x4, i64(1, -2, 0, 3), np.float32(1), i64(-1, 1)])
    yield Form("Pad", 13, [np.arange(6, dtype=np.int64), i64(1, 2), np.int64(9)])


def one_hot() -> Iterator[Form]:
    for op in (9, 11):
        for d in (np.int64(5), i64(5), np.float32(5), np.array([5], np.int32)):
            for ax in (-1, 0, 1):
                yield Form(
                    "OneHot",
                    op,
                    [np.array([[0, -1, 4], [7, -9, 2]], np.int64), d, np.array([0.5, 3], np.float32)],
                    {"axis": ax},
                )
        yield Form("OneHot", op, [np.array([0, 2], np.float32), np.int64(3), np.array([0, 1], np.int64)])
        yield Form("OneHot", op, [i64(1, 2), np.int64(3), np.array([0, 1], np.float32)], {"axis": -2})


def scattering() -> Iterator[Form]:
    ix = np.array([[0, 1, 2, 0], [2, -1, 0, 1]], np.int64)
    up = f(2, 4, seed=5)
    yield Form("Scatter", 9, [d, ix, up])
    yield Form("Scatter", 9, [d, ix % 3, up], {"axis": 1})
    yield Form("Scatter", 10, [d, ix % 3, up], {"axis": 0})
    for op in (11, 13, 16, 18):
        for r in ("none",) + (("add", "mul") if op >= 16 else ()) + (("max", "min") if op >= 18 else ()):
            for ax in (0, 1, -1):
                yield Form(
                    "ScatterElements",
                    op,
                    [d, ix if ax == 0 else np.array([[0, -1, 2, 1], [3, 2, 1, 0]], np.int64), up],
                    {"axis": ax, **({"reduction": r} if op >= 16 else {})},
                )
            nd = np.array([[0], [2], [-3]], np.int64) if r != "none" else np.array([[0], [2]], np.int64)
            yield Form("ScatterND", op, [d, nd, f(len(nd), 4, seed=3)], {"reduction": r} if op >= 16 else {})
            nd = np.array([[0, 1], [2, 3], [0, 1]] if r != "none" else [[0, 1], [2, -1]], np.int64)
            yield Form("ScatterND", op, [d, nd, f(len(nd), seed=3)], {"reduction": r} if op >= 16 else {})


def pooling() -> Iterator[Form]:
    for pp in (1, 2, 3):
        for op, x in itertools.product(("GlobalAveragePool", "GlobalMaxPool"), (x3, x4, x5)):
            yield Form(op, 7 + 15 * (pp % 2), [x])
        yield Form("GlobalLpPool", 7, [x4], {"p": pp})
        yield Form("GlobalLpPool", 22, [x3], {"p": pp})
        for op in (7, 11, 18, 22):
            yield Form("LpPool", op, [x4], {"p": pp, "kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]})
            yield Form(
                "LpPool", op, [x4], {"p": pp, "kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}
            )
            yield Form("LpPool", op, [x3], {"p": pp, "kernel_shape": [3], "strides": [2], "auto_pad": "VALID"})
            if op >= 18:
                yield Form(
                    "LpPool",
                    op,
                    [x4],
                    {
                        "p": pp,
                        "kernel_shape": [2, 2],
                        "strides": [2, 3],
                        "dilations": [2, 1],
                        "ceil_mode": 1,
                        "pads": [1, 0, 0, 1],
                    },
                )
    for op in (7, 8, 10, 11, 12, 22):
        outs = 2 if op >= 8 else 1
        yield Form("MaxPool", op, [x4], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}, outs)
        yield Form(
            "MaxPool", op, [np.round(x4)], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, outs
        )
        yield Form("MaxPool", op, [x4], {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"}, outs)
        yield Form("MaxPool", op, [x3], {"kernel_shape": [3], "strides": [2]}, outs)
        yield Form("MaxPool", op, [x5], {"kernel_shape": [2, 2, 3], "strides": [1, 2, 1]}, outs)
        if op >= 8:
            for so in (0, 1):
                yield Form(
                    "MaxPool",
                    op,
                    [x4],
                    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "storage_order": so},
                    2,
                )
                yield Form(
                    "MaxPool",
                    op,
                    [x5],
                    {"kernel_shape": [2, 2, 3], "strides": [1, 2, 1], "storage_order": so, "pads": [1, 0, 1, 0, 1, 1]},
                    2,
                )
        if op >= 10:
            for so in (0, 1):
                yield Form(
                    "MaxPool",
                    op,
                    [x4],
                    {
                        "kernel_shape": [2, 2],
                        "strides": [2, 1],
                        "dilations": [2, 3],
                        "ceil_mode": 1,
                        "storage_order": so,
                        "pads": [1, 0, 1, 1],
                    },
                    2,
                )
            yield Form("MaxPool", op, [x4], {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1}, 2)
        if op >= 12:
            yield Form(
                "MaxPool",
                op,
                [(x4 * 50).astype(np.int8)],
                {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 0, 0]},
                2,
            )
        yield Form("MaxPool", op, [x4], {"kernel_shape": [2, 2]}, ["o0", ""] if op >= 8 else 1)
    for op in (7, 10, 11, 19, 22):
        for cip in (0, 1):
            yield Form(
                "AveragePool",
                op,
                [x4],
                {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "count_include_pad": cip},
            )
            yield Form(
                "AveragePool",
                op,
                [x4],
                {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER", "count_include_pad": cip},
            )
            if op >= 10:
                yield Form(
                    "AveragePool",
                    op,
                    [x4],
                    {
                        "kernel_shape": [3, 3],
                        "strides": [2, 3],
                        "ceil_mode": 1,
                        "pads": [1, 0, 1, 1],
                        "count_include_pad": cip,
                    },
                )
            if op >= 10:
                yield Form(
                    "AveragePool",
                    op,
                    [x5],
                    {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2], "ceil_mode": 1, "count_include_pad": cip},
                )
            if op >= 19:
                yield Form(
                    "AveragePool",
                    op,
                    [x4],
                    {
                        "kernel_shape": [2, 2],
                        "dilations": [2, 3],
                        "ceil_mode": 1,
                        "strides": [2, 2],
                        "pads": [1, 0, 1, 1],
                        "count_include_pad": cip,
                    },
                )
        yield Form("AveragePool", op, [x3], {"kernel_shape": [3]})
    rois = np.array([[0, 0, 0, 3, 3], [1, 1, 0, 4, 5], [0, 2, 2, 2, 2], [1, 0, 0, 9, 9]], np.float32)
    for sc in (1.0, 0.5):
        yield Form("MaxRoiPool", 7, [x4, rois], {"pooled_shape": [2, 3], "spatial_scale": sc})
        yield Form("MaxRoiPool", 22, [x4, rois], {"pooled_shape": [1, 1], "spatial_scale": sc})
    ra = np.array([[0, 0, 3, 3], [1, 0, 4.5, 5], [2, 2, 2.2, 2.1], [-1, 0, 9, 9]], np.float32)
    bi = i64(0, 1, 0, 1)
    for op in (10, 16, 22):
        for mode in ("avg", "max"):
            for sr in (0, 2):
                for ct in ("half_pixel", "output_half_pixel") if op >= 16 else (None,):
                    yield Form(
                        "RoiAlign",
                        op,
                        [x4, ra, bi],
                        {
                            "mode": mode,
                            "output_height": 2,
                            "output_width": 3,
                            "sampling_ratio": sr,
                            "spatial_scale": 0.7,
                            **({"coordinate_transformation_mode": ct} if ct else {}),
                        },
                    )


def slices() -> Iterator[Form]:
    yield Form("Slice", 7, [x4], {"starts": [1, -3], "ends": [100, -1], "axes": [2, 3]})
    yield Form("Slice", 7, [x4], {"starts": [0, 1], "ends": [1, 2]})
    for op in (10, 11, 13):
        for st, en, ax, sp in (
            ([-1], [-100], [3], [-1]),
            ([-1], [-(2**63)], [2], [-2]),
            ([100, 0], [0, 2**62], [2, 3], [-1, 2]),
            ([3], [-2], [-1], [1]),
            ([1, 1], [2**31 - 1, 3], [0, 3], None),
            ([2], [1], [3], [1]),
        ):
            for t in (np.int64, np.int32):
                if t == np.int32 and any(abs(v) > 2**31 for v in st + en):
                    continue
                yield Form(
                    "Slice",
                    op,
                    [x4, np.array(st, t), np.array(en, t), np.array(ax, t)] + ([np.array(sp, t)] if sp else []),
                )
        yield Form("Slice", op, [x4, i64(0, 0, 1), i64(1, 2, 3)])


def dropouts() -> Iterator[Form]:
    for op in (7, 10):
        yield Form("Dropout", op, [x4], {"ratio": 0.3}, 2)
    for op in (12, 13, 22):
        yield Form("Dropout", op, [x4, np.float32(0.3)], None, 2)
        yield Form("Dropout", op, [x4, np.float32(0.3), np.array(False)], None, 2)
        yield Form("Dropout", op, [x4, None, np.array(False)], None, ["o0", ""])


def clips() -> Iterator[Form]:
    yield Form("Clip", 7, [x4], {"min": -0.5})
    yield Form("Clip", 7, [x4], {"min": -0.5, "max": 0.3})
    yield Form("Clip", 7, [x4])
    for op in (11, 12, 13):
        yield Form("Clip", op, [x4, np.float32(-0.5)])
        yield Form("Clip", op, [x4, None, np.float32(0.3)])
        yield Form("Clip", op, [x4, np.float32(0.3), np.float32(-0.3)])
        if op > 11:
            yield Form("Clip", op, [(x4 * 9).astype(np.int64), np.int64(-2), np.int64(3)])


def shapes() -> Iterator[Form]:
    xs = f(1, 3, 1, 5)
    yield Form("Squeeze", 7, [xs], {"axes": [0, 2]})
    yield Form("Squeeze", 11, [xs], {"axes": [-2]})
    yield Form("Squeeze", 7, [xs])
    yield Form("Squeeze", 13, [xs])
    yield Form("Squeeze", 13, [xs, i64(0, -2)])
    for ax in ([0, 2], [4, 1, 2], [2, 0]):
        yield Form("Unsqueeze", 7, [f(3, 4)], {"axes": ax})
        yield Form("Unsqueeze", 13, [f(3, 4), i64(*ax)])
    yield Form("Unsqueeze", 11, [f(3, 4)], {"axes": [-1, 0]})
    yield Form("Unsqueeze", 13, [f(3, 4), i64(-1, 0)])
    yield Form("Unsqueeze", 13, [np.float32(3), i64(0)])
    for r in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
        X = np.abs(x4) + 0.1 if r == "LogSum" else x4
        for kd in (0, 1):
            yield Form("Reduce" + r, 7, [X], {"axes": [1, 3], "keepdims": kd})
            yield Form("Reduce" + r, 11, [X], {"axes": [-1], "keepdims": kd})
            yield Form("Reduce" + r, 11, [X], {"keepdims": kd})
            op = 13 if r == "Sum" else 18
            yield Form("Reduce" + r, op, [X, i64(-1, 1)], {"keepdims": kd})
            yield Form("Reduce" + r, op, [X], {"keepdims": kd})
            yield Form("Reduce" + r, op, [X], {"keepdims": kd, "noop_with_empty_axes": 1})
        if "Log" not in r:
            yield Form("Reduce" + r, 12, [np.arange(1, 7, dtype=np.int32).reshape(2, 3)], {"axes": [1]})
    yield Form("ReduceLogSumExp", 18, [x4 * 200, i64(1)])
    yield Form("ReduceLogSumExp", 11, [x4 * -300], {"axes": [1, 2]})
    yield Form("Split", 7, [x4], {"axis": 2, "split": [1, 2, 3]}, 3)
    yield Form("Split", 7, [x4], {"axis": 2}, 3)
    yield Form("Split", 11, [x4], {"axis": -2}, 2)
    yield Form("Split", 13, [x4, i64(2, 4)], {"axis": 2}, 2)
    yield Form("Split", 13, [x4], {"axis": 2}, 2)
    yield Form("Split", 18, [x4], {"axis": 3, "num_outputs": 2}, 2)
    yield Form("Split", 18, [x4], {"axis": 2, "num_outputs": 4}, 4)
    xt = np.round(f(3, 8) * 2)
    yield Form("TopK", 7, [xt], {"k": 3}, 2)
    yield Form("TopK", 7, [xt], {"k": 2, "axis": 0}, 2)
    yield Form("TopK", 10, [xt, i64(3)], None, 2)
    for lg in (0, 1):
        yield Form("TopK", 11, [xt, i64(3)], {"largest": lg, "sorted": 1}, 2)
        yield Form("TopK", 11, [xt, i64(2)], {"largest": lg, "axis": 0}, 2)
        yield Form("TopK", 11, [xt.astype(np.int64), i64(3)], {"largest": lg}, 2)
    yield Form("ConstantOfShape", 9, [i64(2, 3)])
    yield Form("ConstantOfShape", 9, [i64(2, 3)], {"value": numpy_helper.from_array(i64(4))})
    yield Form("ConstantOfShape", 9, [np.zeros(0, np.int64)])


def recurrent() -> Iterator[Form]:
    T, N, width, H = 4, 3, 2, 5
    for op_name, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        for op in (7, 14, 22):
            for direction in ("forward", "reverse", "bidirectional"):
                D = 2 if direction == "bidirectional" else 1
                W = f(D, gates * H, width, seed=1) * 0.5
                R = f(D, gates * H, H, seed=2) * 0.5
                B = f(D, 2 * gates * H, seed=3) * 0.3
                h0 = f(D, N, H, seed=4)
                c0 = f(D, N, H, seed=5)
                lens = np.array([4, 2, 3], np.int32)
                P = f(D, 3 * H, seed=6)
                X = f(T, N, width, seed=7)
                base = {"hidden_size": H, "direction": direction}
                no_ = 3 if op_name == "LSTM" else 2
                yield Form(op_name, op, [X, W, R], base, no_)
                yield Form(op_name, op, [X, W, R, B, lens, h0] + ([c0, P] if op_name == "LSTM" else []), base, no_)
                yield Form(
                    op_name,
                    op,
                    [X, W, R, B, None, h0] + ([c0] if op_name == "LSTM" else []),
                    base,
                    ["", "o1"] + (["o2"] if op_name == "LSTM" else []),
                )
                yield Form(
                    op_name, op, [X, W, R, None, None, h0] + ([None, P] if op_name == "LSTM" else []), base, ["o0"]
                )
                if op_name == "GRU":
                    yield Form(op_name, op, [X, W, R, B, lens, h0], {**base, "linear_before_reset": 1}, no_)
                if op_name == "LSTM":
                    yield Form(op_name, op, [X, W, R, B, lens], {**base, "input_forget": 1}, no_)
                yield Form(op_name, op, [X, W, R, B, lens, h0], {**base, "clip": 0.5}, no_)
                acts = {"RNN": ["Relu"], "GRU": ["HardSigmoid", "Softsign"], "LSTM": ["HardSigmoid", "Tanh", "Affine"]}[
                    op_name
                ] * D
                ex = (
                    {}
                    if op_name == "RNN"
                    else {
                        "activation_alpha": [0.3, 0.7][: 1 if op_name == "GRU" else 2] * D,
                        "activation_beta": [0.4, 0.1][: 1 if op_name == "GRU" else 2] * D,
                    }
                )
                yield Form(op_name, op, [X, W, R, B], {**base, "activations": acts, **ex}, no_)
                for a_ in (
                    ["LeakyRelu", "ThresholdedRelu", "Elu", "Softplus", "ScaledTanh", "Sigmoid"] if op == 14 else []
                ):
                    acts = (
                        [a_] if op_name == "RNN" else ["Sigmoid", a_] if op_name == "GRU" else ["Sigmoid", a_, a_]
                    ) * D
                    yield Form(op_name, op, [X, W, R, B], {**base, "activations": acts}, no_)
                if op >= 14:
                    yield Form(
                        op_name,
                        op,
                        [X.transpose(1, 0, 2).copy(), W, R, B, lens, h0.transpose(1, 0, 2).copy()]
                        + ([c0.transpose(1, 0, 2).copy()] if op_name == "LSTM" else []),
                        {**base, "layout": 1},
                        no_,
                    )


def normalizations() -> Iterator[Form]:
    yield Form("InstanceNormalization", 7, [x4, p[0], p[1]], {"epsilon": 0.01})
    yield Form("InstanceNormalization", 22, [x3, p[0], p[1]])
    for sz in (1, 2, 3, 5):
        yield Form("LRN", 7, [x4], {"size": sz, "alpha": 0.3, "beta": 0.6, "bias": 1.3})
        yield Form("LRN", 13, [f(1, 7, 2, 2)], {"size": sz})
    for op in (9, 13):
        yield Form("MeanVarianceNormalization", op, [x4])
        yield Form("MeanVarianceNormalization", op, [x4], {"axes": [1, 2]})
    yield Form("LpNormalization", 7, [x4], {"axis": 1, "p": 1})
    yield Form("LpNormalization", 7, [x4])
    yield Form("LpNormalization", 22, [x4], {"axis": -2})
    for ax in (-1, 1, 2):
        yield Form(
            "LayerNormalization",
            17,
            [x4, f(*x4.shape[ax:]), f(*x4.shape[ax:], seed=2)],
            {"axis": ax, "epsilon": 0.01},
            3,
        )
    yield Form("LayerNormalization", 17, [x4, f(5)], None, ["o0"])
    yield Form("GroupNormalization", 18, [f(2, 6, 4), f(3), f(3, seed=1)], {"num_groups": 3})
    yield Form("GroupNormalization", 21, [f(2, 6, 4), f(6), f(6, seed=1)], {"num_groups": 3})
    yield Form("RMSNormalization", 23, [x4, f(5)])
    for eq, sh in (
        ("ij,jk->ik", ((2, 3), (3, 4))),
        ("bij,bjk", ((2, 3, 4), (2, 4, 5))),
        ("...i,i->...", ((2, 3, 4), (4,))),
        ("ii->i", ((3, 3),)),
        ("ii", ((3, 3),)),
        ("ij->ji", ((2, 3),)),
        ("i,j->ij", ((2,), (3,))),
        ("bhwc,hkc->bhwk", ((2, 3, 4, 5), (3, 6, 5))),
        ("...ij,...jk->...ik", ((2, 1, 3, 4), (5, 4, 2))),
        ("ij,ij,ij->i", ((2, 3), (2, 3), (2, 3))),
        (" ij , jk -> ik ", ((2, 3), (3, 4))),
    ):
        yield Form("Einsum", 12, [f(*q_, seed=k) for k, q_ in enumerate(sh)], {"equation": eq})


def suppression() -> Iterator[Form]:
    bx = np.random.default_rng(3).random((2, 8, 4)).astype(np.float32)
    bx[..., 2:] += bx[..., :2]
    scs = np.random.default_rng(4).random((2, 3, 8)).astype(np.float32)
    for cpb in (0, 1):
        yield Form(
            "NonMaxSuppression",
            11,
            [bx, scs, i64(3), np.array([0.3], np.float32), np.array([0.2], np.float32)],
            {"center_point_box": cpb},
        )
        yield Form("NonMaxSuppression", 10, [bx, scs, i64(2)], {"center_point_box": cpb})
        yield Form("NonMaxSuppression", 10, [bx, scs])
        yield Form("NonMaxSuppression", 11, [bx[:1], scs[:1], np.int64(4), np.float32(0.5)], {"center_point_box": cpb})
    yield Form("NonMaxSuppression", 11, [bx[..., [2, 3, 0, 1]].copy(), scs, i64(3), np.array([0.3], np.float32)])


def others() -> Iterator[Form]:
    for ex, rv in itertools.product((0, 1), (0, 1)):
        for ax in (0, -1):
            yield Form("CumSum", 11, [x4, np.int64(ax)], {"exclusive": ex, "reverse": rv})
            yield Form("CumSum", 14, [x4, np.array([ax], np.int32)], {"exclusive": ex, "reverse": rv})
    for o in ("ArgMax", "ArgMin"):
        for op in (7, 11, 12, 13):
            for kd in (0, 1):
                yield Form(o, op, [np.round(x4)], {"axis": 1, "keepdims": kd})
                if op >= 12:
                    yield Form(o, op, [np.round(x4)], {"axis": -2, "keepdims": kd, "select_last_index": 1})
    for mode in ("DCR", "CRD"):
        yield Form("DepthToSpace", 11, [f(1, 8, 2, 3)], {"blocksize": 2, "mode": mode})
        yield Form("DepthToSpace", 13, [f(1, 8, 2, 3)], {"blocksize": 2, "mode": mode})
    yield Form("DepthToSpace", 7, [f(1, 8, 2, 3)], {"blocksize": 2})
    yield Form("SpaceToDepth", 7, [f(1, 2, 4, 6)], {"blocksize": 2})
    for o, at in (
        ("Elu", {"alpha": 0.3}),
        ("Selu", {}),
        ("Selu", {"alpha": 2.0, "gamma": 0.5}),
        ("Celu", {"alpha": 2.0}),
        ("LeakyRelu", {}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("HardSigmoid", {}),
        ("HardSigmoid", {"alpha": 0.4, "beta": 0.6}),
        ("ThresholdedRelu", {"alpha": 0.4}),
        ("Shrink", {"lambd": 0.3, "bias": 0.2}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("Mish", {}),
        ("HardSwish", {}),
        ("Gelu", {}),
        ("Erf", {}),
        ("Sign", {}),
        ("Round", {}),
        ("Ceil", {}),
        ("IsInf", {}),
        ("IsNaN", {}),
        ("Reciprocal", {}),
        ("Atanh", {}),
        ("Tan", {}),
        ("Sigmoid", {}),
        ("Tanh", {}),
        ("Log", {}),
        ("Sqrt", {}),
    ):
        op = {"Gelu": 20, "Mish": 18, "HardSwish": 14, "Celu": 12, "IsInf": 10, "Round": 11}.get(o, 9)
        yield Form(o, op, [x4], at)
    yield Form("Sigmoid", 13, [x4 * 300])
    yield Form("Softplus", 13, [x4 * 300])
    yield Form("Mish", 18, [x4 * 300])
    yield Form("LogSoftmax", 13, [x4 * 300])
    yield Form("Softmax", 13, [x4 * 300])
    yield Form("Elu", 13, [x4 * 300])
    yield Form("Celu", 13, [x4 * 300])
    yield Form("IsInf", 10, [np.array([np.inf, -np.inf, np.nan, 1], np.float32)], {"detect_negative": 0})
    yield Form("Round", 11, [np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)])
    for a_, b_ in ((x4, f(3, 1, 1)), (x4, f(5)), (x4, np.float32(0.2))):
        yield Form("PRelu", 9, [a_, b_])
    yield Form("PRelu", 7, [x4, f(3, 1, 1)])
    for fm in (0, 1):
        yield Form("Mod", 10, [np.array([-7, 7, 5, -5], np.int64), np.array([3, -3, 3, -3], np.int64)], {"fmod": fm})
    yield Form("Mod", 10, [x4 * 10, np.full(5, -2.5, np.float32)], {"fmod": 1})
    yield Form("Div", 7, [np.array([-7, 7, 5, -5], np.int64), np.array([2, -2, 3, 3], np.int64)])
    yield Form("Div", 14, [np.array([-7, 7], np.int32), np.array([2, -2], np.int32)])
    yield Form("Pow", 7, [np.abs(x4), np.float32(1.7)])
    yield Form("Pow", 12, [np.abs(x4), np.int64(2)])
    yield Form("Pow", 15, [np.arange(4, dtype=np.int64), np.float32(2)])
    yield Form("Pow", 13, [x4, np.float32(0.5)])
    yield Form("Gemm", 7, [f(3, 4), f(4, 5), f(5)], {"alpha": 0.5, "beta": 2.0})
    yield Form("Gemm", 9, [f(4, 3), f(5, 4), f(3, 1)], {"transA": 1, "transB": 1})
    yield Form("Gemm", 11, [f(3, 4), f(4, 5)])
    yield Form("Gemm", 13, [f(3, 4), f(4, 5), np.float32(2)])
    yield Form("MatMul", 9, [f(5), f(2, 5, 3)])
    yield Form("MatMul", 13, [f(2, 3, 5), f(5)])
    yield Form("MatMul", 13, [f(5), f(5)])
    yield Form("ReverseSequence", 10, [f(4, 3, 2), i64(1, 2, 4)], {"batch_axis": 1, "time_axis": 0})
    yield Form("ReverseSequence", 10, [f(3, 4, 2), i64(1, 2, 4)], {"batch_axis": 0, "time_axis": 1})
    for op in (7, 11, 13):
        yield Form("Gather", op, [x4, i64(0, 2)], {"axis": 2})
        yield Form("Gather", op, [x4, np.int64(1)], {"axis": 1})
    yield Form("Gather", 11, [x4, np.array([[-1, 0], [1, -2]], np.int64)], {"axis": -1})
    yield Form("GatherElements", 11, [d, np.array([[0, -1, 2, 1]], np.int64)])
    yield Form("GatherElements", 13, [d, np.array([[0, -1], [1, 2], [3, 0]], np.int64)], {"axis": -1})
    yield Form("GatherND", 11, [x4, np.array([[0, 1], [1, -1]], np.int64)])
    yield Form("GatherND", 12, [x4, np.array([[[0]], [[2]]], np.int64)], {"batch_dims": 1})
    for op in (7, 9):
        yield Form("Cast", op, [x4 * 10], {"to": 6})
        yield Form("Cast", op, [x4], {"to": 10})
        yield Form("Cast", op, [x4], {"to": 9})
    yield Form("Cast", 13, [np.array([300.0, -1.0, 3.7], np.float32)], {"to": 3})
    yield Form("Cast", 13, [x4], {"to": 11})
    yield Form("Cast", 13, [np.arange(3)], {"to": 1})
    yield Form("Cast", 13, [np.array([1.5, -2.5], np.float32)], {"to": 8})
    yield Form("Expand", 8, [f(3, 1), i64(2, 1, 4)])
    yield Form("Tile", 7, [f(2, 3), i64(2, 2)])
    yield Form("EyeLike", 9, [f(3, 4)], {"k": 1})
    yield Form("EyeLike", 9, [f(3, 4)], {"k": -1, "dtype": 7})
    yield Form("Range", 11, [np.float32(1), np.float32(7), np.float32(1.3)])
    yield Form("NonZero", 9, [np.round(x4)])
    yield Form("Compress", 9, [x4, np.array([True, False, True])], {"axis": 1})
    yield Form("Compress", 9, [f(2, 3), np.array([True, False, True, True])])
    yield Form("Unique", 11, [np.round(f(9))], {"sorted": 1}, 4)
    yield Form("Unique", 11, [np.round(f(9))], {"sorted": 0}, 4)
    yield Form("Unique", 11, [np.round(f(4, 2))], {"axis": 0}, 4)
    yield Form("Trilu", 14, [f(4, 5), np.int64(1)], {"upper": 0})
    yield Form("Trilu", 14, [f(2, 4, 5)])
    yield Form("Det", 11, [f(2, 3, 3)])
    yield Form("Size", 13, [x4])
    yield Form("Shape", 13, [x4])
    yield Form("Shape", 15, [x4], {"start": -3, "end": -1})
    yield Form("Flatten", 9, [x4], {"axis": 2})
    yield Form("Flatten", 11, [x4], {"axis": -1})
    yield Form("Flatten", 9, [x4], {"axis": 0})
    yield Form("Reshape", 7, [x4, i64(0, -1, 5)])
    yield Form("Reshape", 14, [f(2, 0, 3), i64(3, 0, 2)], {"allowzero": 1})
    yield Form("Transpose", 7, [x4])
    yield Form("Concat", 7, [x4, x4], {"axis": 1})
    yield Form("Concat", 11, [x4, x4], {"axis": -1})
    for o in ("Max", "Min", "Sum", "Mean"):
        yield Form(o, 8, [x4, f(5), f(3, 1, 1)])
        yield Form(o, 8, [x4])
    yield Form("Max", 13, [np.arange(3), np.array([2, 0, 1])])
    for am, pm, al in itertools.product(("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection"), (0, 1)):
        g = np.random.default_rng(0).uniform(-1.3, 1.3, (2, 4, 3, 2)).astype(np.float32)
        yield Form("GridSample", 16, [x4, g], {"mode": am, "padding_mode": pm, "align_corners": al})
        m2 = {"bilinear": "linear", "bicubic": "cubic"}.get(am, am)
        yield Form("GridSample", 20, [x4, g], {"mode": m2, "padding_mode": pm, "align_corners": al})
    for mode in ("linear", "nearest"):
        yield Form(
            "GridSample",
            20,
            [x5, np.random.default_rng(0).uniform(-1.2, 1.2, (1, 2, 3, 4, 3)).astype(np.float32)],
            {"mode": mode},
        )
    yield Form("Col2Im", 18, [f(1, 12, 9), i64(4, 4), i64(2, 2)], {})
    yield Form("Col2Im", 18, [f(1, 12, 9), i64(5, 5), i64(2, 2)], {"strides": [2, 2], "pads": [0, 0, 1, 1]})
    yield Form("CenterCropPad", 18, [x4, i64(4, 8)], {"axes": [2, 3]})


def convolutions() -> Iterator[Form]:
    for op in (7, 11, 22):
        yield Form("Conv", op, [x4, w], {"auto_pad": "SAME_UPPER", "strides": [2, 2]})
        yield Form("Conv", op, [x4, w], {"auto_pad": "VALID"})
        yield Form("Conv", op, [x4, w, f(4)], {"pads": [1, 0, 2, 1], "dilations": [2, 1]})
        wt = f(3, 2, 3, 3)
        for at in (
            {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
            {"output_shape": [13, 12], "strides": [2, 2]},
            {"output_shape": [10, 9], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
            {"pads": [1, 0, 0, 1], "strides": [2, 3], "output_padding": [1, 2]},
            {"auto_pad": "VALID", "dilations": [2, 1], "strides": [2, 2]},
            {"output_shape": [13, 12], "output_padding": [1, 1], "strides": [2, 2]},
            {"auto_pad": "SAME_LOWER", "strides": [2, 2], "output_padding": [1, 1]},
        ):
            yield Form("ConvTranspose", op, [x4, wt, f(2)], at)
        yield Form("ConvTranspose", op, [f(1, 4, 5), f(4, 3, 3)], {"group": 2, "strides": [2]})
        yield Form("ConvTranspose", op, [f(1, 2, 3, 3, 3), f(2, 2, 2, 2, 2)], {"strides": [2, 1, 2]})
    yield Form(
        "MaxUnpool",
        9,
        [f(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]], np.int64)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    )
    yield Form(
        "MaxUnpool",
        11,
        [f(1, 2, 2, 2), np.arange(8).reshape(1, 2, 2, 2) * 3, i64(1, 2, 5, 5)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    )
    yield Form(
        "MaxUnpool",
        11,
        [f(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]], np.int64)],
        {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 0]},
    )


def microsoft() -> Iterator[Form]:
    ms = "com.microsoft"

    qx = integers(1, 0, 255, (2, 3, 6, 5), np.uint8)
    qy = integers(2, 0, 255, (2, 3, 6, 5), np.uint8)
    for o in ("QLinearAdd", "QLinearMul"):
        yield Form(
            o, 17, [qx, np.float32(0.02), z(120), qy, np.float32(0.03), z(100), np.float32(0.06), z(110)], None, 1, ms
        )
        yield Form(
            o,
            17,
            [
                qx.astype(np.int8),
                np.float32(0.02),
                z(12, np.int8),
                qy.astype(np.int8)[:1],
                np.float32(0.03),
                z(10, np.int8),
                np.float32(0.06),
                z(-11, np.int8),
            ],
            None,
            1,
            ms,
        )
    for cl in (0, 1):
        yield Form(
            "QLinearGlobalAveragePool",
            17,
            [qx, np.float32(0.02), z(120), np.float32(0.01), z(110)],
            {"channels_last": cl},
            1,
            ms,
        )
    yield Form(
        "QLinearAveragePool",
        17,
        [qx, np.float32(0.02), z(120), np.float32(0.01), z(110)],
        {"kernel_shape": [2, 3], "pads": [1, 0, 0, 1], "strides": [2, 1]},
        1,
        ms,
    )
    yield Form("QLinearSigmoid", 17, [qx, np.float32(0.02), z(120), np.float32(1 / 256), z(0)], None, 1, ms)
    yield Form("QLinearLeakyRelu", 17, [qx, np.float32(0.02), z(120), np.float32(0.02), z(100)], {"alpha": 0.1}, 1, ms)
    yield Form(
        "QLinearSoftmax",
        17,
        [qx, np.float32(0.02), z(120), np.float32(1 / 256), z(0)],
        {"axis": -1, "opset": 13},
        1,
        ms,
    )
    yield Form(
        "QLinearConcat",
        17,
        [np.float32(0.03), z(100), qx, np.float32(0.02), z(120), qy, np.float32(0.03), z(100)],
        {"axis": 1},
        1,
        ms,
    )
    yield Form(
        "QGemm",
        17,
        [
            qa,
            np.float32(0.02),
            z(100),
            qb,
            np.float32(0.03),
            z(90),
            np.arange(5, dtype=np.int32) * 10,
            np.float32(0.1),
            z(128),
        ],
        {"alpha": 1.0},
        1,
        ms,
    )
    yield Form(
        "QGemm",
        17,
        [
            qa,
            np.float32(0.02),
            z(100),
            qb.T.copy().astype(np.int8),
            np.array([0.03, 0.02, 0.01, 0.05, 0.04], np.float32),
            np.zeros(5, np.int8),
            None,
        ],
        {"transB": 1},
        1,
        ms,
    )
    for act, prm in (
        ("Relu", None),
        ("LeakyRelu", [0.1]),
        ("Clip", [-0.3, 0.4]),
        ("Tanh", None),
        ("Sigmoid", None),
        ("HardSigmoid", [0.3, 0.4]),
    ):
        yield Form(
            "FusedConv",
            17,
            [x4, w, f(4)],
            {"activation": act, "pads": [1, 0, 1, 0], **({"activation_params": prm} if prm else {})},
            1,
            ms,
        )
        yield Form(
            "FusedGemm",
            17,
            [f(3, 4), f(4, 5), f(5)],
            {
                "activation": act,
                **(
                    {"activation_alpha": prm[0], **({"activation_beta": prm[1]} if len(prm) > 1 else {})} if prm else {}
                ),
            },
            1,
            ms,
        )
    yield Form("FusedConv", 17, [x4, w, f(4), f(2, 4, 4, 4)], {"activation": "Relu"}, 1, ms)
    for ta, tb in itertools.product((0, 1), (0, 1)):
        yield Form(
            "FusedMatMul",
            17,
            [f(2, 3, 4) if not ta else f(2, 4, 3), f(2, 4, 5) if not tb else f(2, 5, 4)],
            {"transA": ta, "transB": tb, "alpha": 0.5},
            1,
            ms,
        )
    yield Form("FusedMatMul", 17, [f(3, 2, 4), f(2, 4, 5)], {"transBatchA": 1}, 1, ms)
    yield Form("Gelu", 17, [x4], None, 1, ms)
    yield Form("FastGelu", 17, [x4, f(5)], None, 1, ms)
    yield Form("FastGelu", 17, [x4], None, 1, ms)
    yield Form("BiasGelu", 17, [x4, f(5)], None, 1, ms)
    yield Form("QuickGelu", 17, [x4], {"alpha": 1.702}, 1, ms)
    yield Form("LayerNormalization", 16, [x4, f(5), f(5, seed=2)], {"axis": -1, "epsilon": 0.01})
    yield Form("SimplifiedLayerNormalization", 16, [x4, f(5)], {"axis": -1, "epsilon": 0.01})
    xs = f(2, 3, 5)
    yield Form(
        "SkipLayerNormalization",
        17,
        [xs, f(2, 3, 5, seed=1), f(5), f(5, seed=2), f(5, seed=3)],
        {"epsilon": 0.01},
        ["o0", "", "", "o3"],
        ms,
    )
    yield Form("SkipLayerNormalization", 17, [xs, f(2, 3, 5, seed=1), f(5)], None, 1, ms)
    yield Form("SkipSimplifiedLayerNormalization", 17, [xs, f(2, 3, 5, seed=1), f(5)], None, 1, ms)
    for qt in (np.int8, np.uint8, np.int16, np.uint16):
        yield Form("QuantizeLinear", 17, [x4, np.float32(0.03), z(5, qt)], None, 1, ms)
        yield Form("DequantizeLinear", 17, [qx.astype(qt), np.float32(0.03), z(5, qt)], None, 1, ms)
        yield Form("DequantizeLinear", 17, [qx.astype(qt), sv, np.array([1, 2, 3], qt)], {"axis": 1}, 1, ms)
    yield Form("DequantizeLinear", 17, [qx.astype(np.int32), np.float32(0.03)], None, 1, ms)
    yield Form("DynamicQuantizeMatMul", 17, [f(3, 4), qb, np.float32(0.03), z(100), f(5)], None, 1, ms)
    yield Form(
        "MatMulIntegerToFloat", 17, [qa, qb, np.float32(0.02), np.float32(0.03), z(100), z(90), f(5)], None, 1, ms
    )
    yield Form("NhwcMaxPool", 17, [qx], {"kernel_shape": [2, 2]}, 1, ms)
    yield Form("Inverse", 17, [f(2, 3, 3)], None, 1, ms)
    yield Form("BiasAdd", 17, [xs, f(5), xs], None, 1, ms)


FAMILIES = (
    quantization,
    integer_products,
    resizing,
    softmaxes,
    batch_norms,
    padding,
    one_hot,
    scattering,
    pooling,
    slices,
    dropouts,
    clips,
    shapes,
    recurrent,
    normalizations,
    suppression,
    others,
    convolutions,
    microsoft,
)
