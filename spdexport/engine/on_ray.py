"""Work on Ray: shards of the samples mapped over a pool of workers with Ray Data, on this machine or a cluster.

Ray decides what runs where, and starts a worker that is lost again; here shards are cut, and their sums are merged in
the order of the samples. Without ``RAY_ADDRESS`` the cluster is one of this machine's processes, for one command.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport import __version__
from spdexport.engine.parcels import packed, unpacked
from spdexport.engine.work import EngineKind, Shard, cut
from spdexport.errors import RuntimeMissingError, UsageError, first_line
from spdexport.files.limits import limits_here, reading_limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from spdexport.conv import Array
    from spdexport.engine.work import Done, Run, S, Work

OBJECT_STORE = 200 << 20
"""Bytes of the memory that Ray shares among processes of this machine; what is more is in files of its own."""

RETRIES = 3
"""How often Ray starts a lost worker again, and gives it the shard that it was lost with."""

CPUS = 1
"""Of a worker, which has so many threads."""

AHEAD = 2
"""Shards that a worker has been given at a time: the one that it works on, and the next."""

REACH_SECONDS = 20.0
"""How long a cluster's address may take to answer."""

_SUMS, _DONE, _ERROR = "sums", "done", "error"
"""The kinds of rows that a worker gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What every worker is told.

    Attributes:
        work: What is to be done.
        limits: To what is read of files.
        folder: The folder that paths are relative to.
        version: Of this package.
    """

    work: Work[Any]
    limits: Mapping[str, int]
    folder: Path
    version: str


class OnRay:
    """Does work on Ray.

    Raises:
        RuntimeMissingError: Ray Data is not installed.
    """

    kind = EngineKind.RAY

    def __init__(self) -> None:
        missing = [name for name in ("ray", "pyarrow", "pandas") if importlib.util.find_spec(name) is None]
        if missing:
            raise RuntimeMissingError(
                f"The engine needs packages that are not installed: {', '.join(missing)}.",
                where="--engine ray",
                hint="Run `pip install 'spdexport[ray]'`, or leave the option out.",
            )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Begin a cluster of this machine's, or join the one that ``RAY_ADDRESS`` names; leave it with the block.

        A cluster that the caller has begun or joined in Python is taken as it is.

        Raises:
            UsageError: There is no cluster at that address, or none can be begun.
        """
        # Nothing of a model, not even that there is one, is told to anybody.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        import ray

        if ray.is_initialized():
            yield
            return
        address = os.environ.get("RAY_ADDRESS", "")
        settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address in ("", "local"):
            settings |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
        try:
            _reach(address)
            with _own_signals(), _without_native_lines():
                ray.init(**settings)
        except (OSError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"Ray does not begin: {first_line(error)}",
                where=f"RAY_ADDRESS={address}" if address else "--engine ray",
                hint="Look at the cluster with `ray status`, or unset RAY_ADDRESS for one of this machine.",
            ) from error
        try:
            yield
        finally:
            with _own_signals():
                ray.shutdown()

    def sums(self, work: Work[S], *, samples: int | None, unit: int, done: Done) -> Iterator[tuple[str, S]]:
        """Yield the sums; see ``Engine``. They are there when the last shard is done.

        Raises:
            UsageError: The work cannot be sent, or a worker was lost again and again.
            Exception: Whatever the work raises.
        """
        import ray

        if samples is None:
            raise UsageError(
                "Batches that come one after another stay in this process.",
                where="the data and --engine ray",
                hint="Save them to files, and give these.",
            )
        shards = cut(samples, unit)
        order = _Order(work=work, limits=limits_here(), folder=Path.cwd(), version=__version__)
        # Held as long as workers may be started again: they are given no more than where to find it.
        parcel = ray.put(packed(order))
        found: dict[str, S] = {}
        finished = 0
        try:
            for row in _rows(shards, parcel):
                if row["kind"] == _ERROR:
                    raise unpacked(row["content"])
                if row["number"] != finished:
                    raise RuntimeError(f"shard {row['number']} came in the place of {finished}")
                if row["kind"] == _DONE:
                    done((shards[finished].stop or 0) - shards[finished].start)
                    finished += 1
                    continue
                name, part = row["name"], unpacked(row["content"])
                found[name] = found[name].merge(part) if name in found else part
        except ray.exceptions.RayError as error:
            raise UsageError(
                f"Workers of Ray were lost again and again: {first_line(error)}",
                where="--engine ray",
                hint="Give them more memory, or leave the option out to see what ends them.",
            ) from error
        if finished != len(shards):
            raise RuntimeError(f"{finished} of {len(shards)} shards came back")
        del parcel
        yield from found.items()


def _rows(shards: tuple[Shard, ...], parcel: Any) -> Iterator[dict[str, Any]]:
    """What the workers give, in the order of the shards."""
    import ray
    import ray.data

    items = [{"number": n, "start": shard.start, "stop": shard.stop} for n, shard in enumerate(shards)]
    data = ray.data.from_items(items, override_num_blocks=len(items))
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.execution_options.preserve_order = True
    workers = max(min(int(ray.cluster_resources().get("CPU", 1)) // CPUS, len(shards)), 1)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The one way to bound retries, which without a bound never end; another is announced, and not there yet.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        mapped = data.map_batches(
            _Worker,
            fn_constructor_args=([parcel],),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=AHEAD),
            num_cpus=CPUS,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
    yield from mapped.iter_rows()


class _Worker:
    """One process of the pool.

    Args:
        parcel: Where the order is found, in a list: Ray fetches what it is given by itself only for good.
    """

    def __init__(self, parcel: list[Any]) -> None:
        self._parcel = parcel
        self._opened: tuple[Run[Any], Mapping[str, int]] | None = None

    def __call__(self, batch: dict[str, Array]) -> Iterator[dict[str, Array]]:
        """Yield a row for each sum over a shard, and one when it is done; or one with what went wrong.

        Errors are rows, so that Ray takes none of them for a lost worker.
        """
        number, shard = int(batch["number"][0]), Shard(start=int(batch["start"][0]), stop=int(batch["stop"][0]))
        try:
            run, limits = self._opened = self._opened or self._open()
            with reading_limits(**limits):
                for name, sums in run(shard, lambda _: None):
                    yield _row(number, _SUMS, name, packed(sums))
        except Exception as error:  # it is raised again where the command runs
            yield _row(number, _ERROR, "", packed(_sendable(error)))
            return
        yield _row(number, _DONE, "", b"")

    def _open(self) -> tuple[Run[Any], Mapping[str, int]]:
        import ray

        order: _Order = unpacked(ray.get(self._parcel[0]))
        if order.version != __version__:
            raise UsageError(
                f"The cluster has spdexport {__version__}, and here it is {order.version}.",
                where="--engine ray",
                hint="Install the same version on all machines.",
            )
        if not order.folder.is_dir():
            raise UsageError(
                "A machine of the cluster has no such folder.",
                where=str(order.folder),
                hint="Let all machines see the same files under the same paths.",
            )
        os.chdir(order.folder)
        with reading_limits(**order.limits):
            return order.work.open(threads=CPUS), order.limits


def _row(number: int, kind: str, name: str, content: bytes) -> dict[str, Array]:
    # Of type object: numpy's own texts and bytes lose the zeros that they end with.
    texts = {"kind": kind, "name": name, "content": content}
    return {"number": np.array([number]), **{k: np.array([v], dtype=object) for k, v in texts.items()}}


def _sendable(error: Exception) -> Exception:
    """The error itself where it can travel, else one that says the same."""
    try:
        unpacked(packed(error))
    except Exception:  # classes of libraries whose arguments are not all that they need
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _reach(address: str) -> None:
    """Look whether somebody listens at HOST:PORT: Ray tries for many minutes. Other addresses are Ray's to judge.

    Raises:
        OSError: Nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isascii() and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals, which Ray replaces by its own: the command ends as it does without."""
    if threading.current_thread() is not threading.main_thread() or sys.platform == "win32":
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _without_native_lines() -> Iterator[None]:
    """Keep away what Ray's own libraries write to standard error past Python, which are lines for its log."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
