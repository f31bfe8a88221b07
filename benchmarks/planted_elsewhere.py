"""Faults that no input shows, or that are in what a file is made by: in branches, functions, rules and claims."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import nn

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "verification")]

from onnx_models import model
from planting import planted
from subjects import make_subject

from spdexport import pipeline
from spdexport.rewrite import onnx_dead_layers, onnx_dead_rules
from spdexport.verification.check import Check
from spdexport.verification.torch_source import verify_subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from spdexport.verification.result import Verification


class Found(NamedTuple):
    """What was found on a fault.

    Attributes:
        model: The model's name.
        kind: The kind of fault.
        layer: Where it is.
        verification: What was found.
    """

    model: str
    kind: str
    layer: str
    verification: Verification


class Branching(nn.Module):
    """A branch that is taken where the mean is above 50."""

    def __init__(self) -> None:
        super().__init__()
        self.often, self.rare, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        y: torch.Tensor = torch.cond(x.mean() > 50, lambda x: self.rare(x) * 2, lambda x: self.often(x) + 1, (x,))
        return self.last(y)


class Positions(nn.Module):
    """A model whose trace holds for widths up to 40."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.positions = nn.Conv2d(3, 8, 3, padding=1), nn.Parameter(torch.randn(1, 8, 1, 40))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        y = self.conv(x)
        return y + self.positions[..., : y.shape[-1]]


def plant_elsewhere(folder: Path) -> Iterator[Found]:
    """Every such fault, each in a file of its own."""
    yield from _in_branches(folder)
    yield from _in_functions(folder)
    yield from _in_rules(folder)
    yield from _in_claims(folder)


def _changed(name: str, change: Callable[[Any], Any]) -> Callable[[onnx.ModelProto], None]:
    def edit(proto: onnx.ModelProto) -> None:
        graphs = [proto.graph, *(a.g for n in proto.graph.node for a in n.attribute)]
        tensor = next(t for graph in graphs for t in graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))

    return edit


def _rewired(proto: onnx.ModelProto) -> None:
    """The bodies take what the other one takes."""
    bodies = [a.g for n in proto.graph.node if n.op_type == "If" for a in n.attribute]
    convs = [next(n for n in body.node if n.op_type == "Conv") for body in bodies]
    first, second = list(convs[0].input), list(convs[1].input)
    convs[0].input[:], convs[1].input[:] = [first[0], *second[1:]], [second[0], *first[1:]]


def _in_branches(folder: Path) -> Iterator[Found]:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(Branching().eval(), (x,))
    (folder / "branching").mkdir()
    subject = make_subject(folder / "branching", program, {"inputs": (x,)})
    for kind, layer, edit in (
        ("a weight of a rare branch negated", "rare", _changed("rare.weight", np.negative)),
        ("a weight of a rare branch off by 1%", "rare", _changed("rare.weight", lambda w: w * np.float32(1.01))),
        ("branches that take each other's weights", "often", _rewired),
    ):
        file = planted(subject.file, edit, folder / "planted.onnx")  # type: ignore[arg-type]
        yield Found("branching", kind, layer, _verified(subject, file))


def _verified(subject: Any, file: Path) -> Verification:
    return verify_subject(replace(subject, file=file), Check())


def _clipped(high: float) -> onnx.ModelProto:
    held = [("low", -1e4), ("high", high)]
    inner = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(np.float32(v), n)) for n, v in held]
    clip = helper.make_node("Clip", ["a", "low", "high"], ["b"])
    imports = [helper.make_opsetid("", 18)]
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["c"]),
        helper.make_node("bounded", ["c"], ["y"], name="bounded", domain="local"),
    ]
    weights = {"conv.weight": np.random.default_rng(0).standard_normal((6, 3, 3, 3)).astype(np.float32)}
    ends = {"x": ["N", 3, 8, 8]}, {"y": ["N", 6, 6, 6]}
    made = model(nodes, inputs=ends[0], outputs=ends[1], weights=weights, domains=("local",))
    made.functions.append(helper.make_function("local", "bounded", ["a"], ["b"], [*inner, clip], imports))
    return made


def _in_functions(folder: Path) -> Iterator[Found]:
    for name, high in (("right", 1e4), ("wrong", 2e4)):
        onnx.save(_clipped(high), folder / f"{name}.onnx")
        pipeline.convert(folder / f"{name}.onnx", folder / f"{name}-made.onnx", verify=False)
    for kind, against in (
        ("a bound in a local function", "right.onnx"),
        ("a bound, between two files that were both made here", "right-made.onnx"),
    ):
        found = pipeline.verify(folder / "wrong-made.onnx", against=folder / against)
        yield Found("clipped", kind, "Constant", found)


@contextmanager
def _planted_rule(module: Any, name: str, rule: Any) -> Iterator[None]:
    right = getattr(module, name)
    setattr(module, name, rule)
    try:
        yield
    finally:
        setattr(module, name, right)


def _dead(middle: onnx.NodeProto, pads: int) -> onnx.ModelProto:
    """A layer with a constant channel, something behind it, and a layer that reads it."""
    weight = np.arange(1.0, 9.0, dtype=np.float32).reshape(4, 2, 1, 1)
    weight[1] = 0
    weights = {
        "first.weight": weight,
        "first.bias": np.array([1, 2, 3, 4], np.float32),
        "last.weight": np.arange(1.0, 73.0, dtype=np.float32).reshape(2, 4, 3, 3),
        "last.bias": np.ones(2, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "first.weight", "first.bias"], ["h"]),
        middle,
        helper.make_node("Conv", ["p", "last.weight", "last.bias"], ["y"], name="last", pads=[pads] * 4),
    ]
    return model(nodes, inputs={"x": ["N", 2, 6, 6]}, outputs={"y": ["N", 2, None, None]}, weights=weights)


def _in_rules(folder: Path) -> Iterator[Found]:
    """The removal of dead channels goes by a wrong rule, the file is what it makes."""
    pool = helper.make_node("AveragePool", ["h"], ["p"], kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)
    pool.name = "pool"
    for kind, layer, module, middle, pads in (
        ("the removal takes a padded mean for constant", "last", onnx_dead_rules, pool, 0),
        ("the removal folds a constant under padding", "last", onnx_dead_layers, _relu(), 1),
    ):
        onnx.save(_dead(middle, pads), folder / "dead.onnx")
        with _planted_rule(module, "is_padded", lambda _: False):
            # What is verified is what is removed again, by the same wrong rule.
            found = pipeline.convert(folder / "dead.onnx", folder / "dead-made.onnx", form="auto")
        assert found.verification is not None
        yield Found("dead channels", kind, layer, found.verification)


def _relu() -> onnx.NodeProto:
    return helper.make_node("Relu", ["h"], ["p"])


def _in_claims(folder: Path) -> Iterator[Found]:
    def edit(proto: onnx.ModelProto) -> None:
        next(p for p in proto.metadata_props if p.key == "spdexport.ranges").value = '{"x": {"3": [2, 400]}}'

    torch.manual_seed(0)
    module, x = Positions().eval(), torch.randn(2, 3, 8, 16)
    pipeline.convert(module, folder / "positions.onnx", inputs=(x,), dynamic=("x:3=width",), verify=False)
    file = planted(folder / "positions.onnx", edit, folder / "planted.onnx")
    found = pipeline.verify(file, against=module, inputs=(x,))
    yield Found("positions", "a file that claims more sizes than the trace holds for", "x", found)
