"""The ONNX side of the rewrite, first half: list the layers of a model that came as a file.

`onnx_rewrite` puts forms in their places. A layer is found again by its node's key, which a copy of the model shares.
"""

from __future__ import annotations

import math
from itertools import chain, count
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.conv import ConvSite, Skipped
from spdexport.names import call_in, layer_of_parameter
from spdexport.rewrite.onnx_constants import constant, dtype_of, source_of
from spdexport.rewrite.onnx_graph import CONVOLUTIONS, is_operator, read_layer
from spdexport.rewrite.onnx_names import layer_name, node_name
from spdexport.rewrite.onnx_scopes import given_to, keyed_nodes, takes_apart
from spdexport.rewrite.stages import ReadStage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spdexport.rewrite.onnx_graph import OnnxStage
    from spdexport.rewrite.onnx_scopes import Scope

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that are layers where their weight is constant."""

FACTORS = ("V", "U", "mask", "delta")
"""Last parts of names that belong to factors: what they stand behind is several layers here, each with its own name."""

QUANTIZED = ("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul")
"""Operators on integers."""

OTHER_LAYERS = ("FusedConv", "FusedGemm", "FusedMatMul", "NhwcConv", "NhwcFusedConv", "DeformConv", "MatMulNBits")
"""Operators with a weight that have no form, of ONNX Runtime's own domains or the standard."""

FLOATS = ("float16", "bfloat16", "float32", "float64")

PADDINGS = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
"""Modes of a Pad other than constants, and what torch calls them."""


def list_onnx_sites(
    model: ir.Model, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[tuple[ConvSite, ...], tuple[Skipped, ...]]:
    """Return all Conv, ConvTranspose, Gemm and MatMul with a constant weight, and what is left alone.

    Those in the bodies of If, Loop and Scan are among them, where their weight is a constant of the body or of a graph
    around it.

    Args:
        model: The model; it is not changed. Weights are read from their file here, and are views where that can be had.
        shapes: Sizes of values by name, as far as they are known, for counting output locations.
    """
    namer = _Namer()
    sites: list[ConvSite] = []
    skipped: list[Skipped] = []
    around: dict[ir.Graph, Scope] = {}
    for key, scope, node in keyed_nodes(model.graph):
        around[scope.graph] = scope
        # In a body, the layer's name tells its place.
        own = node_name(node) if scope.place else key
        read = read_layer(node)
        found: ConvSite | Skipped | None
        if isinstance(read, ReadStage):
            found = _site(read, namer(read, own, scope.place), key, scope.place, shapes or {})
        else:
            reason = _carried(node, around) or (_unfit(node) if read is None else read.reason)
            name = call_in(_name_of(node, own), scope.place)
            found = None if reason is None else Skipped(name=name, kind=_kind(node), reason=reason)
        if isinstance(found, ConvSite):
            sites.append(found)
        elif found is not None:
            skipped.append(found)
    return tuple(sites), (*skipped, *_in_functions(model))


def _site(
    read: OnnxStage, name: str, key: str, place: str, shapes: Mapping[str, tuple[int, ...]]
) -> ConvSite | Skipped:
    spec = read.stage.spec
    dtype = dtype_of(read.weight)
    if dtype.name not in FLOATS:
        reason = f"its weight is of {dtype.name}, which has no float components"
        return Skipped(name=name, kind=spec.kind, reason=reason)
    bias = read.stage.bias
    inner = _inner_sizes(read.data, spec.axes, shapes)
    return ConvSite(
        name=name,
        spec=spec,
        # Gemm's alpha and beta make them float64; they go into the graph in its own dtype.
        weight=np.asarray(read.stage.weight).astype(dtype, copy=False),
        bias=None if bias is None else np.asarray(bias).astype(dtype, copy=False),
        node=key,
        positions=math.prod(_inner_sizes(read.node.outputs[0], spec.axes, shapes) or ()),
        input_positions=None if inner is None or not spec.transposed else math.prod(inner),
        input_size=inner,
        padding_mode=_padding_mode(read),
        is_product=read.node.op_type == "MatMul",
        inside=place,
    )


def _carried(node: ir.Node, around: Mapping[ir.Graph, Scope]) -> str | None:
    """Why a layer has no constant weight where a Loop or Scan gives its body one; None where none does.

    A product of two computed values is no layer: one whose second operand begins as a constant is.
    """
    weight = node.inputs[1] if is_operator(node, *LAYERS) and len(node.inputs) > 1 else None
    scope = around.get(weight.graph) if weight is not None and isinstance(weight.graph, ir.Graph) else None
    if weight is None or scope is None or scope.owner is None:
        return None
    first = given_to(weight, scope)
    if first is None or (node.op_type not in CONVOLUTIONS and constant(first) is None):
        return None
    owner = f"{scope.owner.op_type} {node_name(scope.owner)}"
    if takes_apart(weight, scope):
        return f"{owner} gives it another weight at each step"
    return f"its weight is carried by {owner} from one step to the next"


def _unfit(node: ir.Node) -> str | None:
    """Why an operator that no stage stands for is no layer; None where it has no constant weight, or nothing to say."""
    if node.op_type in QUANTIZED:
        return "its weight is quantized, and integers have no float components"
    if node.op_type in OTHER_LAYERS:
        domain = node.domain or "ONNX"
        return f"{node.op_type} of {domain} is another operator than the convolutions and products that are decomposed"
    if not is_operator(node, "MatMul", "Gemm") or constant(node.inputs[0]) is not None:
        return None
    weight = constant(node.inputs[1])
    if weight is None:
        return None
    return "its weight is a vector" if weight.ndim == 1 else f"its weight has {weight.ndim} axes, a matrix for each"


def _in_functions(model: ir.Model) -> Iterator[Skipped]:
    """The layers of functions, which are left alone."""
    for function in model.functions.values():
        for node in function.all_nodes():
            if _is_layer(node):
                name = f"{function.name}.{node_name(node)}"
                yield Skipped(name=name, kind=_kind(node), reason=f"it is inside the function {function.name}")


def functions_with_layers(model: ir.Model) -> list[str]:
    """Return the names of the functions that hold a layer, themselves or in what they call, and can be inlined.

    A function of another opset than the model's computes something else where it is inlined.
    """
    opset = model.opset_imports.get("")
    found: list[str] = []
    before = -1
    while before < len(found):
        before = len(found)
        for function in model.functions.values():
            nodes = list(function.all_nodes())
            holds = any(is_operator(n, *LAYERS) or (n.domain and n.op_type in found) for n in nodes)
            if holds and function.name not in found and function.opset_imports.get("", opset) == opset:
                found.append(function.name)
    return found


def _is_layer(node: ir.Node) -> bool:
    """Whether a node is a layer; a product only where its second operand is constant."""
    if not is_operator(node, *LAYERS):
        return False
    return node.op_type != "MatMul" or constant(node.inputs[1]) is not None


def _kind(node: ir.Node) -> str:
    """What a node is as torch calls it, as far as its weight's shape is known; else the operator."""
    if is_operator(node, "Gemm", "MatMul"):
        return "linear"
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    shape = None if weight is None else weight.shape
    if shape is None or not is_operator(node, "Conv", "ConvTranspose"):
        return node.op_type
    return f"{'conv' if node.op_type == 'Conv' else 'conv_transpose'}{len(shape) - 2}d"


def _inner_sizes(value: ir.Value, axes: int, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """The sizes of a value's axes that are neither batch nor channels; None where they are not known."""
    shape = shapes.get(value.name or "")
    if shape is None:
        return None
    return tuple(shape[len(shape) - axes :] if axes else shape[1:-1])


def _padding_mode(read: OnnxStage) -> str:
    """The mode of a Pad in front of a layer, where the two have the same parent in their names."""
    pad = read.data.producer()
    if not is_operator(pad, "Pad"):
        return "zeros"
    assert pad is not None
    parents = [(node.name or "").rpartition("/")[0] for node in (pad, read.node)]
    if not parents[0] or parents[0] != parents[1]:
        return "zeros"
    return PADDINGS.get(pad.attributes.get_string("mode", "constant"), "zeros")


def _name_of(node: ir.Node, key: str) -> str:
    """What to call a layer that is left alone: by its weight, else by its node."""
    weight = source_of(node.inputs[1]) if len(node.inputs) > 1 else None
    name = (weight.name or "") if weight is not None and weight.is_initializer() else ""
    return _plain(_base(name) or key)


def _plain(name: str) -> str:
    """A name that does not read as that of a call in a body."""
    return name.replace(" in ", "_in_")


def _base(weight: str) -> str:
    """The layer that a weight's name tells, ``layer1.conv1`` of ``layer1.conv1.weight``; empty where it tells none."""
    layer, _, last = weight.rpartition(".")
    return weight if layer and last in FACTORS else layer_of_parameter(weight) if layer else ""


class _Namer:
    """Names layers: by the weight, else by the bias or the exporter's notes, else by the node.

    Those in bodies tell the place of the body, too. Further uses of one weight in the same place get ``#2``, ``#3``.
    Where another weight has the name already, the weight's own name in full is taken, then the node's.
    """

    def __init__(self) -> None:
        self._owners: dict[str, OnnxStage] = {}
        self._calls: dict[str, int] = {}

    def __call__(self, read: OnnxStage, key: str, place: str) -> str:
        weight = source_of(read.weight)
        own = (weight.name or "") if weight is not None and weight.is_initializer() else ""
        base = _base(own) or layer_name((read,), source_of(read.bias or _bias_behind(read.node)))
        names = (_plain(name) for name in chain((base, own), _numbered(key)) if name)
        name = next(name for name in names if self._is_free(name, read))
        self._owners.setdefault(name, read)
        call = call_in(name, place)
        number = self._calls[call] = self._calls.get(call, 0) + 1
        return call if number == 1 else f"{call}#{number}"

    def _is_free(self, name: str, read: OnnxStage) -> bool:
        """Whether nothing has a name, or what has it is the same layer: the same weight, in the same orientation."""
        if name not in self._owners:
            return True
        first = self._owners[name]
        same = source_of(first.weight) is source_of(read.weight)
        return same and np.array_equal(first.stage.weight, read.stage.weight)


def _numbered(key: str) -> Iterator[str]:
    yield key
    yield from (f"{key}_{number}" for number in count(2))


def _bias_behind(node: ir.Node) -> ir.Value | None:
    """The bias of a MatMul that an Add brings: exporters keep its name where they transpose the weight."""
    users = [use.node for use in node.outputs[0].uses()]
    if node.op_type != "MatMul" or len(users) != 1 or not is_operator(users[0], "Add"):
        return None
    values = [v for v in users[0].inputs if v is not None and v.is_initializer() and (v.name or "").endswith(".bias")]
    return values[0] if values else None
