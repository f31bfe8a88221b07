"""Fixed masks derived from data: the importances that the run's gates give in the dense model's own pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np

from spdexport.engine.engines import engine_named
from spdexport.engine.work import EngineKind
from spdexport.errors import ComponentsError, ExampleInputError, UsageError
from spdexport.files.batches import Data, DataSet, named_batches, open_data
from spdexport.files.hashing import sha256_file
from spdexport.importance.derive_listed import Listed, derive_listed
from spdexport.importance.result import DerivedMasks, LayerMask
from spdexport.importance.statistics import Measure, Rule
from spdexport.importance.work import Gated, Importance
from spdexport.importance.written import check_name, write_masks
from spdexport.loading.inputs import inputs_from_arrays
from spdexport.names import layer_of_call
from spdexport.options import Options, OptionsDict
from spdexport.ort.installed import versions
from spdexport.overwriting import check_overwriting, importances_name
from spdexport.prepare import prepare
from spdexport.sources.match import match_gates
from spdexport.sources.spd_gates import Gates
from spdexport.steps import step

if TYPE_CHECKING:
    from spdexport.conv import Array
    from spdexport.loading.model import ExampleInputs
    from spdexport.loading.source import Source
    from spdexport.prepare import Prepared

BATCH = 64

Progress = Callable[[str], None]


def derive_masks(
    source: Source,
    output: str | Path | None = None,
    *,
    data: str | Path | Data | None = None,
    harvest: str | Path | None = None,
    names: str | Path | None = None,
    labels: str | Path | None = None,
    label: Sequence[str] = (),
    remove: bool = False,
    by: str | None = None,
    threshold: float | None = None,
    min_frequency: float = 0.0,
    top: int | None = None,
    batch: int = BATCH,
    engine: str = "local",
    progress: Progress = lambda _: None,
    **options: Unpack[OptionsDict],
) -> DerivedMasks:
    """Run a data set through the dense model, and keep the components that the run's gates find important.

    In the place of the data, a file may tell which components are kept: no model runs then, and none is needed.

    Args:
        source: As for ``convert``; its components are those of an SPD run with causal-importance functions.
        output: The masks' file, safetensors; the importances are written beside it, as ``<layer>/peak``,
            ``<layer>/mean`` and ``<layer>/frequency`` in ``OUT.importances.safetensors``. None to write nothing.
        data: A .npz, .npy or safetensors file or a folder of such, or batches of arrays.
        harvest: A ``harvest.db`` of SPD's code, with the firing density and mean importance of each component.
        names: A JSON file of the components to keep: ``["layer:3", ...]``, or objects of such lists.
        labels: A table of components and their labels: CSV, TSV, JSON or SQLite.
        label: Patterns (fnmatch) of the labels whose components are kept.
        remove: Whether what ``names`` or ``label`` tell is removed, and all else of the layers that they name is kept.
        by: ``peak``, ``mean`` or ``frequency`` of the importance; None for the peak, and for the firing density of a
            harvest.
        threshold: Kept where the peak or mean is greater; for ``frequency``, an importance above it counts as firing.
            None for 0.1; the mean of a harvest has to be given one.
        min_frequency: For ``frequency``, the least share of samples and locations.
        top: The number of components that each layer keeps, in the place of a limit.
        batch: Samples that are run together, of a file; batches that are given are taken as they are.
        engine: Where the data run: ``local``, or ``ray`` for workers of Ray, which need files.
        progress: Told what is being done.
        **options: See ``spdexport.Options``; what is about forms and masks has no meaning here.

    Raises:
        UsageError: Options that do not go together.
        ComponentsError: The source has no causal-importance functions.
        InputError: A file that cannot be used.
        CaptureError: The model cannot be traced.
    """
    path = None if output is None else Path(output)
    files = {"harvest": harvest, "names": names, "labels": labels}
    check_overwriting({"source": source, "output": path, "data": data, **files, **options})
    _check_one(data=data, **files)

    def rule_of(measure: str) -> Rule:
        return _rule(measure, 0.1 if threshold is None else threshold, min_frequency, top)

    if batch < 1:
        raise UsageError(f"A batch of {batch} holds nothing.", where="--batch", hint="Give a number of at least 1.")
    if path is not None:
        check_name(path)
    workers = engine_named(engine)
    if data is None:
        given = {name: None if file is None else Path(file) for name, file in files.items()}
        listed = Listed(**given, patterns=(label,) if isinstance(label, str) else tuple(label), remove=remove)
        progress("masks")
        return derive_listed(source, path, listed, rule_of=rule_of, by=by, threshold=threshold, options=options)
    Listed(patterns=tuple(label)).check()
    rule = rule_of(by or Measure.PEAK.value)
    beside = None if path is None else importances_name(path)
    opened = open_data(data) if isinstance(data, str | Path) else None
    if opened is None and workers.kind is not EngineKind.LOCAL:
        raise UsageError(
            "Batches that come one after another stay in this process.",
            where=f"the data and --engine {workers.kind}",
            hint="Save them to files, and give these.",
        )
    batches = iter(named_batches(data) if opened is None else opened.batches(batch))  # type: ignore[arg-type]
    first = next(batches, None)
    if first is None:
        raise ExampleInputError("There are no data.", where="the data", hint="Give at least one sample.")
    origin = "the data" if opened is None else str(opened.path)
    if "inputs" not in options and "input_shape" not in options:
        options = {**options, "inputs": _example(first, origin)}
    chosen = Options.of(options)
    prepared = prepare(source, chosen, progress)
    gated, further = _gated(prepared, chosen)
    work = Importance(
        program=prepared.captured.program,
        gated=gated,
        data=chain((first,), batches) if opened is None else opened,
        batch=batch,
        threshold=rule.threshold,
        origin=origin,
    )
    samples, total = 0, None if opened is None else opened.samples

    def done(number: int) -> None:
        nonlocal samples
        samples += number
        progress(step("importances", done=samples, total=total, unit="sample"))

    with workers.running():
        sums = dict(workers.sums(work, samples=total, unit=batch, done=done))
    found = {name: one.result() for name, one in sums.items()}
    layers = tuple(LayerMask(name=name, importances=found[name], mask=found[name].mask(rule)) for name in gated)
    written: tuple[Path, ...] = ()
    if path is not None and beside is not None:
        written = (path, beside)
        write_masks(layers, path, beside)
    return DerivedMasks(
        layers=layers,
        rule=rule,
        samples=samples,
        outputs=written,
        notes=(*prepared.loaded.notes, *prepared.captured.notes, *further),
        hashes={**prepared.hashes, **_hashes(opened), **{p.name: sha256_file(p) for p in written}},
        seed=chosen.seed,
        versions=versions(),
    )


def _check_one(**given: object) -> None:
    """Refuse all but one answer to where masks come from.

    Raises:
        UsageError: There is none, or more than one.
    """
    told = [name for name, value in given.items() if value is not None]
    if len(told) != 1:
        options = [f"--{name}" for name in told or given]
        raise UsageError(
            "Masks come from one thing." if told else "There are no data, and no file to make masks from.",
            where=" and ".join(options) if told else "the command",
            hint="Give one of --data, --harvest, --names and --labels.",
        )


def _rule(by: str, threshold: float, min_frequency: float, top: int | None) -> Rule:
    try:
        measure = Measure(by)
    except ValueError:
        allowed = ", ".join(m.value for m in Measure)
        raise UsageError(f"{by!r} is no measure.", where="--by", hint=f"Choose one of {allowed}.") from None
    if not np.isfinite(threshold):
        raise UsageError(f"The threshold is {threshold}.", where="--threshold", hint="Give a finite number.")
    if not 0 <= min_frequency <= 1:
        raise UsageError(
            f"A share of {min_frequency} cannot be.", where="--min-frequency", hint="Give a number from 0 to 1."
        )
    if min_frequency and measure is not Measure.FREQUENCY:
        raise UsageError(
            f"--min-frequency says nothing about the {measure.value}.",
            where="--min-frequency",
            hint="Give --by frequency with it.",
        )
    if top is not None and top < 1:
        raise UsageError(f"The top {top} are none.", where="--top", hint="Give a number of at least 1.")
    return Rule(by=measure, threshold=threshold, min_frequency=min_frequency, top=top)


def _example(batch: Mapping[str, Array], origin: str) -> ExampleInputs:
    """The first samples, with which the model is traced."""
    return inputs_from_arrays({name: array[:2] for name, array in batch.items()}, origin)


def _gated(prepared: Prepared, options: Options) -> tuple[dict[str, Gated], tuple[str, ...]]:
    """The layers that have components and a function, by name; and what the user should know of the functions."""
    components = prepared.run
    sites = [d.site for d in prepared.plan.decisions]
    gates = {} if components is None else match_gates(components, sites, options.sigmoid)
    found: dict[str, Gated] = {}
    for decision in prepared.plan.decisions:
        layer = layer_of_call(decision.site.name)
        if decision.factors is None or layer not in gates:
            continue
        if decision.site.name != layer:
            raise ComponentsError(
                f"{layer} is called more than once, and SPD has one importance for it.",
                where=f"layer {layer}",
                hint=f"Leave the layer out with --exclude '{layer}*'.",
            )
        found[layer] = Gated(site=decision.site, factors=decision.factors, gate=gates[layer])
    if not found:
        raise ComponentsError(
            "There are no causal-importance functions to derive masks from.",
            where=str(options.components or prepared.loaded.path or "the source"),
            hint="Give an SPD run or checkpoint, as the source or as --components.",
        )
    notes = []
    if components is not None and isinstance(components.gates, Gates):
        functions = components.gates.with_sigmoid(options.sigmoid)
        notes += [] if functions.note is None else [functions.note]
        alive = functions.alive_above
        if alive:  # SPD's own default, 0, says nothing of this run
            notes.append(f"the run's own configuration counts a component as alive above {alive:g}")
    return found, tuple(notes)


def _hashes(opened: DataSet | None) -> dict[str, str]:
    return {} if opened is None else {f"data {file.name}": sha256_file(file) for file in opened.files}
