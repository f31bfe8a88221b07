"""The layers of a traced program in what torch's exporter made of it: matched with certainty, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spdexport.forms import VariableMask
from spdexport.rewrite.constants import Constants
from spdexport.rewrite.onnx_constants import constant, source_of
from spdexport.rewrite.onnx_graph import is_operator, read_layer
from spdexport.rewrite.onnx_scopes import keyed_nodes
from spdexport.rewrite.stages import ReadStage
from spdexport.rewrite.torch_graph import list_sites, operands

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx_ir as ir
    from torch.export import ExportedProgram

    from spdexport.conv import Array, ConvSite, ConvSpec
    from spdexport.forms import Form
    from spdexport.rewrite.onnx_graph import OnnxStage


class Place(NamedTuple):
    """Where a layer of the traced program is.

    Attributes:
        onnx: The key of its node in the ONNX graph.
        lowered: The name of its node in the lowered program.
        adds_behind: Whether the ONNX graph adds the layer's bias in a node of its own, which no form replaces.
    """

    onnx: str
    lowered: str
    adds_behind: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Use:
    """One use of a stored weight by a layer, in either kind of graph."""

    key: str
    spec: ConvSpec
    weight: Array
    bias: Array | None
    adds_behind: bool = False

    def equals(self, other: _Use) -> bool:
        """Return whether two uses are the same layer: geometry, weight and bias, number by number."""
        return (
            self.spec == other.spec
            and _equal(self.weight, other.weight)
            and (self.bias is None) == (other.bias is None)
            and (self.bias is None or other.bias is None or _equal(self.bias, other.bias))
        )


def match_exported(program: ExportedProgram, lowered: ExportedProgram, model: ir.Model) -> Mapping[str, Place] | None:
    """Find every layer of a traced program in what the exporter made of it.

    Layers are known by the names of their weights and, where several calls share one, by their order; geometry, weight
    and bias have to be the same.

    Args:
        program: The traced program.
        lowered: The program after the exporter's lowering of operators.
        model: The exporter's graph, before it was optimized.

    Returns:
        The places by the names of the traced program's nodes; None where a layer is not found with certainty.
    """
    wanted, written, lower = _program_uses(program), _onnx_uses(model), _program_uses(lowered)
    places: dict[str, Place] = {}
    for name, uses in wanted.items():
        others, lows = written.get(name, ()), lower.get(name, ())
        if not name or len(uses) != len(others) or len(uses) != len(lows):
            return None
        for use, other, low in zip(uses, others, lows, strict=True):
            if not (use.equals(other) and use.equals(low)):
                return None
            places[use.key] = Place(onnx=other.key, lowered=low.key, adds_behind=other.adds_behind)
    return places


def can_be_placed(forms: Iterable[tuple[ConvSite, Form]], places: Mapping[str, Place]) -> bool:
    """Return whether the ONNX graph can take forms: it knows no masks of run time, and adds some biases by itself."""
    for site, form in forms:
        if site.node not in places:
            return False
        if form.routing is not None or any(isinstance(stage.mask, VariableMask) for stage in form.stages):
            return False
        added = [stage.bias for stage in form.stages if stage.bias is not None]
        if places[site.node].adds_behind and not (len(added) == 1 and added[0] is site.bias):
            return False
    return True


def in_onnx(forms: Iterable[tuple[ConvSite, Form]], places: Mapping[str, Place]) -> Iterable[tuple[ConvSite, Form]]:
    """Give the forms for the sites of the ONNX graph, without the biases that it adds by itself."""
    for site, form in forms:
        place = places[site.node]
        yield replace(site, node=place.onnx), _without_bias(form) if place.adds_behind else form


def in_lowered(forms: Iterable[tuple[ConvSite, Form]], places: Mapping[str, Place]) -> Iterable[tuple[ConvSite, Form]]:
    """Give the forms for the sites of the lowered program."""
    for site, form in forms:
        yield replace(site, node=places[site.node].lowered), form


def _without_bias(form: Form) -> Form:
    return replace(form, chains=tuple(tuple(replace(stage, bias=None) for stage in chain) for chain in form.chains))


def _program_uses(program: ExportedProgram) -> dict[str, list[_Use]]:
    """The layers of a program by the names of their weights, in order; a weight that is computed has none."""
    constants = Constants(program)
    nodes = {node.name: node for node in program.graph.nodes}
    found: dict[str, list[_Use]] = {}
    for site in list_sites(program)[0]:
        name = constants.target(operands(nodes[site.node]).weight) or ""
        use = _Use(key=site.node, spec=site.spec, weight=site.weight, bias=site.bias)
        found.setdefault(name, []).append(use)
    return found


def _onnx_uses(model: ir.Model) -> dict[str, list[_Use]]:
    """The layers of a graph by the names of their weights, in order; those in bodies are none of the program's."""
    found: dict[str, list[_Use]] = {}
    for key, scope, node in keyed_nodes(model.graph):
        read = None if scope.place else read_layer(node)
        source = source_of(read.weight) if isinstance(read, ReadStage) else None
        if not isinstance(read, ReadStage) or source is None or not source.is_initializer():
            continue
        behind = _added_behind(read)
        bias = read.stage.bias if behind is None else behind
        use = _Use(
            key=key,
            spec=read.stage.spec,
            weight=np.asarray(read.stage.weight),
            bias=bias,
            adds_behind=behind is not None,
        )
        found.setdefault(source.name or "", []).append(use)
    return found


def _added_behind(read: OnnxStage) -> Array | None:
    """What an Add behind a matrix product adds to each of its outputs, where nothing else reads the product."""
    product = read.node.outputs[0]
    users = [use.node for use in product.uses()]
    if not is_operator(read.node, "MatMul") or product.is_graph_output() or len(users) != 1:
        return None
    added = [constant(value) for value in users[0].inputs if value is not product]
    if not is_operator(users[0], "Add") or len(added) != 1 or added[0] is None:
        return None
    return added[0] if added[0].shape == (read.stage.spec.out_channels,) else None


def _equal(one: Array, other: Array) -> bool:
    """Whether two arrays are equal bit for bit; what is the same memory is not compared."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    same = one.__array_interface__["data"][0] == other.__array_interface__["data"][0] and one.strides == other.strides
    return same or one.tobytes() == other.tobytes()
