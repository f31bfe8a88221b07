"""That removing channels changed nothing, proved from the two graphs alone: what remained is what was, for all inputs.

The removal says which channels of each value are left. That is taken for a claim, and proved node by node, in the order
of the graph: if the operands of a node are what is claimed of them, are its results? Each node is evaluated in float64
(``reference``), before and after, on operands that are drawn at random and not those that some input happens to give,
so that neither a saturated activation nor a weight that is almost zero hides a channel that is alive. A channel that is
gone and no constant holds huge numbers there: nothing may move. One that is a constant holds it: whether it is one is
found out in the same way, for every place of it, borders too. No rule of any operator is known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spdexport.content import graph_hash
from spdexport.factors import unit_rounding
from spdexport.names import count
from spdexport.reference.unavailable import ReferenceUnavailable
from spdexport.rewrite.onnx_scopes import bodies
from spdexport.verification.channel_draws import (
    EXACT,
    HUGE,
    PRODUCTS,
    Draws,
    are_close,
    largest_of,
    numbers_of,
    same_default,
    same_tensor,
)
from spdexport.verification.compare import FACTOR
from spdexport.verification.computed import is_stored
from spdexport.verification.graph_order import taken_by_bodies
from spdexport.verification.layers import layer_of
from spdexport.verification.node_attributes import attribute_names, described

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from spdexport.conv import Array, FloatArray
    from spdexport.rewrite.onnx_dead import Kept, Removal


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """What is wrong about a removal.

    Attributes:
        layer: Where.
        what: What, in words.
        is_known: Whether it is known to be wrong, and not only that it cannot be proved right.
    """

    layer: str
    what: str
    is_known: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Relation:
    """What a value of the graph after has of one before.

    Attributes:
        after: Its name.
        axis: Of the channels.
        channels: Those that are left; None for all.
        lack: What it lacks, as an array that broadcasts to it; None for nothing.
    """

    after: str
    axis: int = 0
    channels: tuple[int, ...] | None = None
    lack: FloatArray | None = None

    @property
    def is_whole(self) -> bool:
        return self.channels is None and self.lack is None

    def taken(self, before: Array) -> Array:
        """Return the channels that are left, with what they lack."""
        return before if self.channels is None else np.take(before, self.channels, axis=self.axis)

    def of(self, before: Array) -> Array:
        """Return what the value after is, where the one before is this."""
        left = self.taken(before)
        return left if self.lack is None else left - self.lack


class ChannelProof:
    """The proof of one removal.

    Args:
        whole: The graph before, its computed constants stored.
        after: The graph after, likewise.
        removal: What is claimed: which channels are left of each value.
        values: Values of the graph before, by name, on some inputs: they tell shapes, and what integers are.

    Attributes:
        relations: What is proved of the values so far, by their names before.
        draws: The numbers that nodes are evaluated on.
    """

    def __init__(self, whole: ir.Model, after: ir.Model, removal: Removal, values: Mapping[str, Array]) -> None:
        self._whole, self._model = whole, after
        self._claims: Mapping[str, Kept] = removal.kept
        self._instead = removal.instead
        self._after = {value.name or "": node for node in after.graph for value in node.outputs}
        self._nodes = set(whole.graph)
        self.relations: dict[str, _Relation] = {v.name or "": _Relation(after=v.name or "") for v in whole.graph.inputs}
        self.draws = Draws(whole.opset_imports, values)

    def fault(self) -> Wrong | None:
        """Return the first thing that is wrong, in the graph's order; None where the removal is proved."""
        if (around := self._around()) is not None:
            return around
        try:
            for node in self._whole.graph:
                wrong = self._node(node)
                if wrong is not None:
                    return wrong
        except ReferenceUnavailable as error:
            what = f"whether a removed channel was dead is not known: {error}"
            return Wrong(layer=error.node, what=what, is_known=False)
        return self._outputs()

    def _around(self) -> Wrong | None:
        """What is neither a node nor its weight: inputs, versions of operators, local functions."""
        before, after = self._whole, self._model
        mine, theirs = ([(v.name, v.dtype) for v in m.graph.inputs] for m in (after, before))
        held = zip(before.graph.inputs, after.graph.inputs, strict=False)
        if mine != theirs or not all(same_default(v, w) for v, w in held):
            return Wrong(layer="input", what="the inputs are not what they were")
        if dict(before.opset_imports) != dict(after.opset_imports):
            return Wrong(layer="opset", what="the versions of operators are not what they were")
        for key, function in before.functions.items():
            other = after.functions.get(key)
            if other is None or graph_hash(function.graph) != graph_hash(other.graph):
                return Wrong(layer=function.name, what=f"the function {function.name} is not what it was")
        return None

    def _outputs(self) -> Wrong | None:
        before, after = self._whole.graph.outputs, self._model.graph.outputs
        for value, other in zip(before, after, strict=False):
            name = value.name or ""
            relation = _Relation(after=name) if is_stored(value) else self.relations.get(name)
            if relation is None or not relation.is_whole or relation.after != other.name:
                return Wrong(layer=name, what=f"of the output {name} channels are gone")
        if len(before) != len(after):
            return Wrong(
                layer="output", what=f"the file has {count(len(after), 'output')} where {len(before)} is right"
            )
        return None

    def _node(self, node: ir.Node) -> Wrong | None:
        name = next((v.name for v in node.outputs if v.name), "")
        other = self._after.get(name or "")
        if other is None:
            return self._removed(node)
        for value in taken_by_bodies(node):
            relation = self.relations.get(value.name or "")
            if not is_stored(value) and value.producer() in self._nodes and (relation is None or not relation.is_whole):
                return Wrong(
                    layer=layer_of(node), what=f"{node.op_type} reads {value.name}, of which channels are gone"
                )
        if self._is_unchanged(node, other):
            self.relations.update((v.name or "", _Relation(after=v.name or "")) for v in node.outputs)
        elif bodies(node) or bodies(other):
            return Wrong(layer=layer_of(node), what=f"{node.op_type} is not what it was, and has graphs of its own")
        else:
            wrong = self._changed(node, other)
            if wrong is not None:
                return wrong
        self.draws.find_constants(node)
        return None

    def _is_unchanged(self, node: ir.Node, other: ir.Node) -> bool:
        """Whether a node is what it was, on values that are."""
        if (node.op_type, node.domain, len(node.inputs)) != (other.op_type, other.domain, len(other.inputs)):
            return False
        for value, target in zip(node.inputs, other.inputs, strict=True):
            if value is None or target is None or is_stored(value) or is_stored(target):
                if (value is None) != (target is None) or (value is not None and not same_tensor(value, target)):
                    return False
                continue
            relation = self.relations.get(value.name or "")
            if relation is None or not relation.is_whole or relation.after != target.name:
                return False
        opsets = self._whole.opset_imports
        if any(described(node, n, opsets) != described(other, n, opsets) for n in attribute_names(node, other)):
            return False
        mine, theirs = ({n: [graph_hash(g) for g in gs] for n, gs in bodies(x).items()} for x in (node, other))
        return mine == theirs

    def _removed(self, node: ir.Node) -> Wrong | None:
        """A node that is gone: another value stands for its result, or whatever read it tells."""
        self.draws.find_constants(node)
        for output in node.outputs:
            if (output.name or "") not in self._instead:
                continue
            trials = [_Trial(self, node, draw) for draw in range(2)]
            for value in node.inputs:
                relation = None if value is None or is_stored(value) else self.relations.get(value.name or "")
                if relation is None or value is None:
                    continue
                results = [(relation.taken(t.results[0]), relation.taken(t.operand(value))) for t in trials]
                if all(a.shape == b.shape and are_close(a, b, EXACT * largest_of(b)) for a, b in results):
                    self.relations[output.name or ""] = relation
                    break
        return None

    def _changed(self, node: ir.Node, other: ir.Node) -> Wrong | None:
        """A node of which something is cut, or an operand of which is."""
        layer = layer_of(node)
        operands = self._operands(node, other)
        if isinstance(operands, str):
            return Wrong(layer=layer, what=operands)
        claims = [self._claimed(v) for v in node.outputs]
        lacks: list[FloatArray | None] = [None] * len(claims)
        for draw in range(2):
            trial = _Trial(self, node, draw)
            try:
                got = self.draws.run(other, trial.after(operands))
            except ReferenceUnavailable as error:  # of the node before the reference can tell
                return Wrong(layer=layer, what=f"{other.op_type} cannot be computed any more: {error.reason}")
            for index, (relation, result, after) in enumerate(zip(claims, trial.results, got, strict=False)):
                name = node.outputs[index].name or ""
                if not name:
                    continue
                if relation.channels is not None and max(relation.channels, default=0) >= result.shape[relation.axis]:
                    return Wrong(layer=layer, what=f"{name} never had all the channels that are left of it")
                right = relation.taken(result)
                if right.shape != after.shape:
                    return Wrong(layer=layer, what=f"{name} has shape {after.shape} where {right.shape} is right")
                if name in self._claims and self._claims[name].shifted:
                    right, lacks[index] = _without_lack(right, after, lacks[index])
                allowed = EXACT * largest_of(right) + self._rounding(node, other, relation, right)
                if not are_close(after, right, allowed):
                    return Wrong(layer=layer, what=self._explained(node, index))
        for value, relation, lack in zip(node.outputs, claims, lacks, strict=True):
            name = value.name or ""
            found = _Relation(after=name, axis=relation.axis, channels=relation.channels, lack=lack)
            self.relations[name] = self._behind(found) if lack is not None else found
        return None

    def _claimed(self, value: ir.Value) -> _Relation:
        claim = self._claims.get(value.name or "")
        if claim is None:
            return _Relation(after=value.name or "")
        return _Relation(after=value.name or "", axis=claim.axis, channels=claim.channels)

    def _behind(self, relation: _Relation) -> _Relation:
        """The relation to the sum behind a value, where what it lacks is added there again."""
        node = self._after.get(f"{relation.after}.shifted")
        if node is None or node.op_type != "Add" or len(node.inputs) != 2 or relation.lack is None:
            return relation
        left, right = node.inputs
        if left is None or left.name != relation.after or not is_stored(right) or right is None:
            return relation
        added, tensor = numbers_of(right), right.const_value
        assert tensor is not None, "it is stored"
        u = unit_rounding(tensor.dtype.numpy())
        allowed = FACTOR * u * np.abs(relation.lack) + 1e-12 * largest_of(relation.lack)
        if np.broadcast_shapes(added.shape, relation.lack.shape) != relation.lack.shape:
            return relation
        if not are_close(np.broadcast_to(added, relation.lack.shape), relation.lack, allowed):
            return relation
        return _Relation(after=f"{relation.after}.shifted", axis=relation.axis, channels=relation.channels)

    def _operands(self, node: ir.Node, other: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]] | str:
        """The operands before and after, by their places; or what is wrong about them."""
        pairs: list[tuple[ir.Value | None, ir.Value | None]] = []
        for index, target in enumerate(other.inputs):
            value = node.inputs[index] if index < len(node.inputs) else None
            pairs.append((value, target))
            if target is None or is_stored(target):
                continue
            if value is None or is_stored(value):
                return f"{node.op_type} reads {target.name} where it read a constant"
            relation = self.relations.get(value.name or "")
            if relation is None or relation.after != target.name:
                return f"{node.op_type} does not read {value.name} any more, nor what is the same"
        return pairs

    def _rounding(self, node: ir.Node, other: ir.Node, relation: _Relation, right: Array) -> Array | float:
        """What rounding to the file's type may do to numbers that were made anew: biases, and stored constants."""
        stored = [v for v in other.inputs if v is not None and is_stored(v)]
        floats = [v for v in stored if v.const_value is not None and v.const_value.dtype.is_floating_point()]
        kinds = [v.const_value.dtype.numpy() for v in floats if v.const_value is not None]
        if not kinds:
            return 0.0
        u = max(unit_rounding(kind) for kind in kinds)
        if node.op_type in PRODUCTS:
            # The bias holds what the constants made: it is rounded in proportion to the sum of its terms.
            sizes = {i: np.abs(numbers_of(v)) for i, v in enumerate(node.inputs) if v is not None and is_stored(v)}
            for index, value in enumerate(node.inputs):
                if value is not None and not is_stored(value):
                    held = self.draws.constants.get(value.name or "")
                    shape = self.draws.shape(value)
                    sizes[index] = np.abs(np.where(held.known, held.numbers, 0)) if held else np.zeros(shape)
            return FACTOR * u * np.abs(relation.taken(self.draws.run(node, sizes)[0]))
        if node.op_type not in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum"):
            return 0.0
        held_there = sum(np.abs(numbers_of(v)) for v in floats)
        return FACTOR * u * (np.abs(right) + held_there)

    def _explained(self, node: ir.Node, index: int) -> str:
        """Which removed channel moves a result; else that something else is not what it was."""
        trial = _Trial(self, node, 0)
        base = self._claimed(node.outputs[index]).taken(trial.results[index])
        for value in node.inputs:
            relation = None if value is None or is_stored(value) else self.relations.get(value.name or "")
            if value is None or relation is None or relation.channels is None:
                continue
            whole = trial.operand(value)
            for channel in np.setdiff1d(np.arange(whole.shape[relation.axis]), relation.channels):
                changed = whole.copy()
                held = self.draws.constants.get(value.name or "")
                place = tuple([slice(None)] * relation.axis + [channel])
                if held is not None and held.known[place].all():
                    if np.ptp(held.numbers[place]) > EXACT * largest_of(held.numbers[place]):
                        return (
                            f"the channel {channel} that was removed from {value.name} is not one number everywhere, "
                            f"and {node.op_type} reads it"
                        )
                    continue
                changed[place] = np.sign(changed[place]) * HUGE / 3
                moved = trial.run_with(value, held.put(changed) if held is not None else changed)[index]
                if not are_close(self._claimed(node.outputs[index]).taken(moved), base, 0.0):
                    return (
                        f"the channel {channel} that was removed from {value.name} is alive: {node.op_type} reads it, "
                        "and it is no constant"
                    )
        return f"what is left of {node.op_type} does not compute what it did, on the channels that are left"

    def operand_of(self, value: ir.Value, rng: np.random.Generator, *, sign: float) -> Array:
        """Return the same; what was removed of it, and is no constant, holds huge numbers."""
        numbers = self.draws.drawn(value, rng, sign=sign)
        relation = self.relations.get(value.name or "")
        if relation is None or relation.channels is None or numbers.dtype.kind != "f":
            return numbers
        gone = np.ones(numbers.shape[relation.axis], bool)
        gone[list(relation.channels)] = False
        numbers = numbers.copy()
        place = tuple([slice(None)] * relation.axis + [gone])
        numbers[place] = HUGE * np.sign(rng.standard_normal(numbers[place].shape))
        held = self.draws.constants.get(value.name or "")
        return numbers if held is None else held.put(numbers)


class _Trial:
    """A node before, on operands drawn at random."""

    def __init__(self, proof: ChannelProof, node: ir.Node, draw: int) -> None:
        self._proof, self._node = proof, node
        rng = np.random.default_rng([7, draw])
        self._operands = {
            index: numbers_of(value) if is_stored(value) else proof.operand_of(value, rng, sign=(-1.0) ** draw)
            for index, value in enumerate(node.inputs)
            if value is not None
        }
        # One value may be read twice.
        by_name: dict[str, Array] = {}
        for index, value in enumerate(node.inputs):
            if value is not None:
                self._operands[index] = by_name.setdefault(value.name or "", self._operands[index])
        self.results = proof.draws.run(node, self._operands)

    def operand(self, value: ir.Value) -> Array:
        return self._operands[list(self._node.inputs).index(value)]

    def run_with(self, value: ir.Value, numbers: Array) -> list[Array]:
        """Return the results with another operand."""
        inputs = list(self._node.inputs)
        changed = {i: numbers if inputs[i] is value else held for i, held in self._operands.items()}
        return self._proof.draws.run(self._node, changed)

    def after(self, operands: list[tuple[ir.Value | None, ir.Value | None]]) -> dict[int, Array]:
        """Return what the node after reads where the one before reads this."""
        found = {}
        for index, (value, target) in enumerate(operands):
            if target is None:
                continue
            if is_stored(target):
                found[index] = numbers_of(target)
            else:
                assert value is not None, "the operands belong together"
                found[index] = self._proof.relations[value.name or ""].of(self._operands[index])
        return found


def _without_lack(right: Array, after: Array, known: FloatArray | None) -> tuple[Array, FloatArray]:
    """What is right without what is lacking, and that: one number for each channel of the last axis."""
    if known is None:
        known = (right - after).reshape(-1, right.shape[-1]).mean(axis=0) if right.size else np.zeros(right.shape[-1:])
    return right - known, known
