"""A choice of forms, fitted from front to back: each layer to what the dense network has there.

What a layer reads has come through the layers in front of it, which are fitted already. Dense layers behind them are
fitted too, for that costs nothing where the file runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from spdexport.compression.candidates import grouped_weight
from spdexport.compression.execution import CutGraph, Kept, Shelf, Walk
from spdexport.compression.refit import last_stage_refitted, refitted
from spdexport.compression.running import batches_of
from spdexport.compression.work import layer_moments, takes_bias
from spdexport.forms import FAMILIES, FormKind, dense
from spdexport.steps import step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from spdexport.compression.candidates import Candidate
    from spdexport.compression.data import Samples
    from spdexport.compression.dense_model import DenseModel
    from spdexport.compression.moments import Moments
    from spdexport.conv import Array, ConvSite, ConvSpec, FloatArray
    from spdexport.forms import Form

WHOLE_PATCH = 2304
"""The longest patch of which a whole layer is fitted anew; of longer ones its last stage is."""

ROWS_PER_COLUMN = 4
"""Rows of data, for each column of a dense layer's patch, that it takes to fit the layer."""

NOTHING_LOST = 1e-8
"""A share of a layer's output, in squares, that is not worth a fit of a dense layer."""

WORTH = 0.95
"""A fit of a dense layer that leaves more than this of its error, in squares, is not worth other weights."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitting:
    """What fits choices.

    Attributes:
        dense: The network.
        cut: Its graph, cut in front of its layers.
        samples: Those that weights are fitted on.
        shelf: Where values are kept.
        seed: Of the locations that moments are taken at.
        progress: Told what is being done.
    """

    dense: DenseModel
    cut: CutGraph
    samples: Samples
    shelf: Shelf
    seed: int
    progress: Callable[[str], None]

    def forms(self, taken: Sequence[Candidate], told: str) -> dict[str, Form]:
        """Return the fitted forms, by the names of the layers; a dense layer that stays as it is has none.

        Args:
            taken: What each layer takes, in the order of the graph.
            told: What is being done, in words.
        """
        forms: dict[str, Form] = {}
        if all(candidate.kind is FormKind.DENSE for candidate in taken):
            return forms
        batches = batches_of(self.dense, self.samples, whole=True)
        walk = Walk.begin(self.cut, (batch.feeds for batch in batches), self.shelf)
        other: Walk | None = None
        sites = self.cut.sites
        for number, (site, candidate) in enumerate(zip(sites, taken, strict=True)):
            self.progress(step(told, done=number, total=len(sites), detail=site.name))
            stays = candidate.kind is FormKind.DENSE
            if stays and (other is None or site.spec.patch > WHOLE_PATCH):
                walk.step()
                if other is not None:
                    other.step()
                continue
            other = walk.fork() if other is None else other
            sums = tuple(zip(walk.added(), other.added(), strict=True))
            targets = _targets(walk.step(keep=True), sums)
            form = self._dense(site, other, targets) if stays else self._form(site, candidate, other, targets)
            if form is not None:
                forms[site.name] = form if takes_bias(site) else without_bias(form)
            if number < len(sites) - 1:
                other.step(forms.get(site.name))
        return forms

    def _dense(self, site: ConvSite, other: Walk, targets: Sequence[Callable[[], Array]]) -> Form | None:
        """A dense layer, fitted; None where it stays as it is."""
        pairs = ((x, y()) for x, y in zip(other.reads(), targets, strict=True))
        moments = self._moments(site, site.spec, pairs)
        if moments.count < ROWS_PER_COLUMN * site.spec.patch:
            return None
        form = refitted(site, FormKind.DENSE, (), moments)
        before, after = (_error(one, moments) for one in (dense(site.spec, site.weight, site.bias), form))
        size = float(np.trace(moments.target_covariance(), axis1=1, axis2=2).sum())
        return form if before > NOTHING_LOST * size and after < WORTH * before else None

    def _form(self, site: ConvSite, candidate: Candidate, other: Walk, targets: Sequence[Callable[[], Array]]) -> Form:
        """What a layer takes, fitted."""
        if site.spec.patch <= WHOLE_PATCH and candidate.kind in FAMILIES:
            pairs = ((x, y()) for x, y in zip(other.reads(), targets, strict=True))
            return refitted(site, candidate.kind, candidate.ranks, self._moments(site, site.spec, pairs))
        form = candidate.make()
        if len(form.chains) > 1:
            return form
        last = form.chains[0][-1].spec
        pairs = ((z, y()) for z, y in zip(other.front(form), targets, strict=True))
        return last_stage_refitted(form, self._moments(site, last, pairs))

    def _moments(self, site: ConvSite, spec: ConvSpec, pairs: Iterable[tuple[Array, Array | None]]) -> Moments:
        """The moments of what a layer, or one stage of its form, reads, and of what it is to give."""
        found = layer_moments(site, spec, pairs, samples=len(self.samples), seed=self.seed)
        assert found is not None, "a calibration set has samples"
        return found


def _targets(given: Sequence[Kept], sums: Sequence[tuple[Kept, Kept]]) -> list[Callable[[], Array]]:
    """What a layer is to give, batch for batch.

    Where it is added to something that the layers in front of it have changed, the layer makes up for the change: its
    target is the dense network's sum less what the compressed network adds (He, Zhang and Sun 2017, arXiv 1707.06168,
    section 3.3).

    Args:
        given: What it gives in the dense network.
        sums: What is added to it in the dense network, and in the compressed one; empty where nothing is.
    """
    if not sums:
        return [kept.get for kept in given]

    def target(kept: Kept, dense: Kept, compressed: Kept) -> Array:
        y, change = kept.get(), dense.get() - compressed.get()
        return y + change if change.shape == y.shape else y

    return [partial(target, kept, *pair) for kept, pair in zip(given, sums, strict=True)]


def _error(form: Form, moments: Moments) -> float:
    """E |y - A x - b|^2 of a dense form: of what varies, and of the means."""
    (stage,) = form.chains[0]
    A: FloatArray = grouped_weight(np.asarray(stage.weight), stage.spec)
    R, G = moments.cross_covariance(), moments.covariance()
    varies = np.trace(moments.target_covariance(), axis1=1, axis2=2) + ((A @ G - 2 * R) * A).sum(axis=(1, 2))
    bias = 0.0 if stage.bias is None else np.asarray(stage.bias, dtype=np.float64).reshape(moments.target_mean.shape)
    off = moments.target_mean - (A @ moments.mean[..., None])[..., 0] - bias
    return float(varies.sum() + (off**2).sum())


def without_bias(form: Form) -> Form:
    """Return the form without the bias, which is zero where it was fitted on moments about zero."""
    return replace(form, chains=tuple(tuple(replace(stage, bias=None) for stage in chain) for chain in form.chains))
