"""Modules whose TorchScript has every kind of code that torch writes, for tests that none of it is refused."""

import enum
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Point(NamedTuple):
    x: Tensor
    scale: int


@torch.jit.script
class Sum:
    def __init__(self, start: int):
        self.start = start
        self.items: list[Tensor] = []

    def push(self, x: Tensor):
        self.items.append(x)

    def total(self) -> Tensor:
        return torch.stack(self.items).sum(0)

    def __len__(self) -> int:
        return len(self.items)


@torch.jit.interface
class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        pass


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


def repeated(x: Tensor, n: int = 2) -> Tensor:
    for i in range(n):
        x = x + i
    return x


class ControlFlow(nn.Module):
    def forward(self, x: Tensor, n: int, bias: Tensor | None = None) -> Tensor:
        if bias is not None:
            x = x + bias
        elif n > 3:
            x = x * 2
        else:
            x = x - 1
        i = 0
        while i < n and bool(x.sum() < 100):
            x = x + 1
            i += 1
            if i == 7:
                break
            if i % 2 == 0:
                continue
            x = repeated(x, i)
        while True:
            x = x + 1
            if bool(x.sum() > 10):
                break
        for j in range(x.size(0)):
            x[j] = x[j] + j
            if bool(x[j].sum() < 0):
                return x
        for _ in range(0, 10, 3):
            x = x.clone()
        return x


class Containers(nn.Module):
    def __init__(self):
        super().__init__()
        self.table: dict[str, list[int]] = {"a": [1, 2], "b\"x'\n\t\\é\x1b": [3]}
        self.mixed = ("q", 1, 2.5, None, True)
        self.number = 1 + 2j
        self.device, self.inf, self.nan = torch.device("cpu"), math.inf, math.nan

    def forward(self, xs: list[Tensor], named: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor], list[str]]:
        names: list[str] = []
        out = xs[0]
        for i, x in enumerate(xs):
            out = out + x * i
        for key, value in named.items():
            names.append(key.upper() + "_" + str(len(key)) + "\x01'\"#")
            out = out + value
        for a, b in zip(xs, xs):  # noqa: B905  (TorchScript knows no other zip)
            out = out + a - b
        names = [name + "!" for name in names]
        names.sort()
        del named["a"]
        texts = ["{} {}".format(1, "x"), "%d %s" % (1, "x"), f"{len(names)} rows"]  # noqa: UP031
        names.extend([texts[0][1:], texts[1].strip().replace("a", "b")])
        if "b" in named:
            out = out * max([1, 2]) + min(3, 4) + sum([1, 2]) + abs(-3) + int(2.5) + ord("a") + -(2**3)
        return out[..., :1, None] * self.inf, named, names


class Classes(nn.Module):
    def __init__(self):
        super().__init__()
        self.color = Color.RED

    def forward(self, x: Tensor) -> Tensor:
        total = Sum(3)
        for i in range(4):
            total.push(x * i)
        point = Point(x, 3)
        for color in Color:
            x = x + color.value + len(total)
        return total.total() + point.x * point.scale + x if self.color == Color.RED else x


class Named(nn.Module):
    """Its parts and methods have names that are keywords of Python, or those of operators with effects."""

    step: Step

    def __init__(self):
        super().__init__()
        parts = ("from", "async", "a-b", "save", "seed", "print")
        self.parts = nn.ModuleDict({name: nn.Linear(4, 4) for name in parts})
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)])
        self.step = Twice()
        self.register_buffer("set_", torch.ones(4))

    def save(self, x: Tensor) -> Tensor:
        return x * 2

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x)
        for block in self.blocks:
            x = block(x)
        return self.step.forward(self.save(x) + self.set_)


class Settings(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = y @ y
        return z.float() + y.detach()


class Forked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        later = torch.jit.fork(repeated, x, 3)
        return torch.jit.wait(later) + x


class Checked(nn.Module):
    def forward(self, x: Tensor | list[Tensor], n: int | None) -> Tensor:
        first = x if isinstance(x, Tensor) else x[0]
        assert n is not None, "n is needed"
        if n > 100:
            raise ValueError(f"bad {n}")
        anything: Any = first
        if torch.jit.isinstance(anything, Tensor):
            first = anything + n
        return first + torch.tensor([1.0, math.pi, math.inf, -1e-30]).sum()


class State(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.ones(3)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]):
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(x)
        state = torch.zeros(x.size(0), 5)
        for i in range(y.size(1)):
            state = self.cell(y[:, i], state)
        return state


class Functions(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        x = functional.pad(functional.interpolate(x, size=[8, 8], mode="nearest"), [1, 1, 1, 1], mode="reflect")
        grid = functional.affine_grid(torch.eye(2, 3).unsqueeze(0), [1, 3, 8, 8], align_corners=False)
        x = functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        x = functional.softmax(x) + functional.gelu(x) + functional.hardswish(functional.instance_norm(x))
        x = torch.einsum("bchw,bdhw->bcd", functional.avg_pool2d(x, 2), functional.max_pool2d(x, 2))
        return (
            functional.scaled_dot_product_attention(x, x, x)
            + torch.randn_like(x)
            + functional.dropout(x, 0.1, self.training)
        )


class Tensors(nn.Module):
    """Every kind of tensor that an archive can hold."""

    def __init__(self):
        super().__init__()
        ones = torch.ones(3, 2)
        kept = {
            "sparse": torch.eye(3).to_sparse(),
            "quantized": torch.quantize_per_tensor(ones, 0.1, 0, torch.quint8),
            "channels": torch.quantize_per_channel(ones, torch.ones(3), torch.zeros(3), 0, torch.qint8),
            "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
            "short": ones.to(torch.bfloat16),
            "tiny": ones.to(torch.float8_e4m3fn),
            "truth": ones.bool(),
            "empty": torch.empty(0),
            "scalar": torch.tensor(3),
            "view": torch.arange(12.0).view(3, 4).t()[1:],
        }
        for name, tensor in kept.items():
            self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        return torch.mm(self.sparse, x) + self.quantized.dequantize().sum() + self.view.sum()


class Net(nn.Module):
    """A small network that quantization knows."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = torch.ao.quantization.QuantStub(), torch.ao.quantization.DeQuantStub()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.head(torch.relu(self.norm(self.conv(self.enter(x)))).flatten(1)))


SCRIPTED = (
    ControlFlow, Containers, Classes, Named, Settings, Forked, Checked, State, Recurrent, Functions, Tensors,
)  # fmt: skip

IMAGE = torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)


def statically_quantized() -> torch.jit.ScriptModule:
    net = Net().eval()
    net.norm = nn.Identity()
    net.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")
    torch.ao.quantization.prepare(net, inplace=True)
    net(IMAGE)
    return torch.jit.script(torch.ao.quantization.convert(net))


def dynamically_quantized() -> torch.jit.ScriptModule:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    return torch.jit.script(torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8))


def traced_attention() -> torch.jit.ScriptModule:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    return torch.jit.trace(layer, torch.ones(1, 3, 8), check_trace=False)


MADE = {
    "traced": lambda: torch.jit.trace(Net().eval(), IMAGE),
    "frozen": lambda: torch.jit.freeze(torch.jit.script(Net().eval())),
    "frozen_flow": lambda: torch.jit.freeze(torch.jit.script(ControlFlow().eval())),
    "optimized": lambda: torch.jit.optimize_for_inference(torch.jit.script(Recurrent().eval())),
    "attention": lambda: torch.jit.script(nn.MultiheadAttention(8, 2)),
    "traced_attention": traced_attention,
    "quantized": statically_quantized,
    "quantized_frozen": lambda: torch.jit.freeze(statically_quantized()),
    "quantized_dynamically": dynamically_quantized,
    "weight_norm": lambda: torch.jit.trace(
        nn.utils.parametrizations.weight_norm(nn.Conv1d(3, 3, 3)), torch.ones(1, 3, 8), check_trace=False
    ),
}
"""Modules that are made in other ways than by scripting one of the classes."""
