"""The terms of a sum, as maps of what they are computed from: of which value are all of them maps, or else some?"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import copysign
from typing import TYPE_CHECKING, Generic, Protocol, TypeAlias

from spdexport.forms import compose
from spdexport.forms.base import CannotComposeError
from spdexport.forms.compose import add, times
from spdexport.rewrite.match import Match
from spdexport.rewrite.stages import Addend, NodeT, OddBorder, ReadStage, Unreadable, ValueT, affine_stage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from spdexport.conv import ConvSpec
    from spdexport.rewrite.match import Declined, GraphReader

_FARTHEST = 256
"""Values that are looked at for what a node comes from."""
_MOST_TIMES = 16
"""How often a term may stand in a sum that is put in another order."""

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
        lead: The match that they are like.
    """

    last: NodeT
    adds: frozenset[NodeT]
    factors: Mapping[ValueT, float]
    together: tuple[ValueT, ...]
    lead: Match[NodeT, ValueT]

    @property
    def key(self) -> Key:
        """What tells it from others in a graph, and is the same in a copy of the graph."""
        return tuple(str(getattr(value, "name", None)) for value in (*self.factors, *self.together))

    def ordered(self) -> OrderedSum[ValueT] | None:
        """Return the terms so that either sum begins with one that is multiplied with 1; None where that cannot be.

        A term that is added twice stands there twice; one that is taken half or not at all cannot be in such an order.
        """
        if any(not factor.is_integer() or not 1 <= abs(factor) <= _MOST_TIMES for factor in self.factors.values()):
            return None
        terms = [Addend(value, copysign(1, f)) for value, f in self.factors.items() for _ in range(abs(int(f)))]
        inner = [term for term in terms if term.value in self.together]
        others = [term for term in terms if term.value not in self.together]
        sign = 1.0 if any(term.factor == 1 for term in inner) else -1.0
        inner = sorted((Addend(t.value, sign * t.factor) for t in inner), key=lambda term: term.factor != 1)
        if sign == -1:
            others.sort(key=lambda term: term.factor != 1)
            if others[0].factor != 1:
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


def terms_of(
    search: KnownGraph[NodeT, ValueT], node: NodeT, factor: float, adds: set[NodeT]
) -> Iterator[Addend[ValueT]]:
    """Yield the values that a node adds; instead of a value that is a sum of no map, the values that that adds.

    Args:
        search: What is known of the graph.
        node: Any node; one that adds nothing up has no terms.
        factor: What all of it is multiplied with.
        adds: Receives the further nodes that add.
    """
    for value, own in search.graph.addends(node) or ():
        value = search.root(value)
        inner = search.graph.producer(value)
        is_open = value not in search.matches and not search.only_undoes
        if is_open and inner is not None and search.graph.addends(inner) and not search.shared(value, adds):
            adds.add(inner)
            yield from terms_of(search, inner, factor * own, adds)
        else:
            yield Addend(value, factor * own)


def lead_of(search: KnownGraph[NodeT, ValueT], values: Iterable[ValueT]) -> Match[NodeT, ValueT] | None:
    """Return the match that the others of a sum are like: a fold if there is one, else the last of its terms.

    Where none of the terms is one, what a term scales, shifts or pools.
    """
    known = [search.matches[value] for value in values if value in search.matches]
    folds = (match for match in known if match.is_fold)
    if known or search.only_undoes:
        return next(folds, known[-1] if known else None)
    reached = (inner for value in values for inner in behind_links(search, value))
    return next((search.matches[inner] for inner in reached if inner in search.matches), None)


def behind_links(search: KnownGraph[NodeT, ValueT], value: ValueT) -> Iterator[ValueT]:
    """Yield a value, what it scales, shifts or pools, what that does, and so on, up to the first match."""
    pending, seen = [value], set[ValueT]()
    while pending and len(seen) < _FARTHEST:
        value = pending.pop()
        seen.add(value)
        yield value
        node = search.graph.producer(value)
        if value in search.matches or node is None:
            continue
        # Any channels will do to see what it acts on. Its constants come along, and are nothing's result.
        if search.graph.affine(node, 1, 1) or search.graph.pool(node, 1, 1):
            pending += [inner for inner in map(search.root, search.graph.operands(node)) if inner not in seen]


def unreadable_beside(search: KnownGraph[NodeT, ValueT], terms: Collection[ValueT]) -> Iterator[tuple[NodeT, str]]:
    """Yield the layers of a sum that cannot be read and act on what is added to them, and why they cannot."""
    for value in () if search.only_undoes else terms:
        layer = search.graph.producer(value)
        if value not in search.unreadable or layer is None:
            continue
        data = search.root(search.graph.operands(layer)[0])
        if any(data in behind_links(search, other) for other in terms if other is not value):
            yield layer, search.unreadable[value].reason


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
        if len(factors) < 3:
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

    def writes(self) -> bool:
        """Return whether an addition changes something else than a sum of its own or what a map gives to it alone."""
        return any(self._is_written_into(add) for add in self.adds)

    def _is_written_into(self, add: NodeT) -> bool:
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
