"""Fixed masks derived from data: the importances that the run's gates give in the dense model's own pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from spdexport.arrays import to_numpy, to_torch
from spdexport.conv import stored_weight
from spdexport.errors import ComponentsError, ExampleInputError, UsageError
from spdexport.factors import v_filters
from spdexport.files.batches import Data, DataSet, filled, named_batches, open_data
from spdexport.files.hashing import sha256_file
from spdexport.gates import GlobalShare, evaluate_global
from spdexport.gates import evaluate as evaluate_gate
from spdexport.importance.derive_listed import Listed, derive_listed
from spdexport.importance.result import DerivedMasks, LayerMask
from spdexport.importance.statistics import Importances, Measure, Rule, Running
from spdexport.importance.written import check_name, write_masks
from spdexport.loading.inputs import inputs_from_arrays
from spdexport.names import layer_of_call
from spdexport.options import Options, OptionsDict
from spdexport.ort.installed import versions
from spdexport.overwriting import check_overwriting, importances_name
from spdexport.prepare import prepare
from spdexport.reference.torch_reference import evaluate
from spdexport.rewrite.torch_builder import convolution
from spdexport.rewrite.torch_graph import operands
from spdexport.sources.match import match_gates
from spdexport.sources.spd_gates import Gates
from spdexport.steps import step
from spdexport.verification.inputs import input_names

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from spdexport.conv import Array, ConvSite
    from spdexport.factors import Factors
    from spdexport.gates import GateFunction
    from spdexport.loading.model import ExampleInputs
    from spdexport.loading.source import Source
    from spdexport.prepare import Prepared

BATCH = 64

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Gated:
    """A layer whose importances are computed."""

    site: ConvSite
    factors: Factors
    gate: GateFunction | GlobalShare


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
    if data is None:
        given = {name: None if file is None else Path(file) for name, file in files.items()}
        listed = Listed(**given, patterns=(label,) if isinstance(label, str) else tuple(label), remove=remove)
        progress("masks")
        return derive_listed(source, path, listed, rule_of=rule_of, by=by, threshold=threshold, options=options)
    Listed(patterns=tuple(label)).check()
    rule = rule_of(by or Measure.PEAK.value)
    beside = None if path is None else importances_name(path)
    opened = open_data(data) if isinstance(data, str | Path) else None
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
    found, samples = _run(prepared, gated, first, batches, rule, opened, origin, progress)
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
        options = [f"--{'inputs' if name == 'data' else name}" for name in told or given]
        raise UsageError(
            "Masks come from one thing." if told else "There are no data, and no file to make masks from.",
            where=" and ".join(options) if told else "the command",
            hint="Give one of --inputs, --harvest, --names and --labels.",
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


def _gated(prepared: Prepared, options: Options) -> tuple[dict[str, _Gated], tuple[str, ...]]:
    """The layers that have components and a function, by name; and what the user should know of the functions."""
    components = prepared.run
    sites = [d.site for d in prepared.plan.decisions]
    gates = {} if components is None else match_gates(components, sites, options.sigmoid)
    found: dict[str, _Gated] = {}
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
        found[layer] = _Gated(site=decision.site, factors=decision.factors, gate=gates[layer])
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


def _run(
    prepared: Prepared,
    gated: Mapping[str, _Gated],
    first: Mapping[str, Array],
    rest: Iterable[Mapping[str, Array]],
    rule: Rule,
    opened: DataSet | None,
    origin: str,
    progress: Progress,
) -> tuple[dict[str, Importances], int]:
    program = prepared.captured.program
    running = {name: Running(one.gate.components, rule.threshold) for name, one in gated.items()}
    fixed = _fixed_batch(program)
    done = 0
    for batch in _chain(first, rest):
        number = min(len(array) for array in batch.values())
        for start in range(0, number, fixed or number):
            part = {name: array[start : start + (fixed or number)] for name, array in batch.items()}
            _take(program, gated, running, filled(part, fixed), min(number - start, fixed or number), origin)
        done += number
        total = None if opened is None else opened.samples
        progress(step("importances", done=done, total=total, unit="sample"))
    return {name: one.result() for name, one in running.items()}, done


def _chain(first: Mapping[str, Array], rest: Iterable[Mapping[str, Array]]) -> Iterable[Mapping[str, Array]]:
    yield first
    yield from rest


def _fixed_batch(program: ExportedProgram) -> int | None:
    """The batch of a program that takes no other; None where it may change."""
    names = set(input_names(program))
    first = next(
        (
            node.meta["val"]
            for node in program.graph.nodes
            if node.op == "placeholder" and node.name in names and node.meta["val"].ndim
        ),
        None,
    )
    return int(first.shape[0]) if first is not None and isinstance(first.shape[0], int) else None


class _EnoughError(Exception):
    """All layers were seen; what follows in the model is not needed."""


def _take(
    program: ExportedProgram,
    gated: Mapping[str, _Gated],
    running: Mapping[str, Running],
    batch: Mapping[str, Array],
    number: int,
    origin: str,
) -> None:
    """Run one batch, and take in the importances of its first ``number`` samples."""
    inputs = inputs_from_arrays(batch, origin)
    if not all(np.isfinite(to_numpy(t)).all() for t in inputs.tensors() if t.is_floating_point()):
        raise ExampleInputError("The data hold NaN or infinity.", where=origin, hint="Mend or remove these samples.")
    share = next((one.gate for one in gated.values() if isinstance(one.gate, GlobalShare)), None)
    sites = [one.site for one in gated.values()] if share is None else [one.site for one in share.inputs]
    readers: dict[str, list[str]] = {}
    nodes = {node.name: node for node in program.graph.nodes}
    for site in sites:
        readers.setdefault(operands(nodes[site.node]).data.name, []).append(site.name)
    waiting = set(readers)
    read: dict[str, torch.Tensor] = {}

    def see(name: str, value: torch.Tensor) -> None:
        for layer in readers.get(name, ()):
            if share is not None:
                read[layer] = value
            else:
                one = gated[layer]
                found = _importances(one, value)
                running[layer].add(found[:number])
        waiting.discard(name)
        if not waiting:
            raise _EnoughError

    tensors = dict(zip(input_names(program), inputs.tensors(), strict=False))
    try:
        for name, tensor in tensors.items():
            if name in readers:
                see(name, tensor)
        evaluate(program, inputs.args, inputs.kwargs, float64=False, watch=see)
    except _EnoughError:
        pass
    except (RuntimeError, TypeError, ValueError) as error:
        raise ExampleInputError(
            f"The model does not take the data: {str(error).splitlines()[0]}",
            where=origin,
            hint="Save them by the names of the model's inputs, with the shapes that it was traced with.",
        ) from error
    if share is not None:
        for layer, found in _shared(share, read, origin).items():
            if layer in running:
                running[layer].add(found[:number].astype(gated[layer].site.weight.dtype))


def _shared(share: GlobalShare, read: Mapping[str, torch.Tensor], origin: str) -> Mapping[str, Array]:
    """The importances of all layers, of what each reads."""
    try:
        return evaluate_global(share.function, {one.layer: one.read(to_numpy(read[one.layer])) for one in share.inputs})
    except ValueError as error:
        raise ComponentsError(
            f"The causal-importance function of all layers does not take what they read: {error}.",
            where=origin,
            hint="Give data of the kind that SPD trained on: (batch, channels) or (batch, tokens, channels).",
        ) from error


def _importances(one: _Gated, value: torch.Tensor) -> Array:
    """Of what a layer reads: shape (batch, ..., C), rounded to the layer's dtype as SPD computes it."""
    site, factors, gate = one.site, one.factors, one.gate
    assert not isinstance(gate, GlobalShare), "those are computed together"
    if site.is_lookup:
        activation = to_torch(np.ascontiguousarray(factors.V))[value]
    elif not site.spec.axes:
        activation = value @ to_torch(np.ascontiguousarray(factors.V))
    else:
        spec = replace(site.spec, out_channels=factors.components)
        target, arguments = convolution(spec)
        filters = to_torch(np.ascontiguousarray(stored_weight(v_filters(factors, site.spec), spec)))
        activation = target(value, filters, None, *arguments).movedim(1, -1)
    given: Any = to_numpy(value).astype(np.float64) if gate.kind.reads_input else None
    found = evaluate_gate(gate, to_numpy(activation).astype(np.float64), given)
    return found.astype(site.weight.dtype)


def _hashes(opened: DataSet | None) -> dict[str, str]:
    return {} if opened is None else {f"data {file.name}": sha256_file(file) for file in opened.files}
