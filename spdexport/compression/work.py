"""Sums over the samples of a search: the work, for this process or another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from spdexport.compression.execution import CutGraph, Shelf, Walk
from spdexport.compression.losses import Lost, measured
from spdexport.compression.moments import ROWS, Moments, locations_per_sample, moments_of
from spdexport.compression.running import DenseAnswers, Network, batches_of
from spdexport.files.scratch import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import onnx_ir as ir

    from spdexport.compression.data import Samples
    from spdexport.compression.dense_model import DenseModel
    from spdexport.compression.losses import Loss
    from spdexport.conv import Array, ConvSite, ConvSpec
    from spdexport.engine.work import Done, Run, Shard

LEAST_ROWS, ROWS_PER_COLUMN = 16_384, 8
"""Rows that the moments of a layer are taken from: so many, and so many for each column of its patches, up to ``ROWS``.
Sums over them are most of the work of a large network; on a small ResNet 8,192 rows and more lost alike, to noise."""


def layer_moments(
    site: ConvSite,
    spec: ConvSpec,
    pairs: Iterable[tuple[Array, Array | None]],
    *,
    samples: int,
    seed: int,
    first: int = 0,
) -> Moments | None:
    """Return the moments of what a layer, or one stage of its form, reads, and of what it is to give.

    Args:
        site: The layer.
        spec: The geometry of what reads.
        pairs: Of each batch what is read, and what is to be given.
        samples: How many samples there are in all, which tells how many locations of each are taken.
        seed: Of the locations. Every batch has random numbers of its own, so that it does not matter where it is run.
        first: The number of the first batch among all.

    Returns:
        None where there is no batch.
    """
    rows = min(max(LEAST_ROWS, ROWS_PER_COLUMN * spec.patch), ROWS)
    per_sample = locations_per_sample(samples, rows=rows)
    found: Moments | None = None
    for number, (x, y) in enumerate(pairs, first):
        part = moments_of(spec, x, y, rng=np.random.default_rng((seed, number)), per_sample=per_sample)
        found = part if found is None else found.merge(part)
    return found if found is None or takes_bias(site) else _about_zero(found)


def takes_bias(site: ConvSite) -> bool:
    """Return whether the graph has a place for a bias: a plain matrix product has none."""
    return site.bias is not None or not site.is_product


def _about_zero(moments: Moments) -> Moments:
    """The moments about zero instead of the means: what counts where no bias makes good what is constant."""
    targets = None if moments.targets is None else np.zeros_like(moments.targets)
    return replace(moments, inputs=np.zeros_like(moments.inputs), targets=targets)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseMoments:
    """The moments of what layers read in the dense network, by the layer; an ``engine.Work``.

    Attributes:
        dense: The network.
        samples: The samples.
        layers: The names of the layers.
        seed: Of the locations.
    """

    dense: DenseModel
    samples: Samples
    layers: tuple[str, ...]
    seed: int

    def open(self, *, threads: int | None) -> Run[Moments]:
        """Cut the graph in front of its layers."""
        cut = CutGraph.of(self.dense.model, self.dense.sites, threads=threads)

        def run(shard: Shard, done: Done) -> Iterator[tuple[str, Moments]]:
            samples = self.samples.part(shard)
            first = shard.start // self.dense.together
            waiting = set(self.layers)
            with scratch_folder() as folder:
                batches = batches_of(self.dense, samples, whole=True)
                walk = Walk.begin(cut, (batch.feeds for batch in batches), Shelf(folder))
                for site in cut.sites:
                    if site.name in waiting:
                        pairs = ((x, None) for x in walk.reads())
                        found = layer_moments(
                            site, site.spec, pairs, samples=len(self.samples), seed=self.seed, first=first
                        )
                        if found is not None:
                            yield site.name, found
                        waiting.remove(site.name)
                    if not waiting:
                        break
                    walk.step()
            done(len(samples))

        return run


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judging:
    """What a network loses against the dense one, sample by sample; an ``engine.Work``.

    Attributes:
        answers: What the dense one answers.
        model: The other: a graph, or a file.
        loss: What counts as lost.
    """

    answers: DenseAnswers
    model: ir.Model | Path
    loss: Loss

    def open(self, *, threads: int | None) -> Run[Lost]:
        """Open a session of the network, and of the dense one when it is first needed.

        Raises:
            SourceError: ONNX Runtime does not load it.
        """
        network = Network(self.model, threads=threads)

        @cache
        def dense() -> Network:
            return Network(self.answers.dense.model, threads=threads)

        def run(shard: Shard, done: Done) -> Iterator[tuple[str, Lost]]:
            yield self.loss.title, measured(self.loss, self.answers.pairs(network, dense, shard))
            done(len(self.answers.samples.part(shard)))

        return run
