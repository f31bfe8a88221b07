"""Random chains and sums that are one convolution, as torch modules and as ONNX graphs, and what reads a kernel off.

``kernel_of`` knows no formula of folding: it feeds unit impulses through a function and looks at what comes out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spdexport.conv import ConvSpec

KINDS = ("branches", "scales", "nothing")
"""Branches with norms and poolings; the same and LoRA with scales; chains with paddings and what does nothing."""


class Sum(nn.Module):
    """Branches on one input, added one after another with factors of 1 or -1, or all in one go."""

    def __init__(self, branches: Sequence[nn.Module], factors: Sequence[float]) -> None:
        super().__init__()
        self.branches, self.factors = nn.ModuleList(branches), tuple(factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *rest = self.branches
        y = first(x)
        for branch, factor in zip(rest, self.factors[1:], strict=True):
            y = y + branch(x) if factor == 1 else y - branch(x)
        return y


class Tree(nn.Module):
    """Terms of one input, added two by two in some order: a step adds the second of two to the first, or subtracts it.

    Attributes:
        foreign: How many convolutions are in terms that begin with something that is no map.
    """

    def __init__(self, terms: Sequence[nn.Module], steps: Sequence[tuple[int, int, float]], foreign: int) -> None:
        super().__init__()
        self.terms, self.steps, self.foreign = nn.ModuleList(terms), tuple(steps), foreign

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [term(x) for term in self.terms]
        for left, right, factor in self.steps:
            values[left] = values[left] + values[right] if factor == 1 else values[left] - values[right]
        return values[0]


class Scale(nn.Module):
    """Arithmetic with a number or with one for each channel, on either side."""

    def __init__(self, op: str, number: torch.Tensor) -> None:
        super().__init__()
        self.op = op
        self.register_buffer("number", number)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match self.op:
            case "Mul":
                return x * self.number
            case "Div":
                return x / self.number
            case "Add":
                return self.number + x
            case "Sub":
                return x - self.number
            case "from":
                return self.number - x
            case _:
                return -x


class Draw:
    """Draws maps of ``channels`` channels that keep the size but for a stride of their own."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.channels = int(self.rng.choice((2, 4)))
        self.stride = int(self.rng.choice((1, 1, 2)))

    def one(self, *choices: Any) -> Any:
        return choices[self.rng.integers(len(choices))]

    def conv(self, kernel: Sequence[int] = (1, 1), *, stride: int = 1, pad: bool = False, bias: bool | None = None,
             channels: tuple[int, int] | None = None, groups: int | None = None) -> nn.Conv2d:  # fmt: skip
        in_, out = channels or (self.channels, self.channels)
        groups = self.one(1, 1, 2) if groups is None and channels is None else groups or 1
        dilation = [self.one(1, 2) if size > 1 and pad else 1 for size in kernel]
        padding = [d * (size - 1) // 2 if pad else 0 for d, size in zip(dilation, kernel, strict=True)]
        bias = bool(self.one(True, False)) if bias is None else bias
        return nn.Conv2d(
            in_, out, tuple(kernel), stride, tuple(padding), tuple(dilation), groups=groups, bias=bias,
        )  # fmt: skip

    def kernel(self) -> tuple[int, int]:
        return self.one((3, 3), (3, 3), (1, 3), (3, 1), (5, 3), (1, 1))

    def norm(self) -> nn.Module:
        return nn.BatchNorm2d(self.channels)

    def number(self, *, shift: bool = True) -> nn.Module:
        op = self.one("Mul", "Mul", "Div", "Neg", *(("Add", "Sub", "from") if shift else ()))
        numbers = self.rng.uniform(0.5, 1.5, self.one((), (1,), (self.channels, 1, 1), (1, self.channels, 1, 1)))
        return Scale(op, torch.tensor(numbers))

    def leaf(self) -> list[nn.Module]:
        """A branch of one layer, of none, of a pooling, or low-rank."""
        s, c, kernel = self.stride, self.channels, self.kernel()
        k = self.one(2, 3)
        before, after = (k - 1) // 2, k - 1 - (k - 1) // 2
        even = nn.ConstantPad2d((before, after, before, after), 0.0)
        plain = self.conv(kernel, stride=s, pad=True)
        lone: list[nn.Module] = [] if s == 1 else self.one([self.conv((1, 1), stride=s)], [nn.MaxPool2d(1, s)])
        rank = int(self.one(1, 2))
        return self.one(
            [plain],
            [plain],
            lone,
            [*lone, self.norm()],
            [self.conv(bias=False), self.conv(kernel, stride=s, pad=True)],
            [even, self.conv(), self.norm(), nn.AvgPool2d(k, s)],
            [even, self.conv(), self.norm(), self.conv((k, k), stride=s)],
            [nn.AvgPool2d(3, s, 1)],
            [self.conv(kernel, stride=s, pad=True, channels=(c, rank)), self.conv(channels=(rank, c))],
        )

    def lora(self) -> list[nn.Module]:
        """Down, perhaps a convolution in the middle, and up."""
        rank, kernel = int(self.one(1, 2)), self.kernel()
        down = self.conv(kernel, stride=self.stride, pad=True, bias=False, channels=(self.channels, rank))
        middle = self.one([], [self.conv(channels=(rank, rank), bias=False)], [Scale("Mul", torch.tensor(0.25))])
        return [*self.idle(), down, *middle, self.conv(channels=(rank, self.channels), bias=False)]

    def idle(self) -> list[nn.Module]:
        return self.one([], [nn.Identity()], [nn.Dropout(0.5)], [nn.Dropout(0.1), nn.Identity()])

    def branches(self, depth: int = 1) -> nn.Module:
        """A sum of branches, nested, with norms behind each and behind the sum."""
        parts = []
        for _ in range(int(self.rng.integers(2, 4))):
            inner = [self.branches(depth - 1)] if depth and self.rng.random() < 0.2 else self.leaf()
            parts.append(nn.Sequential(*inner, *(self.one([], [self.norm()]) if inner else [])))
        plain = self.conv(self.kernel(), stride=self.stride, pad=True)
        parts[int(self.rng.integers(len(parts)))] = nn.Sequential(plain)
        return nn.Sequential(Sum(parts, [1.0] * len(parts)), *self.one([], [self.norm()]))

    def scales(self) -> nn.Module:
        """Sums whose branches are scaled before, between and behind, and subtracted."""
        parts = []
        for _ in range(int(self.rng.integers(2, 4))):
            layers = self.one(self.leaf, self.lora)()
            before = self.one([], [], [self.number(shift=False)])
            parts.append(nn.Sequential(*before, *layers, *self.one([], [self.number()])))
        parts[0] = nn.Sequential(self.conv(self.kernel(), stride=self.stride, pad=True))
        total = Sum(parts, [1.0, *(self.one(1.0, -1.0) for _ in parts[1:])])
        return nn.Sequential(*self.one([], [self.number(shift=False)]), total, *self.one([], [self.number()]))

    def nothing(self) -> nn.Module:
        """Chains with paddings of their own and operators that do nothing."""
        (h, w), s = self.one((3, 3), (3, 2), (5, 1)), self.stride
        pads = (w // 2, (w - 1) // 2, h // 2, (h - 1) // 2)
        one = nn.ConstantPad2d(pads, 0.0)
        rows, columns = nn.ConstantPad2d((0, 0, *pads[2:]), 0.0), nn.ConstantPad2d((*pads[:2], 0, 0), 0.0)
        up, down = self.conv((h, 1), stride=s, bias=False), self.conv((1, w))
        layers = self.one([one, up, down], [rows, up, columns, down], [rows, self.conv(bias=False), up, columns, down])
        return nn.Sequential(*(part for layer in layers for part in (*self.idle(), layer)))

    def mixed(self) -> nn.Module:
        """Maps of the input among terms that are none, added up in any order; some of these broadcast."""
        c, s = self.channels, self.stride
        own: list[list[nn.Module]] = [[self.conv(self.kernel(), stride=s, pad=True)]]
        own += [self.one(self.leaf, self.lora)() for _ in range(int(self.rng.integers(1, 3)))]
        others: list[list[nn.Module]] = [
            self.one([nn.ReLU(), self.conv((3, 3), stride=s, pad=True)], [nn.AdaptiveAvgPool2d(1), self.conv()])
            for _ in range(int(self.rng.integers(1, 4)))
        ]
        terms = [nn.Sequential(*layers) for layers in (*own, *others)]
        order = [int(i) for i in self.rng.permutation(len(terms))]
        # What comes first is added into, so that it must have the size of the sum.
        order.sort(key=lambda i: any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in terms[i]))
        steps, left = [], list(range(len(terms)))
        while len(left) > 1:
            right = int(self.rng.integers(1, len(left)))
            into = int(self.rng.integers(right))
            steps.append((left[into], left.pop(right), self.one(1.0, 1.0, -1.0)))
        tree = Tree([terms[i] for i in order], steps, foreign=len(others))
        return nn.Sequential(tree, *self.one([], [nn.ReLU(), Scale("Mul", torch.rand(c, 1, 1) + 0.5)]))

    def wild(self) -> nn.Module:
        """Any order of anything: most are not one convolution, and none may change."""
        parts = [self.branches, self.norm, self.number, lambda: self.conv(self.kernel(), pad=True),
                 lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=self.one(True, False)),
                 lambda: nn.ConstantPad2d(1, self.one(0.0, 0.5)), self.conv, lambda: nn.ReLU()]  # fmt: skip
        return nn.Sequential(*(self.one(*parts)() for _ in range(int(self.rng.integers(2, 6)))))

    def module(self, kind: str) -> nn.Module:
        """A module of a kind, in float64 and in inference, with numbers of its own in every norm."""
        made: nn.Module = getattr(self, kind)()
        generator = torch.Generator().manual_seed(int(self.rng.integers(2**31)))
        for layer in made.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for values in (layer.running_mean, layer.running_var, layer.weight.data, layer.bias.data):
                    values.uniform_(0.5, 1.5, generator=generator)
            elif isinstance(layer, nn.Conv2d):
                for parameter in layer.parameters():
                    parameter.data.uniform_(-1, 1, generator=generator)
        return made.double().eval()

    def input(self) -> torch.Tensor:
        size = int(self.rng.integers(6, 10))
        return torch.tensor(self.rng.standard_normal((2, self.channels, size, size + 1)))


def onnx_model(module: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    """The ONNX graph of such a module, written by hand, in the dtype of its numbers."""
    nodes: list[onnx.NodeProto] = []
    arrays: dict[str, np.ndarray] = {}
    dtype = x.numpy().dtype

    def emit(op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [name], name=f"node{len(nodes)}", **attributes))
        return name

    def store(value: Any, name: str = "") -> str:
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        key = f"{name or 'c'}{len(arrays)}"
        arrays[key] = array.astype(dtype) if array.dtype.kind == "f" else array
        return key

    def walk(layer: nn.Module, value: str) -> str:
        match layer:
            case nn.Sequential():
                for part in layer:
                    value = walk(part, value)
                return value
            case Sum():
                total, *rest = [walk(branch, value) for branch in layer.branches]
                if len(rest) > 1 and set(layer.factors) == {1.0} and len(rest) % 2 == 0:
                    return emit("Sum", [total, *rest])
                for term, factor in zip(rest, layer.factors[1:], strict=True):
                    total = emit("Add" if factor == 1 else "Sub", [total, term])
                return total
            case Tree():
                values = [walk(term, value) for term in layer.terms]
                for left, right, factor in layer.steps:
                    values[left] = emit("Add" if factor == 1 else "Sub", [values[left], values[right]])
                return values[0]
            case nn.AdaptiveAvgPool2d():
                return emit("GlobalAveragePool", [value])
            case nn.Conv2d():
                inputs = [value, store(layer.weight, "w")]
                inputs += [] if layer.bias is None else [store(layer.bias, "b")]
                return emit("Conv", inputs, strides=layer.stride, pads=[*layer.padding] * 2, dilations=layer.dilation,
                            group=layer.groups)  # fmt: skip
            case nn.BatchNorm2d():
                given = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
                return emit("BatchNormalization", [value, *map(store, given)], epsilon=layer.eps)
            case Scale(op="Neg"):
                return emit("Neg", [value])
            case Scale(op="from"):
                return emit("Sub", [store(layer.number), value])
            case Scale():
                return emit(layer.op, [value, store(layer.number)])
            case nn.ConstantPad2d():
                left, right, top, bottom = layer.padding
                pads = np.array([0, 0, top, left, 0, 0, bottom, right])
                return emit("Pad", [value, store(pads), store(layer.value)])
            case nn.AvgPool2d():
                kernel, stride, pad = layer.kernel_size, layer.stride, layer.padding
                return emit("AveragePool", [value], kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4,
                            count_include_pad=int(layer.count_include_pad))  # fmt: skip
            case nn.MaxPool2d():
                return emit("MaxPool", [value], kernel_shape=[1, 1], strides=[layer.stride] * 2)
            case nn.Dropout():
                return emit("Dropout", [value])
            case nn.ReLU():
                return emit("Relu", [value])
            case _:
                return emit("Identity", [value])

    end = walk(module, "x")
    nodes.append(helper.make_node("Identity", [end], ["y"]))
    kind = helper.np_dtype_to_tensor_dtype(dtype)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", kind, ("batch", *x.shape[1:]))],
        [helper.make_tensor_value_info("y", kind, [None] * 4)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )  # fmt: skip
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    )


def kernel_of(
    function: Callable[[np.ndarray], np.ndarray], spec: ConvSpec, size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The kernel and the bias of a function of ``size``, read off its answers to impulses.

    Raises:
        AssertionError: The function is no convolution of that geometry on this size, at the borders neither.
    """
    channels, count = spec.in_channels, spec.in_channels * int(np.prod(size))
    impulses = np.eye(count).reshape(count, channels, *size)
    bias = function(np.zeros((1, channels, *size)))[0]
    answers = (function(impulses) - bias).reshape(channels, *size, *bias.shape)
    assert np.abs(bias - bias[:, :1, :1]).max() <= 1e-11 * (1 + np.abs(bias).max()), "the bias is alike everywhere"
    kernel = np.full((bias.shape[0], channels, *spec.kernel), np.nan)
    seen = np.zeros(answers.shape, dtype=bool)
    for out in np.ndindex(*bias.shape[1:]):
        for tap in np.ndindex(*spec.kernel):
            place = tuple(
                s * q + d * k - pad[0]
                for s, q, d, k, pad in zip(spec.stride, out, spec.dilation, tap, spec.padding, strict=True)
            )
            if all(0 <= p < n for p, n in zip(place, size, strict=True)):
                found = answers[(slice(None), *place, slice(None), *out)].T
                seen[(slice(None), *place, slice(None), *out)] = True
                known = kernel[(..., *tap)]
                assert np.isnan(known).all() or np.abs(known - found).max() <= 1e-10 * (1 + np.abs(found).max())
                kernel[(..., *tap)] = found
    assert np.abs(answers[~seen]).max(initial=0) <= 1e-11 * (1 + np.abs(answers).max()), "something is out of reach"
    return kernel, bias[(slice(None), *(0,) * spec.axes)]
