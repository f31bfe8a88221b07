"""The search: candidates of every layer, a choice among them at each cost, fitted and judged on data.

The choices of every price lie on one frontier (``allocation.py``). Each point that is tried is fitted from front to
back, and judged on the selection set. What is lost grows along the frontier, give or take, so that it is bisected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdexport.compression.allocation import Allocation, at_cost, frontier
from spdexport.compression.budgets import CostKind
from spdexport.compression.candidates import Candidate, layer_candidates
from spdexport.compression.execution import CutGraph, Shelf
from spdexport.compression.fitting import Fitting, without_bias
from spdexport.compression.running import DenseAnswers
from spdexport.compression.work import DenseMoments, Judging, takes_bias
from spdexport.cost import dense_shape, shape_macs, shape_parameters
from spdexport.engine.work import EngineKind
from spdexport.forms import FormKind
from spdexport.names import count
from spdexport.rewrite.onnx_rewrite import place_onnx_forms
from spdexport.steps import Remark, step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from spdexport.compression.budgets import Budget
    from spdexport.compression.cache import Cache
    from spdexport.compression.data import Samples, Sets
    from spdexport.compression.dense_model import DenseModel
    from spdexport.compression.losses import Loss, Lost
    from spdexport.compression.moments import Moments
    from spdexport.conv import ConvSite
    from spdexport.cost import CostModel
    from spdexport.engine.work import Engine, S, Work
    from spdexport.forms import Form

TRIALS = 7
"""Points of the frontier that are tried, at most: the cost is found to 1/128 of what can be saved."""

STEP = 0.01
"""Points whose costs differ by less of the dense model's are not told apart."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trial:
    """One point of the frontier, fitted and judged.

    Attributes:
        allocation: The choice.
        forms: What each layer that changes takes, fitted.
        lost: What is lost on the selection set.
        bound: What is lost at most of data to come, as the selection set tells.
        cost: By the cost model, relative to the dense layers.
        macs: Multiply-accumulates of all layers, likewise.
        size: Numbers that all layers store, likewise.
        accepted: Whether the bound is within the budget; None where the budget is one of cost.
    """

    allocation: Allocation
    forms: Mapping[str, Form]
    lost: Lost
    bound: float
    cost: float
    macs: float
    size: float
    accepted: bool | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What a search came to.

    Attributes:
        trials: All points that were tried, in that order.
        chosen: The one that is taken; None where only the dense network keeps the budget.
        candidates: Of each layer, in the order of the graph.
        dense_cost: What the dense layers cost, by the cost model.
    """

    trials: tuple[Trial, ...]
    chosen: Trial | None
    candidates: tuple[tuple[Candidate, ...], ...]
    dense_cost: float


class Search:
    """One search, from the moments of the dense network to a choice.

    Args:
        dense: The network.
        sets: The samples.
        loss: What counts as lost.
        cost: What is to be least.
        lane: As for ``layer_candidates``.
        folder: For what finds no room in memory.
        seed: Of the locations that moments are taken at.
        progress: Told what is being done.
        foreign: Forms of other origin for some layers, by their names.
        cache: Where work is kept.
        engine: Where samples run, but for those that weights are fitted on: that goes from layer to layer.
        time: Returns the time of a graph relative to the dense one's.
    """

    def __init__(
        self,
        dense: DenseModel,
        sets: Sets,
        *,
        loss: Loss,
        cost: CostModel,
        lane: int,
        folder: Path,
        seed: int,
        progress: Callable[[str], None],
        foreign: Mapping[str, Sequence[Form]] | None = None,
        cache: Cache,
        engine: Engine,
        time: Callable[[ir.Model], float],
    ) -> None:
        self.dense, self._sets, self._loss, self._cost = dense, sets, loss, cost
        self._lane, self._seed, self._progress = lane, seed, progress
        self._foreign, self._cache, self._engine, self._time = foreign or {}, cache, engine, time
        self._shelf = Shelf(folder)
        self._cut = CutGraph.of(dense.model, dense.sites)
        self._fitting = Fitting(
            dense=dense, cut=self._cut, samples=sets.calibration, shelf=self._shelf, seed=seed, progress=progress
        )
        self._answers = DenseAnswers(dense, sets.selection, self._shelf)
        self._trials: dict[tuple[int, ...], Trial] = {}
        self._candidates: tuple[tuple[Candidate, ...], ...] = ()
        self._points: tuple[Allocation, ...] = ()

    @property
    def sites(self) -> tuple[ConvSite, ...]:
        """The layers, in the order of the graph."""
        return self._cut.sites

    @property
    def cost_name(self) -> str:
        """The cost model, in words."""
        return self._cost.name

    @property
    def loss_title(self) -> str:
        """What is lost, in a few words."""
        return self._loss.title

    def site(self, name: str) -> ConvSite:
        """Return the layer of a name."""
        return next(site for site in self.sites if site.name == name)

    def placed(self, forms: Mapping[str, Form]) -> ir.Model:
        """Return the dense graph with forms in the places of layers."""
        return place_onnx_forms(self.dense.model, [(s, forms[s.name]) for s in self.sites if s.name in forms])

    def candidates(self) -> tuple[tuple[Candidate, ...], ...]:
        """Run the dense network over the calibration set, and weigh what each layer might be."""
        found = []
        sums: Iterator[tuple[str, Moments]] = iter(())
        for number, site in enumerate(self.sites):
            self._progress(step("candidates", done=number, total=len(self.sites), detail=site.name))
            moments = self._cache.moments(number)
            if moments is None:
                name, moments = next(sums, ("", None))
                if moments is None or name != site.name:  # the first that is missing, or one that cannot be read
                    sums = self._dense_moments(self.sites[number:])
                    _, moments = next(sums)
                self._cache.keep_moments(number, moments)
            foreign = self._foreign.get(site.name, ())
            found.append(layer_candidates(site, moments, self._cost, foreign=foreign, lane=self._lane))
        return tuple(found)

    def _dense_moments(self, sites: Sequence[ConvSite]) -> Iterator[tuple[str, Moments]]:
        """The moments of what layers read in the dense network; but for the first, of those that are not kept."""
        first, *rest = sites
        missing = [site.name for site in rest if not self._cache.has_moments(self.sites.index(site))]
        work = DenseMoments(
            dense=self.dense.alone(),
            samples=self._sets.calibration,
            layers=(first.name, *missing),
            seed=self._seed,
        )
        yield from self._sums(work, self._sets.calibration, "moments")

    def _sums(self, work: Work[S], samples: Samples, told: str) -> Iterator[tuple[str, S]]:
        """What the engine makes of samples; this process tells of other things than samples."""
        number = 0

        def done(more: int) -> None:
            nonlocal number
            number += more
            if self._engine.kind is not EngineKind.LOCAL:
                self._progress(step(told, done=number, total=len(samples), unit="sample"))

        yield from self._engine.sums(work, samples=len(samples), unit=self.dense.together, done=done)

    def judged(self, model: ir.Model | Path, told: str, *, answers: DenseAnswers | None = None) -> Lost:
        """Return what a network loses against what the dense one answers.

        Args:
            model: The network.
            told: What is being done, in words.
            answers: Those of the dense network; None for its answers on the selection set.
        """
        answers = self._answers if answers is None else answers
        work = Judging(answers=answers, model=model, loss=self._loss)
        ((_, lost),) = self._sums(work, answers.samples, told)
        return lost

    def run(self, budget: Budget) -> Found:
        """Look for the cheapest choice that keeps a budget of loss, or the best one at a cost."""
        self._candidates = self.candidates()
        self._points = tuple(frontier(self._candidates))
        if budget.cost is None:
            chosen = self.cheapest(budget.limit, lambda trial: bool(trial.accepted))
        elif budget.cost is CostKind.LATENCY:
            chosen = self.at_time(budget.limit)
        else:
            chosen = self.at_share(budget.limit)
        return Found(
            trials=tuple(self._trials.values()),
            chosen=chosen,
            candidates=self._candidates,
            dense_cost=self._dense_cost,
        )

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All choices that were tried, in that order."""
        return tuple(self._trials.values())

    @property
    def _dense_cost(self) -> float:
        return sum(options[0].cost for options in self._candidates)

    def cheapest(self, limit: float, accepts: Callable[[Trial], bool]) -> Trial | None:
        """Return the cheapest choice that is accepted; None where only the dense network is.

        Args:
            limit: What may be lost, by which each trial is told to be within the budget or not.
            accepts: Whether a trial is accepted. What is lost grows along the frontier, give or take.
        """
        points, dense, chosen = self._points, self._dense_cost, None
        # Points up to ``low`` are beyond the budget, those from ``high`` on within it; the dense network is behind all.
        low, high, number = -1, len(points), 0
        while high - low > 1 and number < TRIALS:
            dear = points[high].cost if high < len(points) else dense
            if chosen is not None and dear - points[low + 1].cost < STEP * dense:
                break
            middle = points.index(at_cost(points, (points[max(low, 0)].cost + dear) / 2))
            middle = min(max(middle, low + 1), high - 1)
            if not any(points[middle].chosen):
                high = middle
                continue
            number += 1
            trial = self.trial(self._candidates, points[middle], dense, limit, number, TRIALS)
            if accepts(trial):
                high, chosen = middle, trial
            else:
                low = middle
        return chosen

    def at_share(self, share: float) -> Trial:
        """Return the choice of least loss at a share of the dense layers' cost."""
        target = at_cost(self._points, share * self._dense_cost)
        return self.trial(self._candidates, target, self._dense_cost, None, 1, 1)

    def at_time(self, limit: float, last: Callable[[ir.Model], ir.Model] = lambda model: model) -> Trial:
        """Return the choice of least loss whose time is within a limit, relative to dense; the cheapest if none is.

        Time depends on shapes alone, so that it is measured before anything is fitted.

        Args:
            limit: The share of the dense network's time.
            last: What is done to the network before it is timed.
        """
        points, candidates = self._points, self._candidates
        low, high = 0, len(points)
        while high - low > 1:
            middle = points.index(at_cost(points, (points[low].cost + points[high - 1].cost) / 2))
            middle = min(max(middle, low + 1), high - 1)
            taken = zip(self.sites, candidates, points[middle].chosen, strict=True)
            forms = {site.name: options[index].make() for site, options, index in taken if index}
            forms = {name: form if takes_bias(self.site(name)) else without_bias(form) for name, form in forms.items()}
            took = self._time(last(self.placed(forms)))
            self._progress(f"measuring time beside the dense model: {took:.2f} of it")
            low, high = (middle, high) if took <= limit else (low, middle)
        return self.trial(candidates, points[low], self._dense_cost, None, 1, 1)

    def trial(
        self,
        candidates: Sequence[Sequence[Candidate]],
        point: Allocation,
        dense_cost: float,
        limit: float | None,
        number: int,
        most: int,
    ) -> Trial:
        """Fit one choice and judge it on the selection set."""
        if point.chosen in self._trials:
            return self._trials[point.chosen]
        taken = [options[index] for options, index in zip(candidates, point.chosen, strict=True)]
        told = f"trial {number} of at most {most} at cost {point.cost / dense_cost:.2f}"
        kept = self._cache.trial(self.sites, taken, self._loss.power)
        if kept is None:
            forms = self._fitting.forms(taken, told)
            self._progress(f"{told}: {count(len(self._sets.selection), 'sample')} of the selection set")
            lost = self.judged(self.placed(forms), f"{told}, selection set")
            self._cache.keep_trial(self.sites, taken, forms, lost)
        else:
            forms, lost = kept
        bound = lost.upper_bound()
        trial = Trial(
            allocation=point,
            forms=forms,
            lost=lost,
            bound=bound,
            cost=point.cost / dense_cost,
            macs=_share(self.sites, taken, lambda site, candidate: shape_macs(site, candidate.shape)),
            size=_share(self.sites, taken, lambda _, candidate: shape_parameters(candidate.shape)),
            accepted=None if limit is None else bound <= limit,
        )
        self._trials[point.chosen] = trial
        verdict = "" if limit is None else (": within the budget" if trial.accepted else ": beyond the budget")
        self._progress(
            Remark(f"trial {number} done, {self._loss.title} {lost.value:.4g}, at most {bound:.4g}{verdict}")
        )
        return trial


def _share(
    sites: Sequence[ConvSite], taken: Sequence[Candidate], size: Callable[[ConvSite, Candidate], float]
) -> float:
    """The size of what is taken over that of the dense layers."""
    whole = sum(
        size(site, Candidate(kind=FormKind.DENSE, ranks=(), error=0, cost=0, shape=dense_shape(site), make=_never))
        for site in sites
    )
    return sum(map(size, sites, taken)) / whole if whole else 1.0


def _never() -> Form:
    raise AssertionError("only the shape is looked at")
