"""The torch side of the rewrite: list the convolutions of an ExportedProgram, and put forms in their places."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from spdexport.arrays import to_numpy
from spdexport.conv import ConvSite, ConvSpec, Skipped, canonical_weight
from spdexport.names import call_in
from spdexport.rewrite.constants import Constants

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch.export import ExportedProgram

aten = torch.ops.aten

CONVOLUTIONS: Mapping[Any, int] = {
    aten.conv1d.default: 1,
    aten.conv1d.padding: 1,
    aten.conv2d.default: 2,
    aten.conv2d.padding: 2,
    aten.conv3d.default: 3,
    aten.conv3d.padding: 3,
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.conv_transpose3d.input: 3,
}
"""Convolution operators and their number of spatial axes."""

TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
"""Transposed convolutions; ``convolution`` has an argument that says so."""

PRODUCTS = (aten.addmm.default, aten.mm.default)
"""Matrix products, which are linear layers where the second matrix is constant. They hold the weight transposed: a
lowered program has them for ``linear``, and Hugging Face's ``Conv1D`` is written so."""

LOOKUP = aten.embedding.default
"""An embedding: left alone unless there are components for it."""

PADDINGS = (
    aten.pad.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
)


def list_sites(
    program: ExportedProgram, *, looks_up: Callable[[str], bool] = lambda _: False
) -> tuple[tuple[ConvSite, ...], tuple[Skipped, ...]]:
    """Return all convolutions and linear layers whose weight is constant, and the layers that are left alone.

    Weights are views of the program's own storage; nothing is copied unless a weight is computed from parameters.

    Args:
        program: The program.
        looks_up: Whether an embedding of that name is to be a layer; others are left alone.
    """
    constants = Constants(program)
    namer = _Namer(constants)
    sites: list[ConvSite] = []
    skipped: list[Skipped] = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        found = _lookup(node, constants, namer, looks_up) if node.target is LOOKUP else _site(node, constants, namer)
        if isinstance(found, ConvSite):
            sites.append(found)
        elif found is not None:
            skipped.append(found)
    named = {node: name for node in program.graph.nodes if (name := constants.target(node)) is not None}
    return tuple(sites), (*skipped, *_in_bodies(program.graph_module, program.graph, named))


def _in_bodies(
    module: torch.fx.GraphModule, graph: torch.fx.Graph, named: Mapping[torch.fx.Node, str], place: str = ""
) -> Iterator[Skipped]:
    """The layers of the graphs that ``torch.cond`` and the like run, which are left alone.

    Args:
        module: What holds the graphs inside of this one.
        graph: The graph.
        named: Its values that are parameters, with their names.
        place: The path of the graph.
    """
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        given = [a for a in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(a, torch.fx.Node)]
        held = [(a.target, getattr(module, str(a.target), None)) for a in given if a.op == "get_attr"]
        for name, body in held:
            if not isinstance(body, torch.fx.GraphModule):
                continue
            taken = [n for n in body.graph.nodes if n.op == "placeholder"]
            # Whatever else an operator is given, what its graphs take comes last.
            sources = zip(taken, given[len(given) - len(taken) :], strict=False)
            inner = {mine: named[source] for mine, source in sources if source in named}
            where = f"{place}/{name}" if place else str(name)
            reason = f"torch's {node.target.name()} runs it; with the ONNX file as the source it is decomposed"
            for n in body.graph.nodes:
                if (axes := spatial_axes(n)) is not None and n.target not in PRODUCTS:
                    layer = inner.get(operands(n).weight, n.name).removesuffix(".weight")
                    yield Skipped(name=call_in(layer, where), kind=_kind(n, axes), reason=reason)
            yield from _in_bodies(body, body.graph, inner, where)


def arguments(node: torch.fx.Node) -> dict[str, Any]:
    """Return the arguments of a call by the names of the operator's schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    values: dict[str, Any] = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    values |= dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    return values | dict(node.kwargs)


class Operands(NamedTuple):
    """What a layer's node works on."""

    data: Any
    weight: Any
    bias: Any


def operands(node: torch.fx.Node) -> Operands:
    """Input, weight and bias of a layer; the weight of a matrix product and of an embedding is transposed."""
    args = arguments(node)
    if node.target is aten.addmm.default:
        return Operands(args["mat1"], args["mat2"], args["self"])
    if node.target is aten.mm.default:
        return Operands(args["self"], args["mat2"], None)
    if node.target is LOOKUP:
        return Operands(args["indices"], args["weight"], None)
    return Operands(args["input"], args["weight"], args["bias"])


def spatial_axes(node: torch.fx.Node) -> int | None:
    """Return the spatial axes of a convolution, 0 for linear layers and matrix products; None for other operators."""
    if node.target is aten.linear.default or node.target in PRODUCTS:
        return 0
    if node.target is aten.convolution.default:
        return len(arguments(node)["stride"])
    return CONVOLUTIONS.get(node.target)


def is_geometry_computed(node: torch.fx.Node) -> bool:
    """Return whether a stride, padding or other number of a convolution is computed in the graph."""
    given = operands(node)
    return any(source not in given for source in node.all_input_nodes)


def is_transposed(node: torch.fx.Node) -> bool:
    """Return whether a convolution is a transposed one."""
    return node.target in TRANSPOSED or (
        node.target is aten.convolution.default and bool(arguments(node)["transposed"])
    )


def _lookup(
    node: torch.fx.Node, constants: Constants, namer: _Namer, looks_up: Callable[[str], bool]
) -> ConvSite | Skipped:
    """An embedding, as a layer where there are components for it."""
    given = operands(node)
    name = namer(node, given.weight)

    def skipped(reason: str) -> Skipped:
        return Skipped(name=name, kind="embedding", reason=reason)

    if not looks_up(name):
        return skipped("an embedding is a table, not a convolution")
    if not constants.is_constant(given.weight):
        return skipped("its weight depends on the input, or the model changes it")
    if constants.is_constant(given.data):
        return skipped("its input is constant, so that the file holds its output")
    weight = constants.value(given.weight)
    if not weight.is_floating_point() or weight.ndim != 2:
        return skipped(f"its weight is {weight.dtype} with {weight.ndim} axes")
    array = to_numpy(weight).T
    return ConvSite(
        name=name,
        spec=ConvSpec.pointwise(array.shape[1], array.shape[0], axes=0),
        weight=array,
        bias=None,
        node=node.name,
        positions=math.prod(inner_sizes(node, 0)),
        input_size=None,
        is_lookup=True,
    )


def _site(node: torch.fx.Node, constants: Constants, namer: _Namer) -> ConvSite | Skipped | None:
    if node.target in PRODUCTS and not constants.is_constant(operands(node).weight):
        # A product of two activations is no layer.
        return None
    axes = spatial_axes(node)
    if axes is None:
        return None

    args, given = arguments(node), operands(node)
    name = namer(node, given.weight)
    transposed = is_transposed(node)
    kind = _kind(node, axes)
    if not constants.is_constant(given.weight):
        return Skipped(name=name, kind=kind, reason="its weight depends on the input, or the model changes it")
    if given.bias is not None and not constants.is_constant(given.bias):
        return Skipped(name=name, kind=kind, reason="its bias depends on the input, or the model changes it")
    if constants.is_constant(given.data):
        # The exporter evaluates it, and what V and U round differently would be a changed weight of the file.
        return Skipped(name=name, kind=kind, reason="its input is constant, so that the file holds its output")
    if args.get("alpha", 1) != 1 or args.get("beta", 1) != 1:
        return Skipped(name=name, kind=kind, reason="its product or its bias is scaled")
    weight = constants.value(given.weight)
    bias = None if given.bias is None else constants.value(given.bias)
    if node.target in PRODUCTS:
        weight = weight.T
        if bias is not None and tuple(bias.shape) != (weight.shape[0],):
            return Skipped(name=name, kind=kind, reason="its bias is no vector of its output")
    if not weight.is_floating_point():
        return Skipped(name=name, kind=kind, reason=f"its weight is {weight.dtype}, which has no float components")
    if is_geometry_computed(node):
        return Skipped(name=name, kind=kind, reason="its geometry depends on the input")
    if axes == 0 and weight.ndim != 2:
        return Skipped(name=name, kind=kind, reason="its weight is a vector")
    if axes and given.data.meta["val"].ndim != axes + 2:
        # ONNX knows no such convolution: each stage would get its own change of shape, between V and U too.
        return Skipped(name=name, kind=kind, reason="its input has no batch axis")
    array = to_numpy(weight)
    if transposed:
        array = canonical_weight(array, args["groups"])
    return ConvSite(
        name=name,
        spec=conv_spec(axes, array.shape, args, transposed=transposed),
        weight=array,
        bias=None if bias is None else to_numpy(bias),
        node=node.name,
        positions=math.prod(inner_sizes(node, axes)),
        input_positions=math.prod(inner_sizes(given.data, axes)) if transposed else None,
        input_size=inner_sizes(given.data, axes),
        padding_mode=_padding_mode(given.data, node),
        is_product=node.target in PRODUCTS,
    )


def _kind(node: torch.fx.Node, axes: int) -> str:
    """What a layer is called."""
    return f"{'conv_transpose' if is_transposed(node) else 'conv'}{axes}d" if axes else "linear"


def conv_spec(axes: int, shape: tuple[int, ...], args: Mapping[str, Any], *, transposed: bool = False) -> ConvSpec:
    """Return the geometry of a layer from its spatial axes, its weight's canonical shape, and its arguments by name."""
    if axes == 0:
        return ConvSpec.pointwise(shape[1], shape[0], axes=0)
    stride, dilation = (_per_axis(args[key], axes) for key in ("stride", "dilation"))
    kernel = shape[2:]
    padding: tuple[tuple[int, int], ...]
    match args["padding"]:
        case "valid":
            padding = ((0, 0),) * axes
        case "same":
            # PyTorch puts the odd one of an unequal padding behind.
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            padding = tuple((t // 2, t - t // 2) for t in total)
        case numbers:
            padding = tuple((p, p) for p in _per_axis(numbers, axes))
    return ConvSpec(
        in_channels=shape[1] * args["groups"],
        out_channels=shape[0],
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=args["groups"],
        transposed=transposed,
        output_padding=_per_axis(args["output_padding"], axes) if transposed else (),
    )


def _per_axis(value: int | list[int], axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def inner_sizes(node: torch.fx.Node, axes: int) -> tuple[int, ...]:
    """Return the sizes of a value's axes that are neither batch nor channels.

    Symbolic ones count with their traced value.
    """
    shape = node.meta["val"].shape
    sizes = shape[len(shape) - axes :] if axes else shape[1:-1]
    return tuple(size if isinstance(size, int) else int(size.node.hint or 1) for size in sizes)


def _padding_mode(source: Any, node: torch.fx.Node) -> str:
    """The mode of a padding in front of a convolution, where both were written by the same module."""
    if not (isinstance(source, torch.fx.Node) and source.target in PADDINGS):
        return "zeros"
    if module_path(source) != module_path(node):
        return "zeros"
    if source.target is aten.pad.default:
        mode = arguments(source)["mode"]
        return "zeros" if mode == "constant" else str(mode)
    return "reflect"


def module_path(node: torch.fx.Node) -> str:
    """Return the path of the innermost module that made a node; empty for the model itself."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, _ = next(reversed(stack.values()))
    # A second call of one module is marked as `conv@1`.
    return str(path).split("@")[0]


def _module_class(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    _, cls = next(reversed(stack.values()))
    return cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"


class _Namer:
    """Names layers: the module's path, else the weight's name, else the node's; further uses get ``#2``, ``#3``."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._seen: dict[str, int] = {}

    def __call__(self, node: torch.fx.Node, weight: torch.fx.Node) -> str:
        name = self._base(node, weight)
        count = self._seen[name] = self._seen.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    def _base(self, node: torch.fx.Node, weight: torch.fx.Node) -> str:
        path = module_path(node)
        target = self._constants.target(weight)
        if target is None:
            # The weight is computed, as by a parametrization: the module that runs the layer names it.
            return path or node.name
        if path and _module_class(node).startswith(
            ("torch.nn.modules.conv.", "torch.nn.modules.linear.", "torch.nn.modules.sparse.")
        ):
            # A weight tied to another layer's has that layer's name; the module's own path is the better one.
            return path
        return target.removesuffix(".weight") or target
