"""Ablating components of an ONNX file with run-time masks: many ablations in each run of one session.

The samples of a batch are repeated once for each ablation, and every copy has masks of its own. Works without torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from spdexport.ablation.active import Active, read_active
from spdexport.ablation.masked_runs import BESIDE, SHOWN, RuntimeMask, read_runtime_masks
from spdexport.ablation.sets import ComponentsOf, each_of, read_sets
from spdexport.ablation.work import Ablating
from spdexport.engine.engines import engine_named
from spdexport.errors import MaskError, SourceError, UsageError
from spdexport.files.batches import open_data
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import load_onnx
from spdexport.files.reading import reading
from spdexport.files.safetensors_header import check_header
from spdexport.names import count, did_you_mean
from spdexport.ort.installed import versions
from spdexport.ort.sessions import usable_provider
from spdexport.steps import step
from spdexport.verification.ports import input_ports

if TYPE_CHECKING:
    import onnx_ir as ir

    from spdexport.ablation.effects import Effect
    from spdexport.conv import Array

ROWS = 1024
"""Samples times ablations in one run, where the user does not say."""

ONES, GATES = "ones", "gates"

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablated:
    """One ablation.

    Attributes:
        components: What was removed, or alone was kept.
        effect: What that does; None where the baseline's mask is zero for all of it, so that there was nothing to do.
    """

    components: ComponentsOf
    effect: Effect | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablations:
    """The ablations of a file.

    Attributes:
        file: The file's name.
        found: In the order of layers and components, or of the sets.
        kept: Whether all else in the layers concerned was removed instead.
        baseline: What the outputs are compared with: ``ones``, ``gates``, the name of a file of masks, or both.
        active: What was at work in the baseline and in each ablation alike, in clauses.
        output: The output that was compared.
        samples: How many.
        components: C by layer.
        provider: Where it ran.
        notes: What the user should know.
        hashes: SHA-256 of what was read, by name.
        versions: Of everything that took part.
    """

    file: str
    found: tuple[Ablated, ...]
    kept: bool
    baseline: str
    active: tuple[str, ...]
    output: str
    samples: int
    components: Mapping[str, int]
    provider: str
    notes: tuple[str, ...]
    hashes: Mapping[str, str]
    versions: Mapping[str, str]


def ablate(
    file: str | Path,
    *,
    data: str | Path,
    sets: str | Path | None = None,
    keep: bool = False,
    baseline: str | Path | None = None,
    layers: Sequence[str] = (),
    output: str | None = None,
    provider: str = "cpu",
    threads: int | None = None,
    rows: int = ROWS,
    engine: str = "local",
    progress: Progress = lambda _: None,
) -> Ablations:
    """Measure what removing components does to an output.

    Args:
        file: An ONNX file with inputs ``mask/<layer>``.
        data: The samples: a .npz, .npy or safetensors file, or a folder of such.
        sets: A JSON file of named sets; None for every component by itself.
        keep: Whether to remove all other components of the layers concerned, and keep these.
        baseline: What to start from: ``ones``; ``gates`` for the file's own importances, which run-time masks multiply
            and nothing turns off; or a file of fixed masks, which multiply the gates of a file that has them. None for
            ``gates`` where the file has them, and else for ``ones``.
        layers: Patterns of the layers whose components are ablated; empty for all.
        output: The output to compare; None for the first float one.
        provider: A name in ``spdexport.ort.providers.PROVIDERS``, such as ``cpu``.
        threads: Of one operator; None leaves it to ONNX Runtime.
        rows: Samples times ablations in one run.
        engine: Where the file runs: ``local``, or ``ray`` for workers of Ray.
        progress: Told what is being done.

    Raises:
        UsageError: An option names nothing, or the provider cannot run here.
        InputError: A file that cannot be used.
    """
    path = Path(file)
    if rows < 1:
        raise UsageError(f"A run of {rows} samples holds nothing.", where="--rows", hint="Give a number of at least 1.")
    usable = usable_provider(provider)
    workers = engine_named(engine)
    progress("loading")
    model = load_onnx(path)
    masks = read_runtime_masks(model)
    if not masks:
        raise SourceError(
            "The file has no run-time masks to ablate components with.",
            where=str(path),
            hint="Convert the model with --runtime-masks all.",
        )
    name = _output(model, output)
    components = {mask.layer: mask.channels for mask in masks.values()}
    active = read_active(model, components)
    start, started = _baseline(baseline, masks, active)
    wanted = _wanted(sets, components, layers)
    live = [i for i, one in enumerate(wanted) if any(start[x][list(c)].any() for x, c in one.members.items())]
    opened = open_data(data)
    own = [port for port in input_ports(model) if not port.name.startswith(BESIDE)]
    work = Ablating(
        file=path,
        provider=provider,
        threads=threads,
        masks=masks,
        start=start,
        output=name,
        wanted=tuple(wanted[i] for i in live),
        keep=keep,
        rows=rows,
        data=opened,
        ports=own,
    )
    samples = 0

    def done(number: int) -> None:
        nonlocal samples
        samples += number
        progress(step(f"ablating {count(len(live), 'time')}", done=samples, total=opened.samples, unit="sample"))

    with workers.running():
        ((_, running),) = workers.sums(work, samples=opened.samples, unit=work.batch, done=done)
    effects = dict(zip(live, running.effects(), strict=True)) if live else {}
    notes = list(running.notes)
    if all(effect.kl is None for effect in effects.values()) and effects:
        notes.append(f"{name} is not (batch, classes): there is no top class and no softmax to compare")
    return Ablations(
        file=path.name,
        found=tuple(Ablated(components=one, effect=effects.get(i)) for i, one in enumerate(wanted)),
        kept=keep,
        baseline=started,
        active=active.told,
        output=name,
        samples=samples,
        components=components,
        provider=usable.name,
        notes=tuple(notes),
        hashes={path.name: sha256_file(path), **{f"data {f.name}": sha256_file(f) for f in opened.files}},
        versions=versions(),
    )


def _output(model: ir.Model, wanted: str | None) -> str:
    own = [v for v in model.graph.outputs if not (v.name or "").startswith(SHOWN)]
    floats = [v.name or "" for v in own if v.dtype is not None and v.dtype.is_floating_point()]
    if wanted is None and floats:
        return floats[0]
    if wanted in floats:
        return str(wanted)
    what = "The file has no output of a float type" if wanted is None else f"{wanted!r} is no float output of the file"
    raise UsageError(f"{what}.", where="--output", hint=f"The float outputs are {', '.join(floats) or 'none'}.")


def _baseline(
    given: str | Path | None, masks: Mapping[str, RuntimeMask], active: Active
) -> tuple[dict[str, Array], str]:
    """The masks to start from, (C,) by layer, and what the reports call that.

    Raises:
        UsageError: The file has no gates, or has some and cannot do without them.
        MaskError: The file of masks cannot be used.
    """
    start: dict[str, Array] = {mask.layer: np.ones(mask.channels) for mask in masks.values()}
    if given is None:
        return start, GATES if active.has_gates else ONES
    if given == ONES:
        if active.has_gates:
            raise UsageError(
                "The file has gates in its graph, which multiply every mask: no baseline of ones can be had of it.",
                where="--baseline ones",
                hint="Leave the option out to start from the gates, or convert without --gates.",
            )
        return start, ONES
    if given == GATES:
        if not active.has_gates:
            raise UsageError(
                "The file has no gates in its graph.",
                where="--baseline gates",
                hint="Convert with --gates beside --runtime-masks, or leave the option out.",
            )
        return start, GATES
    path = Path(given)
    check_header(path, error=MaskError)
    hint = "Give ones, gates, or a safetensors file of masks."
    with reading(f"--baseline {path}", error=MaskError, what="The masks cannot be read", hint=hint):
        read = safetensors.numpy.load_file(path)
    for layer, mask in read.items():
        if layer not in start:
            raise MaskError(
                f"The file has no run-time mask of {layer}.", where=str(path), hint=did_you_mean(layer, start)
            )
        if mask.shape != start[layer].shape or not np.isfinite(mask).all():
            raise MaskError(
                f"The mask of {layer} is not {start[layer].size} finite numbers.",
                where=str(path),
                hint="Give masks that were made for these components.",
            )
        start[layer] = mask.astype(np.float64)
    return start, f"{GATES} and {path.name}" if active.has_gates else path.name


def _wanted(sets: str | Path | None, components: Mapping[str, int], layers: Sequence[str]) -> tuple[ComponentsOf, ...]:
    for pattern in layers:
        if not any(fnmatchcase(layer, pattern) for layer in components):
            raise UsageError(
                f"The pattern {pattern!r} matches no layer with a run-time mask.",
                where="--layers",
                hint=did_you_mean(pattern, components),
            )
    chosen = {x: c for x, c in components.items() if not layers or any(fnmatchcase(x, p) for p in layers)}
    if sets is None:
        return each_of(chosen)
    return tuple(one for one in read_sets(Path(sets), components) if any(layer in chosen for layer in one.members))
