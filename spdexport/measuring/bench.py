"""The latency of ONNX files on ONNX Runtime, alone or one against another, with what else a deployment asks for.

Files that are compared run in turn, in pairs, so that a busy moment of the machine is in both. Idle threads do not spin
meanwhile: those of one session would take the cores from the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spdexport.errors import ExampleInputError, SourceError, UsageError
from spdexport.files.hashing import sha256_file
from spdexport.files.npz import write_npz
from spdexport.files.onnx_reading import external_files, load_onnx
from spdexport.files.scratch import scratch_folder, writing_scratch
from spdexport.ort.installed import has_torch, require_torch, versions
from spdexport.ort.providers import Purpose
from spdexport.ort.sessions import RuntimeFailure, Session, SessionSettings, open_session, usable_provider
from spdexport.ort.timing import Ratio, Spread, interleaved, ratio_of
from spdexport.steps import step
from spdexport.verification.bounded import Bounded
from spdexport.verification.file_inputs import (
    GivenArrays,
    generated,
    given_tensors,
    guesses,
    read_arrays,
    told,
    varies_in_batch,
)
from spdexport.verification.ports import Port, input_ports
from spdexport.verification.recipes import RECIPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from spdexport.conv import Array
    from spdexport.loading.model import ExampleInputs

ROUNDS = 50
SECONDS = 20.0
"""How many rounds are run where the user does not say, and how long at most."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTiming:
    """What was measured of one file.

    Attributes:
        name: The file's name.
        sha256: Of the file itself.
        size: Bytes, of the file and the data files beside it.
        time: Of one run.
        peak_memory: Bytes that a fresh process holds at most while it loads the file and runs it once, with Python and
            ONNX Runtime.
        base_memory: Bytes that such a process held before it loaded the file.
        placement: How many nodes each provider of ONNX Runtime runs, by its name; those that it removed are not there.
    """

    name: str
    sha256: str
    size: int
    time: Spread
    peak_memory: int
    base_memory: int
    placement: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A measurement.

    Attributes:
        files: The file, and the one that it is compared with.
        ratio: The first one's time over the second one's; None for one file.
        provider: Where they ran.
        threads: Of one operator; None for ONNX Runtime's own choice.
        inputs: The inputs in words, such as ``x float32 (8, 3, 224, 224)``.
        notes: What the user should know.
        seed: Of generated inputs and of the interval.
        versions: Of everything that took part.
    """

    files: tuple[FileTiming, ...]
    ratio: Ratio | None
    provider: str
    threads: int | None
    inputs: tuple[str, ...]
    notes: tuple[str, ...]
    seed: int
    versions: Mapping[str, str]


def bench(
    file: str | Path,
    *,
    against: str | Path | None = None,
    provider: str = "cpu",
    batch: int | None = None,
    threads: int | None = None,
    inputs: str | Path | None = None,
    input_shape: Sequence[str] = (),
    rounds: int = ROUNDS,
    seconds: float | None = SECONDS,
    seed: int = 0,
    progress: Progress = lambda _: None,
) -> Bench:
    """Measure the latency of an ONNX file, or of two against each other.

    Args:
        file: The ONNX file.
        against: Another one with the same inputs.
        provider: A name in ``spdexport.ort.providers.PROVIDERS``, such as ``cpu``.
        batch: The size of the batch axis of generated inputs; None for 1.
        threads: Of one operator; None leaves it to ONNX Runtime.
        inputs: A file of inputs; None to generate them.
        input_shape: Shapes of generated inputs as ``[NAME=]8x3x224x224[:dtype]``.
        rounds: How many times each file is run.
        seconds: After this long no further round begins; None for no limit.
        seed: Of generated inputs and of the interval.
        progress: Told what is being done.

    Raises:
        UsageError: The provider is not known or cannot run here, or options contradict each other.
        SourceError: A file is no ONNX file, or does not run.
        ExampleInputError: The inputs do not fit the files, or none can be made for them.
    """
    _check(batch, threads, inputs, input_shape, rounds)
    settings = SessionSettings(
        provider=usable_provider(provider), optimized=True, purpose=Purpose.DEPLOYMENT, threads=threads, spinning=False
    )
    paths = [Path(file)] if against is None else [Path(file), Path(against)]
    progress("loading")
    models = [load_onnx(path) for path in paths]
    ports = input_ports(models[0])
    if against is not None:
        _check_ports(paths, ports, input_ports(models[1]))
    sizes = [sum(p.stat().st_size for p in (path, *external_files(m))) for path, m in zip(paths, models, strict=True)]
    del models
    sessions = [_opened(path, settings) for path in paths]
    bounds = [Bounded(path) for path in paths]
    given = _given(ports, inputs, input_shape, seed)
    feeds, notes = _feeds(ports, given, batch or 1, sessions[0], bounds[0], seed)
    for path, session, bounded in zip(paths[1:], sessions[1:], bounds[1:], strict=True):
        bounded.check(feeds)
        _try(session, feeds, path)
    progress("measuring time")
    times = interleaved(
        [s.runner(feeds) for s in sessions],
        rounds=rounds,
        seconds=seconds,
        told=lambda done: progress(step("measuring time", done=done, total=rounds, unit="round")),
    )
    placements = [{name: len(nodes) for name, nodes in s.placement().items()} for s in sessions]
    del sessions
    progress("measuring memory")
    memory = [_memory(path, settings, feeds) for path in paths]
    return Bench(
        files=tuple(
            FileTiming(
                name=path.name,
                sha256=sha256_file(path),
                size=size,
                time=Spread.of(seconds),
                peak_memory=peak,
                base_memory=base,
                placement=placement,
            )
            for path, size, seconds, (base, peak), placement in zip(
                paths, sizes, times, memory, placements, strict=True
            )
        ),
        ratio=None if against is None else ratio_of(times[0], times[1], seed=seed),
        provider=settings.provider.name,
        threads=threads,
        inputs=tuple(Port(name=n, dtype=a.dtype, shape=a.shape).describe() for n, a in feeds.items()),
        notes=notes,
        seed=seed,
        versions=versions(),
    )


def _check(
    batch: int | None, threads: int | None, inputs: str | Path | None, shapes: Sequence[str], rounds: int
) -> None:
    if sum(1 for given in (batch is not None, inputs is not None, bool(shapes)) if given) > 1:
        raise UsageError(
            "The inputs are told in more than one way.",
            where="--batch, --inputs and --input-shape",
            hint="Give one of them.",
        )
    for name, number in (("batch", batch), ("threads", threads), ("rounds", rounds)):
        if number is not None and number < 1:
            raise UsageError(f"{number} is too small.", where=f"--{name}", hint="Give a number of at least 1.")


def _check_ports(paths: Sequence[Path], ports: Sequence[Port], others: Sequence[Port]) -> None:
    mine, theirs = {p.name: p for p in ports}, {p.name: p for p in others}
    if mine.keys() != theirs.keys() or any(mine[name].conflicts(theirs[name]) for name in mine):
        told = [", ".join(p.describe() for p in side) or "none" for side in (ports, others)]
        raise UsageError(
            f"The files have other inputs: {told[0]}, and {told[1]}.",
            where=f"{paths[0]} and {paths[1]}",
            hint="Compare files of the same model.",
        )


def _opened(path: Path, settings: SessionSettings) -> Session:
    try:
        return open_session(path, settings)
    except RuntimeFailure as failure:
        raise SourceError(
            f"ONNX Runtime does not load the file: {failure}",
            where=str(path),
            hint="spdexport verify says more about it.",
        ) from failure


def _given(
    ports: Sequence[Port], inputs: str | Path | None, shapes: Sequence[str], seed: int
) -> Mapping[str, Array] | None:
    """The user's inputs, or ones of the shapes that were given; None where nothing is told."""
    found: ExampleInputs | GivenArrays
    if inputs is not None:
        if has_torch():
            from spdexport.loading.inputs import inputs_from_file

            found = inputs_from_file(Path(inputs))
        else:
            found = read_arrays(Path(inputs))
    elif shapes:
        require_torch("Shapes of inputs are read with it.")
        from spdexport.loading.inputs import inputs_from_shapes

        found = inputs_from_shapes(tuple(shapes), seed)
    else:
        return None
    return given_tensors(ports, found)


def _feeds(
    ports: Sequence[Port],
    given: Mapping[str, Array] | None,
    batch: int,
    session: Session,
    bounded: Bounded,
    seed: int,
) -> tuple[Mapping[str, Array], tuple[str, ...]]:
    """The inputs, and what is to be said about them."""
    if given is not None:
        bounded.check(given)
        _try(session, given, Path("the inputs"))
        return given, ()
    if batch != 1 and not varies_in_batch(ports):
        raise UsageError(
            "The batch of the file cannot change.", where=f"--batch {batch}", hint="Leave it out, or export it anew."
        )
    failure: RuntimeFailure | None = None
    for guess, sizes in guesses(ports, None):
        feeds = generated(ports, sizes, None, RECIPES[0]._replace(batch=batch), np.random.default_rng(seed))
        bounded.check(feeds)
        try:
            session.run(feeds)
        except RuntimeFailure as error:
            failure = failure or error
            continue
        return feeds, () if guess is None else (f"{told(guess, sizes)}: --input-shape tells other sizes",)
    raise ExampleInputError(
        f"ONNX Runtime takes none of the inputs that were made for the file: {failure}",
        where="the file's inputs",
        hint="Give --input-shape or --inputs.",
    )


def _try(session: Session, feeds: Mapping[str, Array], path: Path) -> None:
    try:
        session.run(feeds)
    except RuntimeFailure as failure:
        raise SourceError(
            f"ONNX Runtime cannot run the file: {failure}", where=str(path), hint="Give inputs that it takes."
        ) from failure


def _memory(path: Path, settings: SessionSettings, feeds: Mapping[str, Array]) -> tuple[int, int]:
    """The peak memory of a fresh process before and after it loads the file and runs it once, in bytes."""
    with scratch_folder() as folder:
        arrays, result = folder / "inputs.npz", folder / "result.json"
        with writing_scratch(arrays):
            write_npz(arrays, feeds, {})
        request: dict[str, Any] = {
            "file": str(path.resolve()),
            "inputs": str(arrays),
            "result": str(result),
            "provider": settings.provider.name,
            "threads": settings.threads,
        }
        command = [sys.executable, "-m", "spdexport.measuring.memory", json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["nothing is said"]
            raise SourceError(
                f"The file does not run in a process of its own: {said[-1]}",
                where=str(path),
                hint="Look whether the machine has memory enough.",
            )
        found = json.loads(result.read_text(encoding="utf-8"))
    return int(found["base"]), int(found["peak"])
