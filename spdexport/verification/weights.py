"""The weights edge: a file against the plain export of the model with effective weights, for all inputs at once.

The file's factors are composed back (by structure, in float64), what the graph computes from weights alone is computed,
and what results must be the same graph as the plain export: the same operators with the same attributes and
connections, in bodies and local functions too (``graph_pairs``). Weights that no form touched must be equal bit for
bit; composed and computed ones must agree to the rounding of their parts. No input is needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spdexport.names import count, layer_of_call
from spdexport.rewrite.onnx_fold import fold_onnx
from spdexport.rewrite.onnx_names import node_name
from spdexport.rewrite.onnx_scopes import all_nodes
from spdexport.verification.computed import with_computed
from spdexport.verification.graph_pairs import Comparison, Side
from spdexport.verification.layers import layer_at, layer_of
from spdexport.verification.result import EdgeResult, Status
from spdexport.verification.weight_errors import WeightErrors
from spdexport.verification.weight_values import Mismatch, magnitudes

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from spdexport.rewrite.match import Chain
    from spdexport.rewrite.onnx_fold import FoldResult


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WeightsFound:
    """What comparing the weights finds.

    Attributes:
        edge: The edge's result.
        layers: The errors of each layer that was compared.
        unlike: Whether the two have other operators, so that their weights have no partners.
    """

    edge: EdgeResult
    layers: WeightErrors
    unlike: bool = False


def compare_weights(
    file: ir.Model,
    plain: ir.Model,
    *,
    made_from: bool = True,
    whole: bool = False,
    beyond: Callable[[Chain], bool] | None = None,
) -> WeightsFound:
    """Compare a file with the plain export of the dense model that has the plan's effective weights.

    Args:
        file: The file, as it was read back.
        plain: What ``export_onnx`` makes of the effective program.
        made_from: Whether the file was made from that model: what no form touched is equal bit for bit then. Of two
            files that came about apart, every weight may differ by rounding, and axes may have other names.
        whole: Whether everything that composes is composed in both: one of the two may be a fold of the other.
        beyond: Which rows of layers stand for one, beside V and U: ``rewrite.match.in_chains`` of the stages that the
            plan's forms have. In both graphs alike, so that a model's own convolutions in a row stay comparable.
    """
    torn = _torn(file)
    if torn is not None:
        edge = EdgeResult(edge="weights", status=Status.FAIL, first_divergence=torn.layer, reason=torn.what)
        return WeightsFound(edge=edge, layers=WeightErrors())
    folded, wanted = (_normal_form(model, beyond, whole=whole) for model in (file, plain))
    found = WeightErrors()
    for form in (wanted, folded):
        layers = {(scope.place, node_name(node)): layer_of(node) for scope, node in all_nodes(form.source.graph)}
        for chain in form.result.folded:
            parts = [(chain.inside, name) for name in chain.nodes]
            found.compose(layer_of_call(chain.name), {layers[part] for part in parts if part in layers})
    comparison = Comparison(
        Side(model=folded.result.model, sizes=folded.sizes),
        Side(model=wanted.result.model, sizes=wanted.sizes),
        found,
        made_from=made_from,
    )
    mismatch = comparison.compare()
    unlike = mismatch is not None and mismatch.unlike
    return WeightsFound(edge=_edge(mismatch, folded.result, wanted.result, found), layers=found, unlike=unlike)


def compare_files(file: ir.Model, other: ir.Model) -> EdgeResult:
    """Compare the graph and the weights of a file with those of another one that it was not made from.

    Inconclusive where the two have other operators: what they compute may be the same all the same.

    Args:
        file: The file.
        other: The one that is right.
    """
    found = compare_weights(file, other, made_from=False)
    if found.unlike:
        # One of them may have in one layer what the other has in several, of any geometry.
        composed = compare_weights(file, other, made_from=False, whole=True)
        found = found if composed.unlike else composed
    edge = found.edge
    if edge.status is Status.FAIL and found.unlike:
        reason = f"the two graphs cannot be compared node by node, and their outputs alone were: {edge.reason}"
        return replace(edge, status=Status.INCONCLUSIVE, noise_ratio=None, reason=reason)
    if edge.status is Status.PASS:
        return replace(edge, reason="the graph is that of the other file, and every weight is, to rounding")
    return edge


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _NormalForm:
    """A model as two are compared.

    Attributes:
        source: The model, what it computes from weights alone stored as constants.
        result: What folding gives of it.
        sizes: The same folding of the magnitudes of its weights.
    """

    source: ir.Model
    result: FoldResult
    sizes: ir.Model


def _normal_form(model: ir.Model, beyond: Callable[[Chain], bool] | None, *, whole: bool) -> _NormalForm:
    """Bring a model to the form in which two are compared.

    What exporters may do or leave is done: constants are computed, and lone layers fold as well, for whether a batch
    norm is folded into one, and whether a sum is one of factorized layers, may differ. Folding composes a weight each
    time it is read, so that never more than those of one layer are there at once.
    """
    source = with_computed(model)
    return _NormalForm(
        source=source,
        result=fold_onnx(source, lone=True, whole=whole, beyond=beyond),
        sizes=fold_onnx(magnitudes(source), lone=True, whole=whole, sizes=True, beyond=beyond).model,
    )


def _torn(file: ir.Model) -> Mismatch | None:
    """A node that reads what nothing computes: such a graph cannot even be copied."""
    for node in file.graph.all_nodes():
        for value in node.inputs:
            known = value is None or value.is_graph_input() or value.is_initializer() or value.producer() is not None
            if not known and value is not None:
                what = f"{node.op_type} reads {value.name}, which nothing computes"
                return Mismatch(layer=layer_at(node) or layer_of(node), what=what, structural=True)
    return None


def weights_edge(file: ir.Model, plain: ir.Model) -> EdgeResult:
    """Return the edge alone of ``compare_weights``."""
    return compare_weights(file, plain).edge


def _edge(mismatch: Mismatch | None, folded: FoldResult, wanted: FoldResult, found: WeightErrors) -> EdgeResult:
    if mismatch is None:
        number = len(folded.folded)
        whose = "its effective weight" if number == 1 else "their effective weights"
        return EdgeResult(
            edge="weights",
            status=Status.PASS,
            noise_ratio=found.ratio,
            max_abs=found.error,
            reason=f"{count(number, 'layer')} composed back to {whose}; all else is equal bit for bit",
        )
    reason, layer = mismatch.what, mismatch.layer
    if mismatch.structural and folded.declined:
        # A model's own layers in a row are declined in both; what is declined in the file alone is its fault.
        own = {skipped.name for skipped in wanted.declined}
        first = next((skipped for skipped in folded.declined if skipped.name not in own), None)
        layer = layer if first is None else first.name
        first = first or folded.declined[0]
        reason += f" ({first.name} was not composed back: {first.reason})"
    return EdgeResult(
        edge="weights",
        status=Status.FAIL,
        noise_ratio=mismatch.ratio,
        max_abs=mismatch.max_abs,
        first_divergence=layer,
        reason=reason,
    )
