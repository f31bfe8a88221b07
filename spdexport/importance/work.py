"""The importances of a model's components while samples run through it: the work, for this process or another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.arrays import to_numpy, to_torch
from spdexport.conv import stored_weight
from spdexport.errors import ComponentsError, ExampleInputError
from spdexport.factors import v_filters
from spdexport.files.batches import DataSet, filled
from spdexport.gates import GlobalShare, evaluate_global
from spdexport.gates import evaluate as evaluate_gate
from spdexport.importance.statistics import Running
from spdexport.loading.inputs import inputs_from_arrays
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.torch_builder import convolution
from spdexport.rewrite.torch_graph import operands
from spdexport.verification.inputs import input_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch
    from torch.export import ExportedProgram

    from spdexport.conv import Array, ConvSite
    from spdexport.engine.work import Done, Run, Shard
    from spdexport.factors import Factors
    from spdexport.gates import GateFunction


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gated:
    """A layer whose importances are computed."""

    site: ConvSite
    factors: Factors
    gate: GateFunction | GlobalShare


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Importance:
    """Importances summed up over samples, by layer; an ``engine.Work``.

    Attributes:
        program: The traced model.
        gated: The layers.
        data: The samples; or batches that come one after another, which this process alone has.
        batch: Samples of a file that are run together.
        threshold: As for ``Running``.
        origin: What the data are called.
    """

    program: ExportedProgram
    gated: Mapping[str, Gated]
    data: DataSet | Iterable[Mapping[str, Array]]
    batch: int
    threshold: float
    origin: str

    def open(self, *, threads: int | None) -> Run[Running]:  # noqa: ARG002  (torch has its own number)
        """Return what runs a shard; there is nothing to read any more."""
        return self._run

    def _run(self, shard: Shard, done: Done) -> Iterator[tuple[str, Running]]:
        running = {name: Running(one.gate.components, self.threshold) for name, one in self.gated.items()}
        fixed = _fixed_batch(self.program)
        whole = self.data
        batches = whole.batches(self.batch, shard.start, shard.stop) if isinstance(whole, DataSet) else whole
        for batch in batches:
            number = min(len(array) for array in batch.values())
            for start in range(0, number, fixed or number):
                part = {name: array[start : start + (fixed or number)] for name, array in batch.items()}
                counted = min(number - start, fixed or number)
                _take(self.program, self.gated, running, filled(part, fixed), counted, self.origin)
            done(number)
        yield from running.items()


def _fixed_batch(program: ExportedProgram) -> int | None:
    """The batch of a program that takes no other; None where it may change."""
    names = set(input_names(program))
    first = next(
        (
            node.meta["val"]
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in names and node.meta["val"].ndim
        ),
        None,
    )
    return int(first.shape[0]) if first is not None and isinstance(first.shape[0], int) else None


class _EnoughError(Exception):
    """All layers were seen; what follows in the model is not needed."""


def _take(
    program: ExportedProgram,
    gated: Mapping[str, Gated],
    running: Mapping[str, Running],
    batch: Mapping[str, Array],
    number: int,
    origin: str,
) -> None:
    """Run one batch, and take in the importances of its first ``number`` samples."""
    inputs = inputs_from_arrays(batch, origin)
    if not all(np.isfinite(to_numpy(t)).all() for t in inputs.tensors() if t.is_floating_point()):
        raise ExampleInputError("The data hold NaN or infinity.", where=origin, hint="Mend or remove these samples.")
    share = next((one.gate for one in gated.values() if isinstance(one.gate, GlobalShare)), None)
    sites = [one.site for one in gated.values()] if share is None else [one.site for one in share.inputs]
    readers: dict[str, list[str]] = {}
    nodes = {node.name: node for node in program.graph.nodes}
    for site in sites:
        readers.setdefault(operands(nodes[site.node]).data.name, []).append(site.name)
    waiting = set(readers)
    read: dict[str, torch.Tensor] = {}

    def see(name: str, value: torch.Tensor) -> None:
        for layer in readers.get(name, ()):
            if share is not None:
                read[layer] = value
            else:
                one = gated[layer]
                found = _importances(one, value)
                running[layer].add(found[:number])
        waiting.discard(name)
        if not waiting:
            raise _EnoughError

    tensors = dict(zip(input_names(program), inputs.tensors(), strict=False))
    try:
        for name, tensor in tensors.items():
            if name in readers:
                see(name, tensor)
        evaluate(program, inputs.args, inputs.kwargs, float64=False, watch=see)
    except _EnoughError:
        pass
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExampleInputError(
            f"The model does not take the data: {str(error).splitlines()[0]}",
            where=origin,
            hint="Save them by the names of the model's inputs, with the shapes that it was traced with.",
        ) from error
    if share is not None:
        for layer, found in _shared(share, read, origin).items():
            if layer in running:
                running[layer].add(found[:number].astype(gated[layer].site.weight.dtype))


def _shared(share: GlobalShare, read: Mapping[str, torch.Tensor], origin: str) -> Mapping[str, Array]:
    """The importances of all layers, of what each reads."""
    try:
        return evaluate_global(share.function, {one.layer: one.read(to_numpy(read[one.layer])) for one in share.inputs})
    except ValueError as error:
        raise ComponentsError(
            f"The causal-importance function of all layers does not take what they read: {error}.",
            where=origin,
            hint="Give data of the kind that SPD trained on: (batch, channels) or (batch, tokens, channels).",
        ) from error


def _importances(one: Gated, value: torch.Tensor) -> Array:
    """Of what a layer reads: shape (batch, ..., C), rounded to the layer's dtype as SPD computes it."""
    site, factors, gate = one.site, one.factors, one.gate
    assert not isinstance(gate, GlobalShare), "those are computed together"
    if site.is_lookup:
        activation = to_torch(np.ascontiguousarray(factors.V))[value]
    elif not site.spec.axes:
        activation = value @ to_torch(np.ascontiguousarray(factors.V))
    else:
        spec = replace(site.spec, out_channels=factors.components)
        target, arguments = convolution(spec)
        filters = to_torch(np.ascontiguousarray(stored_weight(v_filters(factors, site.spec), spec)))
        activation = target(value, filters, None, *arguments).movedim(1, -1)
    given: Any = to_numpy(value).astype(np.float64) if gate.kind.reads_input else None
    found = evaluate_gate(gate, to_numpy(activation).astype(np.float64), given)
    return found.astype(site.weight.dtype)
