"""Fold the factorized layers of an ONNX file back into one layer each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.rewrite.onnx_match import Search
from spdexport.rewrite.onnx_names import layer_name, node_name
from spdexport.rewrite.onnx_place import place_stage

if TYPE_CHECKING:
    import onnx_ir as ir

    from spdexport.conv import ConvSpec, Skipped
    from spdexport.forms import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedChain:
    """Nodes of a file that became one layer.

    Attributes:
        name: The layer's name.
        nodes: The names of the nodes that it replaces, in the graph's order.
        spec: The geometry of the layer.
        macs_before: Multiply-accumulates of the replaced layers for one output location.
        macs_after: Those of the folded layer.
    """

    name: str
    nodes: tuple[str, ...]
    spec: ConvSpec
    macs_before: int
    macs_after: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldResult:
    """A folded model, and what was done to it.

    Attributes:
        model: The new model. It shares the weights of all layers that were left alone with the model it was made of.
        folded: The layers that were folded, in the graph's order.
        declined: Chains that were looked at and are not one layer, each with its reason.
    """

    model: ir.Model
    folded: tuple[FoldedChain, ...]
    declined: tuple[Skipped, ...]


def fold_onnx(model: ir.Model, *, lone: bool = False) -> FoldResult:
    """Turn every factorized layer of the model's main graph into one layer.

    The result computes the same function to rounding, whatever that does to its cost. Subgraphs and functions are left
    alone.

    Args:
        model: The model; it is not changed.
        lone: Whether to fold sums of two dense layers, and batch norms behind one, too: the normal form in which two
            files are compared.
    """
    model = model.clone()
    search = Search(lone=lone)
    for node in model.graph:
        search.visit(node)

    order = {node: index for index, node in enumerate(model.graph)}
    folded, inside = [], []
    for fold in search.folds():
        nodes = sorted(fold.nodes, key=order.__getitem__)
        dtype = np.dtype(fold.weight_dtype)
        # Small floats overflow: a product that leaves their range is not what V and U compute.
        if not _fits(fold.stage, dtype):
            search.decline(fold, nodes[0], f"the folded weight does not fit the type {dtype}")
            continue
        inside.append(set(nodes))
        name = layer_name(fold.layers, fold.bias)
        folded.append(
            FoldedChain(
                name=name,
                nodes=tuple(node_name(node) for node in nodes),
                spec=fold.stage.spec,
                macs_before=sum(layer.stage.weight.size for layer in fold.layers),
                macs_after=fold.stage.weight.size,
            )
        )
        place_stage(
            model.graph,
            fold.stage,
            data=fold.data,
            template=fold.template,
            last=fold.last,
            replaced=nodes,
            dtype=dtype,
            layer=name,
            bias_value=fold.bias,
        )
    # A pair may be declined at first and folded after all as part of a sum.
    declined = [d for d in search.declined if not any(d.first in nodes and d.second in nodes for nodes in inside)]
    return FoldResult(model=model, folded=tuple(folded), declined=tuple(d.skipped for d in declined))


def _fits(stage: Stage, dtype: np.dtype[np.generic]) -> bool:
    """Whether rounding to ``dtype`` keeps every finite number finite."""
    with np.errstate(over="ignore"):  # it is what is asked here
        return all(
            values is None or bool((np.isfinite(values) <= np.isfinite(values.astype(dtype))).all())
            for values in (stage.weight, stage.bias)
        )
