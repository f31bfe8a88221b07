"""The weights edge of a file from which dead channels were removed: what is left is right, and what is gone was dead.

Three statements make one: the file is the whole graph without some channels; each of these was dead in the whole
graph's own weights; and the whole graph composes back to the plain export. The second is proved here node by node, from
the weights before and after alone, whatever the removal thought of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from spdexport.factors import unit_rounding
from spdexport.names import count
from spdexport.rewrite.onnx_dead import known_shapes
from spdexport.rewrite.onnx_dead_layers import Layer, bias_of, matrix, scale_of, weights
from spdexport.rewrite.onnx_dead_rules import Tracks
from spdexport.verification.compare import FACTOR
from spdexport.verification.layers import layer_of
from spdexport.verification.result import EdgeResult, Status
from spdexport.verification.weights import WeightsFound, compare_weights

if TYPE_CHECKING:
    import onnx_ir as ir

    from spdexport.conv import Array, FloatArray
    from spdexport.rewrite.onnx_dead import Removal
    from spdexport.rewrite.onnx_dead_layers import Channelwise, IntArray
    from spdexport.rewrite.onnx_trim import Trimmed


def compare_trimmed(file: ir.Model, trimmed: Trimmed | None, plain: ir.Model) -> WeightsFound:
    """Compare a file with the plain export of the model with effective weights, dead channels apart.

    Args:
        file: The file, as it was read back.
        trimmed: What was removed from what; None for nothing.
        plain: What the whole graph is to compose back to.
    """
    # Padding adds components of zeros, which composing takes away: it is compared with the model without them.
    if trimmed is None or trimmed.removal.model is trimmed.whole:
        return compare_weights(file, plain)
    mine = compare_weights(file, trimmed.removal.model)
    if mine.edge.status is Status.FAIL:
        return mine
    fault = alive(trimmed.whole, trimmed.removal)
    if fault is not None:
        return WeightsFound(edge=fault, layers=mine.layers)
    found = compare_weights(trimmed.whole, plain)
    if found.edge.status is Status.FAIL:
        return found
    number = trimmed.trimming.channels
    reason = f"{found.edge.reason}; {count(number, 'channel')} removed, each dead by its weights"
    return WeightsFound(edge=replace(found.edge, reason=reason), layers=found.layers)


def alive(whole: ir.Model, removal: Removal) -> EdgeResult | None:
    """The weights edge as a failure, where something was removed that is not dead; None where all is.

    Args:
        whole: The graph before.
        removal: What is said of it.
    """
    tracks = Tracks(shapes=known_shapes(whole))
    for node in whole.graph:
        tracks.visit(node)
    after = {value.name or "": node for node in removal.model.graph for value in node.outputs}
    proof = _Proof(tracks, removal, after)
    for rule in tracks.rules:
        left = after.get(rule.out.name or "")
        if left is None:
            continue  # what read it tells whether it could go
        what = proof.layer(rule, left) if isinstance(rule, Layer) else proof.channelwise(rule, left)
        if what is not None:
            return _fault(layer_of(rule.node), what)
    for node in tracks.opaque:
        for value in node.inputs:
            if value is not None and not proof.is_whole(value):
                return _fault(layer_of(node), f"{node.op_type} reads {value.name}, of which channels are gone")
    for output in whole.graph.outputs:
        if not proof.is_whole(output):
            return _fault(output.name or "", f"of the output {output.name} channels are gone")
    return None


def _fault(layer: str, what: str) -> EdgeResult:
    return EdgeResult(edge="weights", status=Status.FAIL, first_divergence=layer, reason=what)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sum:
    """What constants add to each channel, with the sum of its terms' magnitudes: rounding is in proportion to that."""

    value: FloatArray
    size: FloatArray

    @classmethod
    def zeros(cls, channels: int) -> Self:
        return cls(value=np.zeros(channels), size=np.zeros(channels))

    @classmethod
    def of(cls, weight: Array, numbers: FloatArray, sizes: FloatArray, scale: float) -> Self:
        """A layer's weight, shape (out, in, taps), times numbers that stand in its input channels."""
        weight = weight.astype(np.float64) * scale
        return cls(value=np.einsum("oit,i->o", weight, numbers), size=np.einsum("oit,i->o", np.abs(weight), sizes))

    def __add__(self, other: Self) -> Self:
        return type(self)(value=self.value + other.value, size=self.size + other.size)


class _Proof:
    """The nodes before and after, and which channels of their values are left."""

    def __init__(self, tracks: Tracks, removal: Removal, after: dict[str, ir.Node]) -> None:
        self._tracks, self._kept, self._instead, self._after = tracks, removal.kept, removal.instead, after
        # What values lack of what they were, in all channels they had: constants that a product has no bias for.
        self._lack: dict[str, _Sum] = {}

    def is_whole(self, value: ir.Value) -> bool:
        """Whether all channels of a value are left as they were, if it has any."""
        name = self._alias(value).name or ""
        added = name not in self._lack or f"{name}.shifted" in self._after
        return added and (self._left(value) is None or len(self._all(value)) == len(self._channels(value)))

    def layer(self, rule: Layer, node: ir.Node) -> str | None:
        """What is wrong about a layer; None if nothing is."""
        if not self._reads(node, rule.data):
            return f"{rule.node.op_type} does not read what it read before"
        track = self._tracks.known.get(rule.data)
        ins = np.arange(rule.uses.shape[1] * rule.groups) if track is None else self._channels(rule.data)
        outs = self._channels(rule.out)
        old, new = matrix(rule.node), matrix(node)
        first = 0
        if rule.groups > 1:
            groups = np.unique(outs // (len(old) // rule.groups))
            if len(groups) > 1:
                return _groups(rule, ins, outs, old, new) or _bias(rule, node, outs, _Sum.zeros(len(old)))
            # A group that is left alone is a layer like any other, and its channels may go one by one.
            first = int(groups[0]) * old.shape[1]
            if (ins < first).any() or (ins >= first + old.shape[1]).any():
                return "channels of a group are left that the layer does not have any more"
            ins = ins - first
        if not _equal(new, old[outs][:, ins]):
            return "the weights that are left are not those of the channels that are left"
        gone = np.setdiff1d(np.arange(old.shape[1]), ins)
        read = gone[rule.uses[outs][:, gone].any(axis=0)]
        shift = _Sum.zeros(len(old))
        if read.size:
            if track is None or not rule.folds(track)[first + read].all():
                return (
                    f"the removed input channel {read[0]} is alive: weights on it are not zero, and it is no constant"
                )
            numbers = track.number[first + read]
            shift = _Sum.of(old[:, read], numbers, np.abs(numbers), scale_of(rule.node))
        lack = self._lacking(node, rule.data)
        if lack is not None:
            shift += _Sum.of(old[:, ins], lack.value[ins], lack.size[ins], scale_of(rule.node))
        if node.op_type != "MatMul":
            return "its input lacks constants" if lack is not None else _bias(rule, node, outs, shift)
        if not shift.value[outs].any():
            return None
        self._lack[rule.out.name or ""] = shift
        behind = self._after.get(f"{rule.out.name}.shifted")
        added = None if behind is None else weights(behind.inputs[1])
        wrong = behind is not None and (added is None or not _close(added, shift.value[outs], shift.size[outs]))
        return "what is added behind it is not what the removed constants make of it" if wrong else None

    def channelwise(self, rule: Channelwise, node: ir.Node) -> str | None:
        """The same of an operator on single channels."""
        left, what = self._channels(rule.out), rule.node.op_type
        for value, index in rule.operands:
            if not self._reads(node, value):
                stored = weights(node.inputs[rule.node.inputs.index(value)])
                track = self._tracks.known[value]
                is_constant = track.size == index.size and track.constant[left].all()
                if stored is None or not is_constant or not _same(stored, track.number[left]):
                    return f"{what} does not read {value.name} any more, which is not that constant"
                continue
            before = np.flatnonzero(np.isin(index, self._channels(value)) & (index >= 0))
            if not np.array_equal(before, left[index[left] >= 0]):
                return f"{what} joins channels that do not belong together"
        found = [self._lacking(node, value) for value, _ in rule.operands]
        lacks = [lack for lack in found if lack is not None]
        if lacks:
            return self._adds(rule, node, left, lacks[0]) if rule.node.op_type == "Add" else "its input lacks constants"
        for place, axis in rule.parameters:
            old, new = weights(rule.node.inputs[place]), weights(node.inputs[place])
            if old is None or new is None or not _equal(new, np.take(old, left, axis=axis)):
                return f"{what} has other numbers for the channels that are left"
        return None

    def _adds(self, rule: Channelwise, node: ir.Node, left: IntArray, lack: _Sum) -> str | None:
        """Whether a sum with a bias adds what its input lacks, too."""
        pairs = [(weights(a), weights(b)) for a, b in zip(rule.node.inputs, node.inputs, strict=True)]
        for old, new in pairs:
            if old is not None and new is not None and len(pairs) == 2:
                before = np.broadcast_to(old.reshape(-1).astype(np.float64), lack.value.shape)[left]
                if _close(new, before + lack.value[left], np.abs(before) + lack.size[left]):
                    return None
        return "its bias is not what the removed constants make of it"

    def _lacking(self, node: ir.Node, value: ir.Value) -> _Sum | None:
        """What a value that a node reads lacks, if it does not read the sum behind it."""
        name = self._alias(value).name or ""
        return self._lack.get(name) if any(read is not None and read.name == name for read in node.inputs) else None

    def _reads(self, node: ir.Node, value: ir.Value) -> bool:
        name = self._alias(value).name
        return any(read is not None and read.name in (name, f"{name}.shifted") for read in node.inputs)

    def _alias(self, value: ir.Value) -> ir.Value:
        """The value that stands for one, if that one was a sum with zeros."""
        instead = self._instead.get(value.name or "")
        node = value.producer()
        if instead is None or node is None or node.op_type not in ("Add", "Sub"):
            return value
        left, right = node.inputs
        for zeros, other in ((left, right), (right, left)):
            track = self._tracks.known.get(zeros) if zeros is not None else None
            if other is None or track is None or (node.op_type == "Sub" and zeros is left):
                continue
            final = self._alias(other)
            kept = self._kept.get(final.name or "")
            there = np.arange(track.size) if kept is None or kept.channels is None else np.array(kept.channels)
            is_zero = (track.constant & (track.number == 0))[there].all()
            if instead in (other.name, final.name) and is_zero:
                return final
        return value

    def _left(self, value: ir.Value) -> tuple[int, ...] | None:
        kept = self._kept.get(self._alias(value).name or "")
        return None if kept is None else kept.channels

    def _all(self, value: ir.Value) -> IntArray:
        track = self._tracks.known.get(self._alias(value))
        return np.arange(0 if track is None else track.size)

    def _channels(self, value: ir.Value) -> IntArray:
        """The channels of a tracked value that are left."""
        left = self._left(value)
        return self._all(value) if left is None else np.array(left, dtype=np.intp)


def _groups(rule: Layer, ins: IntArray, outs: IntArray, old: Array, new: Array) -> str | None:
    each_in, each_out = rule.uses.shape[1], len(rule.uses) // rule.groups
    groups = np.unique(outs // each_out)
    whole = len(outs) == len(groups) * each_out and len(ins) == len(groups) * each_in
    if not whole or not np.array_equal(np.unique(ins // each_in), groups) or not _equal(new, old[outs]):
        return "a group of channels is only partly left"
    return None


def _bias(rule: Layer, node: ir.Node, outs: IntArray, shift: _Sum) -> str | None:
    """Whether the bias holds what the removed channels added."""
    old, new = bias_of(rule.node, len(rule.uses)), bias_of(node, len(outs))
    assert old is not None, "the layer has a rule"
    right, size = (old + shift.value)[outs], (np.abs(old) + shift.size)[outs]
    stored = weights(node.inputs[1])
    if new is None or stored is None or not _close(new.astype(stored.dtype), right, size):
        return "its bias is not what the removed constants make of it"
    return None


def _close(new: Array, right: FloatArray, size: FloatArray) -> bool:
    """Whether numbers are right to the rounding of what they are sums of."""
    error = np.abs(new.reshape(-1).astype(np.float64) - right)
    return bool((error <= FACTOR * unit_rounding(new.dtype) * size).all())


def _same(stored: Array, numbers: FloatArray) -> bool:
    return np.array_equal(stored.reshape(-1), numbers.astype(stored.dtype))


def _equal(new: Array, old: Array) -> bool:
    return new.shape == old.shape and new.dtype == old.dtype and new.tobytes() == old.tobytes()
