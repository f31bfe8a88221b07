"""Ablations of a file on samples: the work, for this process or another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spdexport.ablation.effects import Baseline, Running
from spdexport.ablation.masked_runs import MaskedRuns, opened_file
from spdexport.ort.providers import Purpose
from spdexport.ort.sessions import SessionSettings, usable_provider
from spdexport.verification.bounded import Bounded
from spdexport.verification.data_feeds import data_feeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from spdexport.ablation.masked_runs import RuntimeMask
    from spdexport.ablation.sets import ComponentsOf
    from spdexport.conv import Array
    from spdexport.engine.work import Done, Run, Shard
    from spdexport.files.batches import DataSet
    from spdexport.verification.ports import Port

TOGETHER = 256
"""Samples of a batch, at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ablating:
    """The effects of ablations summed up over samples; an ``engine.Work``.

    Attributes:
        file: The ONNX file.
        provider: The name of a provider that can run.
        threads: Of one operator; None leaves it to ONNX Runtime.
        masks: The file's run-time masks by the names of their inputs.
        start: The masks to start from, (C,) by layer.
        output: The output that is compared.
        wanted: The ablations.
        keep: As for ``ablate``, and so are the rows.
        rows: Samples times ablations in one run.
        data: The samples.
        ports: The inputs that are no masks.
    """

    file: Path
    provider: str
    threads: int | None
    masks: Mapping[str, RuntimeMask]
    start: Mapping[str, Array]
    output: str
    wanted: tuple[ComponentsOf, ...]
    keep: bool
    rows: int
    data: DataSet
    ports: Sequence[Port]

    @property
    def batch(self) -> int:
        """Samples of a batch."""
        return min(self.rows, TOGETHER)

    def open(self, *, threads: int | None) -> Run[Running]:
        """Open a session of the file.

        Raises:
            SourceError: ONNX Runtime does not load it.
            UsageError: The provider cannot run here.
        """
        settings = SessionSettings(
            provider=usable_provider(self.provider),
            optimized=True,
            purpose=Purpose.DEPLOYMENT,
            threads=threads if self.threads is None else self.threads,
        )
        session, bounded = opened_file(self.file, settings), Bounded(self.file)
        where = str(self.data.path)

        def run(shard: Shard, done: Done) -> Iterator[tuple[str, Running]]:
            runner = MaskedRuns(session, self.masks, self.output, self.start, bounded, keep=self.keep, rows=self.rows)
            running = Running(len(self.wanted))
            for batch in self.data.batches(self.batch, shard.start, shard.stop):
                feeds = data_feeds(self.ports, batch, where)
                samples = min(len(array) for array in feeds.values())
                before = Baseline(runner.baseline(feeds, samples, where))
                for which, outputs in runner.ablated(feeds, samples, self.wanted):
                    running.add(which, outputs, before)
                done(samples)
            running.notes = tuple(dict.fromkeys(runner.notes))
            yield self.output, running

        return run
