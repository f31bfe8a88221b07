"""A network run segment by segment between its layers, over all batches at once: what each layer reads, in one pass.

The nodes of the graph, in their order, are cut in front of every layer. What crosses a cut is kept for every batch, in
memory or in scratch files, so that a dense network and its compressed copy go forward side by side: when a layer is
fitted, all in front of it is fitted already, and nothing is run twice.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.errors import SourceError
from spdexport.files.scratch import writing_scratch
from spdexport.ort.sessions import RuntimeFailure, Session, SessionSettings, open_session
from spdexport.rewrite.onnx_rewrite import place_onnx_forms
from spdexport.rewrite.onnx_scopes import bodies, node_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from spdexport.conv import Array, ConvSite
    from spdexport.forms import Form

IN_MEMORY = 1 << 30
"""Bytes of activations that are held in memory; what is more is in scratch files, which the system caches as it can."""


class Shelf:
    """Arrays that are kept for later, in memory as long as there is room, else in files of a folder.

    Args:
        folder: A scratch folder, for what finds no room.
        room: Bytes.
    """

    def __init__(self, folder: Path, *, room: int = IN_MEMORY) -> None:
        self._folder, self._room, self._held, self._number = folder, room, 0, 0

    def put(self, array: Array) -> Kept:
        """Keep an array, which is not changed any more."""
        if self._held + array.nbytes <= self._room:
            self._held += array.nbytes
            return Kept(self, array, None)
        self._number += 1
        path = self._folder / f"{self._number}.npy"
        with writing_scratch(path):
            np.save(path, array, allow_pickle=False)
        return Kept(self, None, path)

    def forget(self, size: int) -> None:
        """Note that so many bytes in memory are free again."""
        self._held -= size


class Kept:
    """One array on a shelf; it leaves the shelf with the last reference to it."""

    def __init__(self, shelf: Shelf, array: Array | None, path: Path | None) -> None:
        self._shelf, self._array, self._path = shelf, array, path

    def get(self) -> Array:
        """Return the array."""
        if self._array is not None:
            return self._array
        assert self._path is not None, "an array is in memory or in a file"
        found: Array = np.load(self._path, allow_pickle=False)
        return found

    def __del__(self) -> None:
        """Free its room."""
        if self._array is not None:
            self._shelf.forget(self._array.nbytes)
        elif self._path is not None:
            with suppress(OSError):  # the folder may be gone already
                self._path.unlink()


Live = dict[str, "tuple[Kept, ...]"]
"""Values by name, each with one array for every batch."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """The nodes from one layer up to the next.

    Attributes:
        model: They alone, as a model; the layer, if there is one, is its first node.
        site: The layer as it is found in ``model``; None for what is in front of the first.
        reads: The name of what the layer reads.
        gives: The name of what the layer gives.
        inputs: What is used in it and comes from before.
        outputs: What is made in it and used behind it.
        added: The name of what is added to what the layer gives, where all of it comes from before; "" where nothing
            is, or where it is made from what the layer gives, or behind it.
    """

    model: ir.Model
    site: ConvSite | None
    reads: str
    gives: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    added: str

    def with_form(self, form: Form | None) -> ir.Model:
        """Return a copy of the model with a form in the place of the layer; None for the layer itself."""
        if form is None:
            return self.model.clone()
        assert self.site is not None, "only a layer takes a form"
        return place_onnx_forms(self.model, [(self.site, form)])

    def session(
        self, model: ir.Model, outputs: Iterable[str], feeds: Mapping[str, Array], threads: int | None
    ) -> Session:
        """Open a session of the segment.

        Args:
            model: What ``with_form`` gave.
            outputs: The values that it is to give.
            feeds: One batch of its inputs, which tells their types.
            threads: Of one operator; None leaves it to ONNX Runtime.

        Raises:
            RuntimeFailure: ONNX Runtime does not load it.
        """
        graph = model.graph
        for value in graph.inputs:
            array = feeds[value.name or ""]
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
            value.shape = ir.Shape([None] * array.ndim)
        values = {value.name: value for node in graph for value in node.outputs}
        graph.outputs.clear()
        for name in outputs:
            # Sizes that the exporter noted are those of its own example.
            values[name].shape = None
            graph.outputs.append(values[name])
        proto = ir.to_proto(ir.Model(graph, ir_version=model.ir_version, functions=tuple(model.functions.values())))
        return open_session(proto.SerializeToString(), SessionSettings(optimized=True, threads=threads))


@dataclass(frozen=True, kw_only=True, eq=False)
class CutGraph:
    """A graph cut in front of each of its layers.

    Attributes:
        model: The graph.
        sites: The layers, in the order in which they are run.
        threads: Of one operator; None leaves it to ONNX Runtime.
    """

    model: ir.Model
    sites: tuple[ConvSite, ...]
    threads: int | None = None

    @classmethod
    def of(cls, model: ir.Model, sites: Iterable[ConvSite], *, threads: int | None = None) -> CutGraph:
        """Cut a graph in front of some of its layers; its nodes are in an order in which they can run."""
        order = {key: index for index, key in enumerate(node_keys(model.graph))}
        return cls(model=model, sites=tuple(sorted(sites, key=lambda site: order[site.node])), threads=threads)

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """What is in front of the first layer, then a segment for each layer in the order of ``sites``."""
        nodes = list(self.model.graph)
        keys, order = node_keys(self.model.graph), {node: index for index, node in enumerate(nodes)}
        starts = [0, *(order[keys[site.node]] for site in self.sites)]
        ends = [*starts[1:], len(nodes)]
        made = [_made(nodes[start:end]) for start, end in zip(starts, ends, strict=True)]
        used = [_used(nodes[start:end]) for start, end in zip(starts, ends, strict=True)]
        needed: set[ir.Value] = set()
        live: list[set[ir.Value]] = [set()] * len(made)
        # What the last layer's segment gives out is of no use to those who look at layers.
        for number in range(len(made) - 1, -1, -1):
            live[number] = set(needed)
            needed = (needed - made[number]) | {value for value in used[number] if value not in made[number]}
        return tuple(
            self._segment(
                nodes[start:end], None if number == 0 else self.sites[number - 1], live[number] & made[number]
            )
            for number, (start, end) in enumerate(zip(starts, ends, strict=True))
        )

    def inputs(self) -> tuple[str, ...]:
        """Return the names of the graph's inputs that some node uses."""
        used = set().union(*(segment.inputs for segment in self.segments))
        return tuple(value.name or "" for value in self.model.graph.inputs if value.name in used)

    def _segment(self, nodes: Sequence[ir.Node], site: ConvSite | None, outputs: set[ir.Value]) -> Segment:
        made, used = _made(nodes), _used(nodes)
        stored = [value for value in used if value.is_initializer() and value not in made]
        inputs = [value for value in used if value not in made and not value.is_initializer()]
        given = [value for node in nodes for value in node.outputs if value in outputs]
        view = ir.GraphView(
            inputs,
            given,
            nodes=nodes,
            initializers=stored,
            opset_imports=self.model.graph.opset_imports,
            name=self.model.graph.name,
        )
        functions = tuple(self.model.functions.values())
        model = ir.Model(view.clone(), ir_version=self.model.ir_version, functions=functions)
        first = next(iter(model.graph), None)
        reads = gives = added = ""
        if site is not None and first is not None:
            site = replace(site, node=next(iter(node_keys(model.graph))))
            reads, gives = (
                value.name or "" for value in (nodes[0].inputs[0], nodes[0].outputs[0]) if value is not None
            )
            other = _added(nodes[0].outputs[0])
            added = (other.name or "") if other in inputs else ""
        return Segment(
            model=model,
            site=site,
            reads=reads,
            gives=gives,
            inputs=tuple(value.name or "" for value in inputs),
            outputs=tuple(value.name or "" for value in given),
            added=added,
        )


def _added(value: ir.Value) -> ir.Value | None:
    """What is added to a value, biases aside, where that is all that is done with it."""
    while len(uses := list(value.uses())) == 1 and not value.is_graph_output() and uses[0].node.op_type == "Add":
        node = uses[0].node
        other = node.inputs[1 - uses[0].idx]
        if other is None or not other.is_initializer():
            return other
        value = node.outputs[0]
    return None


def _made(nodes: Iterable[ir.Node]) -> set[ir.Value]:
    return {value for node in nodes for value in node.outputs}


def _used(nodes: Iterable[ir.Node]) -> list[ir.Value]:
    """The values that nodes, and the graphs inside of them, take from the graph around, each once."""
    found: dict[ir.Value, None] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None:
                found[value] = None
        for graph in chain.from_iterable(bodies(node).values()):
            inner = _made(graph) | set(graph.inputs) | set(graph.initializers.values())
            found.update(dict.fromkeys(value for value in _used(graph) if value not in inner))
    return list(found)


class Walk:
    """One network on its way through the segments of a graph, with all batches at the same cut.

    Args:
        cut: The graph.
        live: What its inputs are.
        shelf: Where values are kept.
        batches: How many batches there are.
    """

    def __init__(self, cut: CutGraph, live: Live, shelf: Shelf, batches: int) -> None:
        self.cut, self._live, self._shelf, self._batches, self._next = cut, live, shelf, batches, 0

    @classmethod
    def begin(cls, cut: CutGraph, batches: Iterable[Mapping[str, Array]], shelf: Shelf) -> Walk:
        """Begin with batches of the graph's inputs, and stop in front of its first layer."""
        names = cut.inputs()
        kept: dict[str, list[Kept]] = {name: [] for name in names}
        number = 0
        for batch in batches:
            number += 1
            for name in names:
                kept[name].append(shelf.put(batch[name]))
        walk = cls(cut, {name: tuple(values) for name, values in kept.items()}, shelf, number)
        walk.step()
        return walk

    def fork(self) -> Walk:
        """Return another network that is at the same cut, and was the same so far."""
        other = Walk(self.cut, dict(self._live), self._shelf, self._batches)
        other._next = self._next
        return other

    @property
    def site(self) -> ConvSite | None:
        """The layer that the walk stands in front of; None at the end."""
        number = self._next
        return self.cut.sites[number - 1] if number <= len(self.cut.sites) else None

    def added(self) -> tuple[Kept, ...]:
        """Return what is added to what that layer gives, for each batch; nothing where ``Segment.added`` is empty."""
        name = self.cut.segments[self._next].added
        return self._live[name] if name else ()

    def reads(self) -> Iterator[Array]:
        """Yield what that layer reads, for each batch."""
        yield from (kept.get() for kept in self._live[self.cut.segments[self._next].reads])

    def step(self, form: Form | None = None, *, keep: bool = False) -> tuple[Kept, ...]:
        """Go on to the next layer, and return what the layer gave for each batch if ``keep``, else nothing.

        Args:
            form: What stands in the place of the layer.
            keep: Whether to return what the layer gave.

        Raises:
            SourceError: ONNX Runtime does not run the segment.
        """
        segment = self.cut.segments[self._next]
        wanted = list(dict.fromkeys((*segment.outputs, *([segment.gives] if keep else []))))
        made: dict[str, list[Kept]] = {name: [] for name in wanted}
        for values in self._run(segment, segment.with_form(form), wanted):
            for name, array in values.items():
                made[name].append(self._shelf.put(array))
        self._next += 1
        used = set().union(*(one.inputs for one in self.cut.segments[self._next :]))
        found = {**self._live, **{name: tuple(values) for name, values in made.items()}}
        self._live = {name: values for name, values in found.items() if name in used}
        return tuple(made[segment.gives]) if keep else ()

    def front(self, form: Form) -> Iterator[Array]:
        """Yield what the last stage of a form would read in the place of the next layer, for each batch.

        Raises:
            SourceError: ONNX Runtime does not run the segment.
        """
        segment = self.cut.segments[self._next]
        model = segment.with_form(form)
        value = next(v for node in model.graph for v in node.outputs if v.name == segment.gives)
        last = value.producer()
        while last is not None and last.op_type == "Add":  # the bias of a matrix product
            before = last.inputs[0]
            last = None if before is None else before.producer()
        read = None if last is None else last.inputs[0]
        assert read is not None, "a form ends with a layer"
        name = read.name or ""
        yield from (values[name] for values in self._run(segment, model, [name]))

    def _run(self, segment: Segment, model: ir.Model, outputs: Sequence[str]) -> Iterator[Mapping[str, Array]]:
        """What a segment gives for each batch."""
        session: Session | None = None
        if not outputs:
            return
        for number in range(self._batches):
            feeds = {name: self._live[name][number].get() for name in segment.inputs}
            try:
                if session is None:
                    session = segment.session(model, outputs, feeds, self.cut.threads)
                values = session.run(feeds, outputs)
            except RuntimeFailure as failure:
                raise SourceError(
                    f"ONNX Runtime does not run a part of the model: {failure}",
                    where="the nodes from " + (segment.site.name if segment.site else "the inputs") + " on",
                    hint="Leave that layer alone with --exclude.",
                ) from failure
            yield values
