"""The terms of a sum, as maps of what they are computed from: of which value are all of them maps?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol

from spdexport.forms import compose
from spdexport.forms.base import CannotComposeError
from spdexport.rewrite.match import Match
from spdexport.rewrite.stages import NodeT, Unreadable, ValueT, affine_stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from spdexport.conv import ConvSpec
    from spdexport.rewrite.match import Declined, GraphReader
    from spdexport.rewrite.stages import ReadStage


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
        data: The value in front of it.
        reason: One clause.
    """

    first: NodeT
    data: ValueT | None
    reason: str


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
        """For each term its map of the nearest value that all of them are maps of; None where there is none."""
        self.found = [list(self._path(value)) for value in values]
        for candidate in self.found[0]:
            ends = [next((match for match in path if match.data is candidate.data), None) for path in self.found]
            chosen = [match for match in ends if match is not None]
            if len(chosen) == len(values):
                return chosen
        return None

    def why_none(self) -> Obstacle[NodeT, ValueT] | None:
        """What keeps terms that look like maps of the same value from it; None where nothing looks so."""
        reached = {match.data for path in self.found for match in path}
        ahead = [obstacle for obstacle in self.obstacles if obstacle.data in reached]
        if ahead:
            return ahead[0]
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
        unread, node = search.unreadable.get(value), search.graph.producer(value)
        if unread is not None and node is not None:
            data = search.root(search.graph.operands(node)[0])
            self.obstacles.append(Obstacle(first=node, data=data, reason=f"of a layer beside it, {unread.reason}"))
        if value in search.matches:
            match = search.matches[value]
            yield match
        while not search.only_undoes and not search.shared(match.data, match.nodes | self.adds):
            further = self._further(match)
            if further is None:
                return
            yield further
            match = further
        self._look_at_border(match)

    def _look_at_border(self, match: Match[NodeT, ValueT]) -> None:
        """Note a padding in front of a map whose border is filled with what is no bias."""
        search, spec = self.search, match.stage.spec
        node = search.graph.producer(match.data)
        filling = None if node is None else search.graph.filled(node, spec.in_channels, spec.axes)
        if node is None or filling is None:
            return
        earlier = search.matches.get(search.root(search.graph.operands(node)[0]))
        reason = filling.reason if isinstance(filling, Unreadable) else "its border is filled with other than its bias"
        self.obstacles.append(Obstacle(first=node, data=earlier.data if earlier else None, reason=reason))

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
            if isinstance(link, Unreadable):
                operands = search.graph.operands(node)
                data = search.root(operands[0]) if operands else None
                self.obstacles.append(Obstacle(first=node, data=data, reason=link.reason))
            if link is None or isinstance(link, Unreadable):
                return None
            earlier = search.link_match(link)
        try:
            return match.behind(earlier, compose(earlier.stage, match.stage))
        except CannotComposeError as error:
            self.obstacles.append(Obstacle(first=node, data=earlier.data, reason=str(error)))
            return None
