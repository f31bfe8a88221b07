"""The search for layers that are one layer together, in graphs of any kind; ``match`` has the algebra.

For the normal form in which two files are compared, ``Search(lone=True)`` takes layers alone for folds in a sum, too:
otherwise a sum of two dense layers would stay where the sum of the same two, factorized, goes. Beyond that it only does
what undoes a factorization, a pointwise layer behind another and sums of one geometry, so that what it does never
depends on the number of components. Where layers take forms of other stages, such as k x 1 and 1 x k, or 1 x 1, k x k
and 1 x 1, ``Search(beyond=in_chains(...))`` has their geometries: rows of layers with just these are composed as well,
in both files alike, and all other consecutive convolutions stay what the model has. ``Search(whole=True)`` composes
whatever composes, a scale behind a single layer as well: one of the two files may be a fold of the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Generic

from spdexport.conv import Skipped
from spdexport.forms import Stage, compose
from spdexport.forms.base import CannotComposeError
from spdexport.forms.compose import add, appends_pointwise, times
from spdexport.rewrite.match import Declined, Match, filled, first_known, template_of
from spdexport.rewrite.stages import CHANGED, POOLED, Filling, NodeT, ReadStage, Unreadable, ValueT
from spdexport.rewrite.sums import Paths, Regrouping, lead_of, terms_of, unreadable_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from spdexport.conv import ConvSpec
    from spdexport.rewrite.match import Chain, GraphReader


@dataclass(slots=True, kw_only=True)
class Search(Generic[NodeT, ValueT]):
    """The matches found so far, by the value they compute; nodes must be visited in the graph's order.

    Attributes:
        graph: Tells what nodes are.
        lone: Whether this is a normal form, in which a layer alone is enough for a sum to be folded.
        whole: Of the normal form, whether everything that composes is composed.
        beyond: Of the normal form, which rows of layers are composed beside those with a pointwise second one, if any.
    """

    graph: GraphReader[NodeT, ValueT]
    lone: bool = False
    whole: bool = False
    beyond: Callable[[Chain], bool] | None = None
    matches: dict[ValueT, Match[NodeT, ValueT]] = field(default_factory=dict)
    absorbed: set[ValueT] = field(default_factory=set)
    unreadable: dict[ValueT, Unreadable] = field(default_factory=dict)
    declined: list[Declined[NodeT]] = field(default_factory=list)
    regroupings: list[Regrouping[NodeT, ValueT]] = field(default_factory=list)

    @property
    def only_undoes(self) -> bool:
        """Whether only what undoes a factorization is composed."""
        return self.lone and not self.whole

    def is_fold(self, match: Match[NodeT, ValueT]) -> bool:
        """Return whether a match is to become one layer."""
        return bool(match.layers) and len(match.nodes) > 1 if self.whole else match.is_fold

    def folds(self) -> list[Match[NodeT, ValueT]]:
        """Return the matches that are folds and not part of a larger match."""
        found = (match for value, match in self.matches.items() if value not in self.absorbed)
        return [self._complete(match) for match in found if self.is_fold(match)]

    def folds_in(self, match: Match[NodeT, ValueT]) -> list[Match[NodeT, ValueT]]:
        """Return the folds that a match was made of."""
        return [self._complete(part) for part in match.parts if self.is_fold(part)]

    def declined_outside(self, folded: Collection[Collection[NodeT]]) -> tuple[Skipped, ...]:
        """Return the pairs that are in none of the folds.

        One may be declined at first and folded after all in a sum.
        """
        outside = (d for d in self.declined if not any(d.first in nodes and d.second in nodes for nodes in folded))
        return tuple(dict.fromkeys(d.skipped for d in outside))

    def visit(self, node: NodeT) -> None:
        """Find the match that ends with this node, if there is one."""
        if self.graph.passed(node) is not None:
            return
        layer = self.graph.layer(node)
        if isinstance(layer, Unreadable):
            self._decline_unreadable(node, layer)
            self.unreadable[self.graph.result(node)] = layer
            return
        match = self._extended(node) or self._sum(node) if layer is None else self._layer(layer)
        if match is not None:
            self.matches[self.graph.result(node)] = match
            self.absorbed |= {self.graph.result(inner) for inner in match.nodes if inner is not node}

    def decline(self, match: Match[NodeT, ValueT], first: NodeT, reason: str, second: NodeT | None = None) -> None:
        """Note that the layers from ``first`` to ``second``, or else the end of the match, are not one layer."""
        name = self.graph.layer_name(match.layers, match.bias)
        skipped = Skipped(name=name, kind=match.stage.spec.kind, reason=reason)
        last = second if second is not None else match.last
        assert last is not None, "a match with a layer has a last node"
        self.declined.append(Declined(first=first, second=last, skipped=skipped, nodes=match.nodes))

    def _layer(self, layer: ReadStage[NodeT, ValueT]) -> Match[NodeT, ValueT]:
        single = Match(
            data=self.root(layer.data),
            stage=layer.stage,
            nodes=frozenset((layer.node,)),
            layers=(layer,),
            template=layer.node,
            last=layer.node,
            bias=layer.bias,
        )
        return self._behind_another(single)

    def _decline_unreadable(self, node: NodeT, why: Unreadable) -> None:
        """A layer that cannot be read is worth a word only where it directly follows a layer."""
        earlier = self.matches.get(self.root(self.graph.operands(node)[0]))
        if earlier is not None and earlier.last is not None:
            self._decline_layer(node, earlier.last, node, why.reason)

    def _decline_layer(self, layer: NodeT, first: NodeT, second: NodeT, reason: str) -> None:
        skipped = Skipped(name=self.graph.node_name(layer), kind=self.graph.kind(layer), reason=reason)
        self.declined.append(Declined(first=first, second=second, skipped=skipped))

    def decline_order(self, found: Regrouping[NodeT, ValueT], reason: str) -> None:
        """Note why the terms of a sum that are one layer cannot be added up first."""
        assert found.lead.last is not None, "the input itself is not among the matches"
        reason = f"terms of the sum that are one layer cannot be added up first: {reason}"
        self.decline(found.lead, found.lead.last, reason, second=found.last)

    def _behind_another(self, match: Match[NodeT, ValueT]) -> Match[NodeT, ValueT]:
        """The match composed with the one in front of it, links between them included, or with the links alone."""
        value, nodes = match.data, set(match.nodes)
        between: list[ReadStage[NodeT, ValueT]] = []
        spec, problem, reason = match.stage.spec, None, None
        while value not in self.matches:
            node = self.graph.producer(value)
            if node is None:
                return self._led(match, between)
            link = self.graph.affine(node, spec.in_channels, spec.axes) or self._pool(node, spec)
            problem = problem or self.shared(value, nodes)
            if value in self.unreadable:
                self.decline(match, node, f"of the layer in front, {self.unreadable[value].reason}")
                return self._led(match, between)
            ahead: ValueT | None = None
            if isinstance(link, ReadStage):
                between += [link] if reason is None else []
                ahead = self.root(link.data)
            elif isinstance(link, Unreadable) or self.graph.is_product(node):
                # No number per channel. The pair is still named, if a layer is in front of it.
                reason = link.reason if isinstance(link, Unreadable) else "the mask between is not constant"
                problem = problem or reason
                ahead = self._ahead(node, through=isinstance(link, Unreadable))
            if ahead is None:
                return self._led(match, between)
            value = ahead
            nodes.add(node)
        earlier = self._begun(value, match)
        # A matrix product over the last axis of a feature map, or behind a view that is not seen through.
        other = "the two map other axes" if earlier.stage.spec.axes != spec.axes else None
        problem = problem or other or self.shared(value, nodes)
        if problem is None:
            try:
                stage = self._composed(earlier, [link.stage for link in reversed(between)], match)
            except CannotComposeError as error:
                problem = str(error)
            else:
                bias = first_known([match.bias, *(link.bias for link in between)])
                joined = replace(match, nodes=frozenset(nodes), bias=bias).behind(earlier, stage)
                return replace(joined, parts=(earlier, match))
        assert earlier.last is not None, "the input itself is not among the matches"
        self.declined = [known for known in self.declined if known.second not in nodes - match.nodes]
        self.decline(match, earlier.last, problem)  # and no word of a norm between the two
        return match

    def _ahead(self, node: NodeT, *, through: bool) -> ValueT | None:
        """The layer's output, or with ``through`` what else is computed, that a node between layers reads."""
        operands = [self.root(value) for value in self.graph.operands(node)]
        layers = [value for value in operands if value in self.matches and not self.shared(value, {node})]
        others = [value for value in operands if through and self.graph.producer(value) is not None]
        return first_known((*layers, *others))

    def _pool(self, node: NodeT, spec: ConvSpec) -> ReadStage[NodeT, ValueT] | Unreadable | None:
        """A pooling of one number as a link; ``Unreadable`` for another one."""
        pool = None if self.only_undoes else self.graph.pool(node, spec.in_channels, spec.axes)
        if isinstance(pool, ReadStage) and any(size > 1 for size in pool.stage.spec.kernel):
            return Unreadable(reason=POOLED)
        return pool

    def _begun(self, value: ValueT, match: Match[NodeT, ValueT]) -> Match[NodeT, ValueT]:
        """The match in front of another one, parted again where only its last layer begins a chain with that one.

        A 1x1 layer that a chain begins with was composed with the layer in front of it, which is not of the chain.
        """
        earlier = self.matches[value]
        if self.beyond is None or len(earlier.parts) != 2 or len(match.layers) != 1:
            return earlier
        before, last = earlier.parts
        whole, own = (tuple(layer.stage.spec for layer in (*m.layers, *match.layers)) for m in (earlier, last))
        if before.data is last.data or before.last is None or self.beyond(whole) or not self.beyond(own):
            return earlier
        self.absorbed.discard(self.graph.result(before.last))
        self.matches[value] = last
        return last

    def _composed(self, first: Match[NodeT, ValueT], between: list[Stage], second: Match[NodeT, ValueT]) -> Stage:
        if self.only_undoes and not appends_pointwise(first.stage.spec, second.stage.spec):
            row = tuple(layer.stage.spec for layer in (*first.layers, *second.layers))
            if self.beyond is None or not self.beyond(row):
                raise CannotComposeError("the second does more than mix the channels of the first within its groups")
        return reduce(compose, [first.stage, *between, second.stage])

    def _led(self, match: Match[NodeT, ValueT], links: Sequence[ReadStage[NodeT, ValueT]]) -> Match[NodeT, ValueT]:
        """The match with those of the links in front of it that are part of the same map, the nearest first."""
        for link in () if self.only_undoes else links:
            # A pooling of a layer's own stays: what it leaves out need not be gone through.
            if any(step > 1 for step in link.stage.spec.stride):
                return match
            # What is in front of a fold stays, so that nothing may be written to it.
            problem = self.shared(match.data, match.nodes)
            if problem is None and not self.graph.writes(link.node):
                try:
                    match = match.behind(self.link_match(link), compose(link.stage, match.stage))
                    continue
                except CannotComposeError as error:
                    problem = str(error)
            if problem is not None and link.is_norm:
                self.decline(match, link.node, problem)
            return match
        return match

    def link_match(self, link: ReadStage[NodeT, ValueT]) -> Match[NodeT, ValueT]:
        """Return a link, or a pooling, as a match."""
        return Match(
            data=self.root(link.data),
            stage=link.stage,
            nodes=frozenset((link.node,)),
            pools=(link,) if any(size > 1 for size in link.stage.spec.kernel) else (),
            last=link.node,
            bias=link.bias,
            normed=link.is_norm,
        )

    def _extended(self, node: NodeT) -> Match[NodeT, ValueT] | None:
        """A match and the link behind it."""
        filling = None if self.only_undoes else self.graph.filled(node)
        if filling is not None:
            return self._filled(filling) if isinstance(filling, Filling) else None
        for value in map(self.root, self.graph.operands(node)):
            match = self.matches.get(value)
            if match is None:
                continue
            spec, problem = match.stage.spec, self.shared(value, {node})
            if problem is not None and self.only_undoes:
                continue
            link = (
                self.graph.behind(node, match)
                if self.only_undoes
                else self.graph.affine(node, spec.out_channels, spec.axes)
            )
            if isinstance(link, ReadStage) and self.root(link.data) is value and problem is None:
                try:
                    return self.link_match(link).behind(match, compose(match.stage, link.stage))
                except CannotComposeError:
                    continue  # what comes behind it will tell, if that is a layer
            if link is not None and link.is_norm and match.layers and match.last is not None:
                problem = link.reason if isinstance(link, Unreadable) else problem
                if problem is not None:
                    self.decline(match, match.last, problem, second=node)
        return None

    def _filled(self, filling: Filling[NodeT, ValueT]) -> Match[NodeT, ValueT] | None:
        """A match and a padding with its own bias."""
        value = self.root(filling.data)
        match = self.matches.get(value)
        return None if match is None or self.shared(value, filling.nodes) else filled(match, filling)

    # --- sums ---

    def _sum(self, node: NodeT) -> Match[NodeT, ValueT] | None:
        """The sum of maps of the same input, with a layer in one of them; of a part of them, that part is noted."""
        adds = {node}
        factors: dict[ValueT, float] = {}
        for term in terms_of(self, node, 1.0, adds):
            factors[term.value] = factors.get(term.value, 0.0) + term.factor
        lead = lead_of(self, factors)
        if lead is None or len(factors) < 2:
            for layer, reason in unreadable_beside(self, factors):
                self._decline_layer(layer, layer, node, reason)
            return None
        paths = Paths(search=self, like=lead.stage.spec, adds=adds)
        whole = self._added(node, factors, paths, lead)
        if whole is None and not self.only_undoes and (part := paths.together(factors)):
            found = Regrouping(last=node, adds=frozenset(adds), factors=factors, together=tuple(part), lead=lead)
            if found.ordered() is None:
                self.decline_order(found, "one of them is taken other than a whole number of times")
            elif paths.writes():
                self.decline_order(found, CHANGED)
            else:
                self.regroupings.append(found)
        return whole

    def _added(
        self, node: NodeT, factors: Mapping[ValueT, float], paths: Paths[NodeT, ValueT], lead: Match[NodeT, ValueT]
    ) -> Match[NodeT, ValueT] | None:
        """All terms of a sum as one map; None where they are none, which is noted if it looks otherwise."""
        adds = paths.adds
        values = list(factors)
        chosen = paths.to_nearest(values)
        if chosen is None:
            if (why := paths.why_none()) is not None:
                self.decline(lead, why.first, why.reason, second=node)
            return None
        if not any(match.layers for match in chosen):
            return None
        lead = next((match for match in chosen if match.is_fold), [match for match in chosen if match.layers][-1])
        inside = (value for value, match in zip(values, chosen, strict=True) if match.nodes)
        problem = next(filter(None, (self.shared(value, adds) for value in inside)), None)
        written = {self.root(self.graph.operands(inner)[0]) for inner in adds if self.graph.writes(inner)}
        if any(value in written and not match.nodes for value, match in zip(values, chosen, strict=True)):
            problem = problem or "it is added in place to its own input"
        if problem is None and self.only_undoes and len({match.stage.spec for match in chosen}) > 1:
            problem = "what is added to it has another geometry"
        if problem is None:
            try:
                ordered = sorted(zip(chosen, factors.values(), strict=True), key=lambda pair: pair[0] is not lead)
                stage = reduce(add, [times(match.stage, factor) for match, factor in ordered])
            except CannotComposeError as error:
                problem = str(error)
        others = [match for match in chosen if match is not lead]
        if problem is not None:
            first = next((match.last for match in others if match.last is not None), lead.last)
            assert first is not None, "the lead has a layer"
            self.decline(lead, first, problem, second=node)
            return None
        everything = [lead, *others]
        return self._behind_another(
            Match(
                data=lead.data,
                stage=stage,
                nodes=frozenset(adds).union(*(match.nodes for match in chosen)),
                layers=tuple(layer for match in (*others, lead) for layer in match.layers),
                pools=tuple(pool for match in (*others, lead) for pool in match.pools),
                template=template_of(stage, everything) if stage.spec.axes else lead.template,
                last=node,
                bias=first_known(match.bias for match in everything),
                normed=any(match.normed for match in chosen),
                summed=True,
                parts=tuple(match for match in everything if match.layers),
            )
        )

    # --- values ---

    def root(self, value: ValueT) -> ValueT:
        """Return the value that this one is, seen through nodes that hand it on unchanged."""
        while (node := self.graph.producer(value)) is not None:
            source = self.graph.passed(node)
            if source is None:
                break
            value = source
        return value

    def _users(self, value: ValueT) -> Iterator[NodeT]:
        """The nodes that use the value, or what hands it on."""
        for user in self.graph.users(value):
            if self.graph.passed(user) is value:
                yield from self._users(self.graph.result(user))
            else:
                yield user

    def _is_output(self, value: ValueT) -> bool:
        """Whether the graph gives the value out, or what hands it on."""
        return self.graph.is_output(value) or any(
            self._is_output(self.graph.result(user))
            for user in self.graph.users(value)
            if self.graph.passed(user) is value
        )

    def shared(self, value: ValueT, nodes: AbstractSet[NodeT]) -> str | None:
        """Return why a value cannot disappear inside ``nodes``, or None if it can."""
        if self._is_output(value):
            return "what is between is an output of the graph"
        own = self.matches[value].nodes if value in self.matches else ()
        if any(user not in nodes and user not in own for user in self._users(value)):
            return "what is between is used elsewhere"
        return None

    def _complete(self, match: Match[NodeT, ValueT]) -> Match[NodeT, ValueT]:
        """The match with the nodes that only hand on values inside of it."""
        nodes, pending = set(match.nodes), list(match.nodes)
        while pending:
            for value in self.graph.operands(pending.pop()):
                node = self.graph.producer(value)
                if node is None or node in nodes or self.graph.passed(node) is None:
                    continue
                if not self.graph.is_output(value) and all(user in nodes for user in self.graph.users(value)):
                    nodes.add(node)
                    pending.append(node)
        return replace(match, nodes=frozenset(nodes))
