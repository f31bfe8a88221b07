"""The terms of a sum, as maps of what they are computed from: of which value are all of them maps, or else some?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias

from spdexport.forms import compose
from spdexport.forms.base import CannotComposeError
from spdexport.forms.compose import add, times
from spdexport.rewrite.match import Match
from spdexport.rewrite.stages import Addend, NodeT, OddBorder, ReadStage, Unreadable, ValueT, affine_stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from spdexport.conv import ConvSpec
    from spdexport.rewrite.match import Declined, GraphReader

_FARTHEST = 256
"""Values that are looked at for what a node comes from."""

Key: TypeAlias = "tuple[str, ...]"


class KnownGraph(Protocol[NodeT, ValueT]):
    """What the search knows of a graph, as far as the terms of a sum are concerned; ``search.Search`` has the words."""

    graph: GraphReader[NodeT, ValueT]
    unreadable: dict[ValueT, Unreadable]
    declined: list[Declined[NodeT]]

    @property
    def matches(self) -> Mapping[ValueT, Match[NodeT, ValueT]]:
        """The matches found so far, by the value they compute."""

    @property
    def only_undoes(self) -> bool:
        """Whether only what undoes a factorization is composed."""

    def root(self, value: ValueT) -> ValueT:
        """Return the value that this one is, seen through nodes that hand it on unchanged."""

    def shared(self, value: ValueT, nodes: AbstractSet[NodeT]) -> str | None:
        """Return why a value cannot disappear inside ``nodes``, or None if it can."""

    def link_match(self, link: ReadStage[NodeT, ValueT]) -> Match[NodeT, ValueT]:
        """Return a link, or a pooling, as a match."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Obstacle(Generic[NodeT, ValueT]):
    """What is no map between a term and a value.

    Attributes:
        first: The node that is none.
        reason: One clause.
        data: What it is a map of but for that; None where it has to be looked for.
    """

    first: NodeT
    reason: str
    data: ValueT | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Regrouping(Generic[NodeT, ValueT]):
    """A sum of which some terms are one map, if they are added up first: ``z + a(x) + b(x)`` is ``(a(x) + b(x)) + z``.

    Attributes:
        last: The node that gives the sum.
        adds: All nodes that add its terms up.
        factors: The terms, in the order of the graph, and what each is multiplied with.
        together: Those that are one map.
    """

    last: NodeT
    adds: frozenset[NodeT]
    factors: Mapping[ValueT, float]
    together: tuple[ValueT, ...]

    @property
    def key(self) -> Key:
        """What tells it from others in a graph, and is the same in a copy of the graph."""
        return tuple(str(getattr(value, "name", None)) for value in (*self.factors, *self.together))

    def ordered(self) -> OrderedSum[ValueT] | None:
        """Return the terms so that either sum begins with one that is multiplied with 1; None where that cannot be.

        Terms that are multiplied with anything but 1 and -1 cannot be, either.
        """
        inner = [Addend(value, self.factors[value]) for value in self.together]
        others = [Addend(value, factor) for value, factor in self.factors.items() if value not in self.together]
        sign = 1.0 if any(term.factor == 1 for term in inner) else -1.0
        inner = sorted((Addend(t.value, sign * t.factor) for t in inner), key=lambda term: term.factor != 1)
        if sign == -1:
            others.sort(key=lambda term: term.factor != 1)
        if any(abs(factor) != 1 for factor in self.factors.values()) or (sign == -1 and others[0].factor != 1):
            return None
        return OrderedSum(inner=tuple(inner), sign=sign, others=tuple(others))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OrderedSum(Generic[ValueT]):
    """A sum in the order of its additions: ``others[0] - inner - ...`` with a sign of -1, else ``inner + ...``.

    Attributes:
        inner: The terms that are added up first.
        sign: What their sum is multiplied with, 1 or -1.
        others: The other terms.
    """

    inner: tuple[Addend[ValueT], ...]
    sign: float
    others: tuple[Addend[ValueT], ...]


def lead_of(search: KnownGraph[NodeT, ValueT], values: Iterable[ValueT]) -> Match[NodeT, ValueT] | None:
    """Return the match that the others of a sum are like: a fold if there is one, else the last of its terms.

    Where none of the terms is one, what a term scales, shifts or pools.
    """
    known = [search.matches[value] for value in values if value in search.matches]
    folds = (match for match in known if match.is_fold)
    if known or search.only_undoes:
        return next(folds, known[-1] if known else None)
    for value in values:
        inner: ValueT | None = value
        for _ in range(_FARTHEST):
            node = None if inner is None else search.graph.producer(inner)
            if inner in search.matches or node is None:
                break
            # Any channels will do to see what it acts on.
            link = search.graph.affine(node, 1, 1) or search.graph.pool(node, 1, 1)
            inner = None if link is None else search.root(search.graph.operands(node)[0])
        if inner is not None and inner in search.matches:
            return search.matches[inner]
    return None


@dataclass(slots=True, kw_only=True, eq=False)
class Paths(Generic[NodeT, ValueT]):
    """The ways back from the terms of a sum.

    Attributes:
        search: What is known of the graph.
        like: The geometry of one of the terms, which tells the channels and axes of all.
        adds: The nodes that add the terms up.
        found: The path of each term that was walked.
        obstacles: Where paths ended early.
    """

    search: KnownGraph[NodeT, ValueT]
    like: ConvSpec
    adds: AbstractSet[NodeT]
    found: list[list[Match[NodeT, ValueT]]] = field(default_factory=list)
    obstacles: list[Obstacle[NodeT, ValueT]] = field(default_factory=list)

    def to_nearest(self, values: Sequence[ValueT]) -> list[Match[NodeT, ValueT]] | None:
        """Return each term's map of the nearest value that all of them are maps of; None where there is none."""
        self.found = [list(self._path(value)) for value in values]
        for candidate in self.found[0]:
            ends = [next((match for match in path if match.data is candidate.data), None) for path in self.found]
            chosen = [match for match in ends if match is not None]
            if len(chosen) == len(values):
                return chosen
        return None

    def together(self, factors: Mapping[ValueT, float]) -> list[ValueT]:
        """Return the most terms, not all, that are one map of a value with a layer in it; none where no two are.

        Args:
            factors: The terms, in the order in which ``to_nearest`` was given them, and their factors.
        """
        if len(factors) < 3 or any(self._is_written_into(add) for add in self.adds):
            return []
        best: list[ValueT] = []
        for data in dict.fromkeys(match.data for path in self.found for match in path):
            maps: dict[ValueT, Match[NodeT, ValueT]] = {}
            for value, path in zip(factors, self.found, strict=True):
                match = next((match for match in path if match.data is data), None)
                if match is not None and not (match.nodes and self.search.shared(value, self.adds)):
                    maps[value] = match
            part = _alike(maps, factors)
            best = part if len(best) < len(part) < len(factors) else best
        return best

    def _is_written_into(self, add: NodeT) -> bool:
        """Whether an addition changes something else than a sum of its own or what a map gives to it alone."""
        search = self.search
        if not search.graph.writes(add):
            return False
        value = search.root(search.graph.operands(add)[0])
        own = value in search.matches or search.graph.producer(value) in self.adds
        return not own or search.shared(value, self.adds) is not None

    def why_none(self) -> Obstacle[NodeT, ValueT] | None:
        """Return what keeps terms that look like maps of the same value from it; None where nothing looks so."""
        reached = {match.data for path in self.found for match in path}
        for obstacle in self.obstacles:
            origins = self._origins(obstacle.first) if obstacle.data is None else (obstacle.data,)
            if any(value in reached for value in origins):
                return obstacle
        ends = [path[1] for path in self.found if len(path) > 1 and path[1].layers]
        alike = [match for match in ends if sum(match.data is other.data for other in ends) > 1]
        if not alike or alike[0].last is None or any(known.second in self.adds for known in self.search.declined):
            return None
        reason = "something of another input is added to it in between"
        return Obstacle(first=alike[0].last, data=alike[0].data, reason=reason)

    def _path(self, value: ValueT) -> Iterator[Match[NodeT, ValueT]]:
        """A term as a map of itself, of what it is computed from, of what that is computed from, and so on."""
        search = self.search
        match: Match[NodeT, ValueT] = Match(data=value, stage=affine_stage(self.like.out_channels, self.like.axes))
        if not search.only_undoes:
            yield match
        if value in search.matches:
            match = search.matches[value]
            yield match
        while not search.only_undoes:
            problem = search.shared(match.data, match.nodes | self.adds)
            if problem is not None:
                # What is written into a padding uses it too: then the border is the reason.
                if not self._look_at_border(match):
                    self._stop(match.data, problem)
                return
            further = self._further(match)
            if further is None:
                break
            yield further
            match = further
        self._look_at_border(match)

    def _look_at_border(self, match: Match[NodeT, ValueT]) -> bool:
        """Note a padding in front of a map whose border is filled with what is no bias; return whether one is."""
        search = self.search
        node = search.graph.producer(match.data)
        filling = None if node is None else search.graph.filled(node)
        if node is None or filling is None:
            return False
        earlier = search.matches.get(search.root(filling.data))
        reason = filling.reason if isinstance(filling, OddBorder) else "its border is filled with other than its bias"
        if earlier is not None:
            self.obstacles.append(Obstacle(first=node, data=earlier.data, reason=reason))
        return earlier is not None

    def _stop(self, value: ValueT, reason: str) -> None:
        """Note why a value is the last of a path."""
        node = self.search.graph.producer(value)
        if node is not None:
            self.obstacles.append(Obstacle(first=node, reason=reason))

    def _origins(self, node: NodeT) -> Iterator[ValueT]:
        """What a node comes from, whatever is in between, as long as that looks like a map.

        Behind a product with what is not constant, nothing that is used elsewhere too: that is an activation.
        """
        search, seen = self.search, set[ValueT]()
        pending = [(node, False)]
        own = search.matches.get(search.graph.result(node))
        if own is not None:
            yield own.data
            before = search.graph.producer(own.data)
            pending = [] if before is None else [(before, False)]
        while pending and len(seen) < _FARTHEST:
            node, multiplied = pending.pop()
            is_layer, link = search.graph.layer(node) is not None, self._link(node)
            is_product = not is_layer and link is None and search.graph.is_product(node)
            if not is_layer and not is_product and link is None:
                continue
            operands = search.graph.operands(node)[: 1 if is_layer else None]
            for value in {search.root(operand) for operand in operands} - seen:
                shared = search.shared(value, {node}) is not None
                if is_product and shared:
                    continue
                inner = search.matches[value].data if value in search.matches else value
                seen |= {value, inner}
                yield from dict.fromkeys((value, inner))
                further = search.graph.producer(inner)
                if further is not None and not (shared and (multiplied or is_product)):
                    pending.append((further, multiplied or is_product))

    def _link(self, node: NodeT) -> ReadStage[NodeT, ValueT] | Unreadable | None:
        """A node as a link or a pooling between maps of the channels of the sum."""
        graph, spec = self.search.graph, self.like
        return graph.affine(node, spec.out_channels, spec.axes) or graph.pool(node, spec.out_channels, spec.axes)

    def _further(self, match: Match[NodeT, ValueT]) -> Match[NodeT, ValueT] | None:
        """The match and the node, or match, in front of it; None where that is no part of one map."""
        search, spec = self.search, match.stage.spec
        node = search.graph.producer(match.data)
        if node is None or search.graph.writes(node):
            return None
        earlier = search.matches.get(match.data)
        if earlier is None:
            link = search.graph.affine(node, spec.in_channels, spec.axes)
            link = link or search.graph.pool(node, spec.in_channels, spec.axes)
            if not isinstance(link, ReadStage):
                reason = "what it, or a layer beside it, is multiplied with is not constant"
                if match.data in search.unreadable:
                    self._stop(match.data, f"of a layer beside it, {search.unreadable[match.data].reason}")
                elif link is not None or search.graph.is_product(node):
                    self._stop(match.data, reason if link is None else link.reason)
                return None
            earlier = search.link_match(link)
        try:
            return match.behind(earlier, compose(earlier.stage, match.stage))
        except CannotComposeError as error:
            self._stop(match.data, str(error))
            return None


def _alike(maps: Mapping[ValueT, Match[NodeT, ValueT]], factors: Mapping[ValueT, float]) -> list[ValueT]:
    """Return the terms, maps of one value, that can be added to the first layer among them, folds before others."""
    layers = sorted((value for value, match in maps.items() if match.layers), key=lambda v: not maps[v].is_fold)
    if not layers:
        return []
    lead, *_ = layers
    stage, part = times(maps[lead].stage, factors[lead]), [lead]
    for value, match in maps.items():
        if value is lead:
            continue
        try:
            stage = add(stage, times(match.stage, factors[value]))
        except CannotComposeError:
            continue
        part.append(value)
    return [value for value in factors if value in part] if len(part) > 1 else []
