"""Running cases in forked processes, each of which may crash, hang or eat memory without the others noticing."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from fuzz_case import Outcome, run_case
from fuzz_kinds import Kind, Step, plan
from fuzz_material import write_material

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

SECONDS = 20
"""Of processor time that a case may take."""

PATIENCE = 60
"""Seconds that a case may take while it neither computes nor waits for a processor that is busy with others."""

MIB = 2048
"""MiB that a case may take."""

SPARE = 12 << 30
"""Bytes of address space that a worker may ask for beside what it has; beyond it, memory is refused."""

_FORK = multiprocessing.get_context("fork")
_TICKS = os.sysconf("SC_CLK_TCK")


class Job(Protocol):
    """A case that a worker runs."""

    def run(self, material: Path) -> Outcome:
        """Run it, and judge."""

    def ended(self, fault: str, seconds: float) -> Outcome:
        """Return the outcome of a case that the worker did not survive."""


@dataclass(frozen=True, slots=True)
class FuzzJob:
    """A damaged file; with ``steps``, with other changes than its seed says."""

    kind: Kind
    seed: int
    steps: tuple[Step, ...] | None = None

    def run(self, material: Path) -> Outcome:
        """Damage the file, run the command, and judge."""
        return run_case(self.kind, self.seed, material, self.steps)

    def ended(self, fault: str, seconds: float) -> Outcome:
        """Return the outcome of a case that the worker did not survive."""
        steps = plan(self.kind, self.seed) if self.steps is None else self.steps
        return Outcome(kind=self.kind.name, seed=self.seed, steps=steps, status=None, seconds=seconds, faults=(fault,))


@contextlib.contextmanager
def prepared_material() -> Iterator[Path]:
    """Yield a folder with every valid file, for as long as the block runs.

    The files are made in a process of its own, since those that are forked here must inherit no threads.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        material = Path(folder) / "material"
        material.mkdir()
        imported = Path(folder) / "imported.txt"
        maker = _FORK.Process(target=_make, args=(material, imported))
        maker.start()
        maker.join()
        if maker.exitcode != 0:
            raise RuntimeError(f"the valid files could not be made: exit status {maker.exitcode}")
        _import_all(imported.read_text().split())
        yield material


def _make(material: Path, imported: Path) -> None:
    write_material(material)
    imported.write_text("\n".join(sys.modules))


def _import_all(names: list[str]) -> None:
    """Import what commands import when they run, so that each process that is forked has it already."""
    for name in names:
        with contextlib.suppress(Exception):  # some modules are made at run time, or import only as part of others
            importlib.import_module(name)
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    if threads > 2:  # one is of ONNX Runtime, whose sessions do without it
        raise RuntimeError(f"{threads} threads before the fork")


class _Worker:
    """A process that runs one case after another, and the case that it is at."""

    def __init__(self, jobs: Sequence[Job], material: Path) -> None:
        self.jobs, self.material = jobs, material
        self.job: Job | None = None
        self._start()

    def _start(self) -> None:
        self.connection, other = _FORK.Pipe()
        self.process: BaseProcess = _FORK.Process(
            target=_serve, args=(other, self.connection, self.jobs, self.material)
        )
        self.process.start()
        other.close()
        self.base = 0.0
        self.since, self.cpu, self.queued = time.monotonic(), 0.0, 0.0

    def give(self, number: int) -> None:
        """Let it run one of the cases."""
        self.job = self.jobs[number]
        assert self.process.pid is not None
        pid = self.process.pid
        self.base, self.cpu, self.since = _resident(pid), _processor(pid), time.monotonic()
        self.queued = _queued(pid)
        self.connection.send(number)

    def trouble(self) -> str:
        """Return what a case that runs does beyond what it may; empty for nothing."""
        assert self.process.pid is not None
        if _resident(self.process.pid) - self.base > MIB:
            return f"more than {MIB} MiB of memory"
        computed = _processor(self.process.pid) - self.cpu
        if computed > SECONDS:
            return f"more than {SECONDS} s of processor time"
        if time.monotonic() - self.since - computed - (_queued(self.process.pid) - self.queued) > PATIENCE:
            return f"no end after {PATIENCE} s"
        return ""

    def end(self) -> None:
        """End the process."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()

    def replace(self, fault: str) -> Outcome:
        """End the process, start another one, and return the outcome of the case that it was at."""
        assert self.job is not None
        self.end()
        if not fault:
            code = self.process.exitcode or 0
            fault = f"crashed: {signal.Signals(-code).name if code < 0 else f'exit status {code}'}"
        job, self.job = self.job, None
        seconds = time.monotonic() - self.since
        self._start()
        return job.ended(fault, seconds)


def _serve(connection: Connection, other: Connection, jobs: Sequence[Job], material: Path) -> None:
    """Run the cases whose numbers come in, until the other end is closed."""
    other.close()
    # No core files and no dump of the stack: a crash is a result here.
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
    while True:
        try:
            number = connection.recv()
        except EOFError:
            os._exit(0)
        connection.send(jobs[number].run(material))


def _resident(pid: int) -> float:
    """Return the MiB that a process holds; 0 for one that has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / (1 << 20)
    except (OSError, IndexError):
        return 0.0


def _processor(pid: int) -> float:
    """Return the seconds that a process computed; 0 for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    except (OSError, IndexError):
        return 0.0


def _queued(pid: int) -> float:
    """Return the seconds that a thread of a process waited for a processor, the most of any; 0 where nobody counts."""
    delays = [0.0]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError, IndexError, ValueError):
                delays.append(int((task / "schedstat").read_text().split()[1]) / 1e9)
    return max(delays)


def run_jobs(jobs: Sequence[Job], material: Path, *, workers: int) -> Iterator[Outcome]:
    """Run cases, and yield their outcomes in the order in which they end."""
    waiting = iter(range(len(jobs)))
    pool = [_Worker(jobs, material) for _ in range(workers)]
    try:
        busy = [worker for worker in pool if _give(worker, waiting)]
        while busy:
            ready = set(wait([worker.connection for worker in busy], timeout=0.05))
            for worker in list(busy):
                if worker.connection in ready:
                    yield _received(worker)
                elif fault := worker.trouble():
                    yield worker.replace(fault)
                else:
                    continue
                if not _give(worker, waiting):
                    busy.remove(worker)
    finally:
        for worker in pool:
            worker.end()


def _give(worker: _Worker, waiting: Iterator[int]) -> bool:
    number = next(waiting, None)
    if number is not None:
        worker.give(number)
    return number is not None


def _received(worker: _Worker) -> Outcome:
    try:
        outcome: Outcome = worker.connection.recv()
    except (EOFError, ConnectionResetError):
        return worker.replace("")
    if outcome.mib > MIB:
        return replace(outcome, faults=(*outcome.faults, f"{outcome.mib:.0f} MiB of memory"))
    return outcome


def smallest(outcome: Outcome, kind: Kind, material: Path) -> Outcome:
    """Return the failing case with as few changes as show the same fault, or the case as it is."""
    if len(outcome.steps) < 2:
        return outcome
    jobs = [FuzzJob(kind, outcome.seed, (step,)) for step in outcome.steps]
    return next((o for o in run_jobs(jobs, material, workers=1) if o.signature == outcome.signature), outcome)
