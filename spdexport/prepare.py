"""The first half of every command: a source read, traced, its layers listed and matched with components and masks."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from spdexport.arrays import to_numpy
from spdexport.capture import Captured, DynamicAxes, capture
from spdexport.conv import Skipped
from spdexport.edits import apply_edits, edits_note, read_edits
from spdexport.errors import ComponentsError, UsageError
from spdexport.example_inputs import inputs_of
from spdexport.factors import Factors
from spdexport.files.hashing import sha256_tensors
from spdexport.loading.source import Source, load_source
from spdexport.masks import fit_masks, read_masks
from spdexport.names import layer_of_call
from spdexport.ort.providers import provider_named
from spdexport.planning import FactorSource, Objective, Plan, check_patterns, make_plan, matches
from spdexport.planning.foreign import check_orders, hidden_notes
from spdexport.planning.live_masks import LiveMasks, live_notes
from spdexport.rewrite.torch_graph import list_sites
from spdexport.rewrite.torch_place import place_forms
from spdexport.rewrite.torch_tokens import over_tokens
from spdexport.sources.match import adapter_notes, check_target, match_chains, match_components, match_gates
from spdexport.sources.spd import load_components
from spdexport.sources.svd import svd_source
from spdexport.steps import step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch.export import ExportedProgram

    from spdexport.conv import Array, ConvSite
    from spdexport.cost import CostModel
    from spdexport.edits import EditSet
    from spdexport.forms import Form
    from spdexport.loading import LoadedModel
    from spdexport.masks import MaskSet
    from spdexport.options import Options
    from spdexport.ranges import Ranges
    from spdexport.sources.components import ComponentSet

LEFT_DENSE = "the file of forms leaves it dense"
"""Why a layer is left alone of which a file of forms has nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A model ready to be rewritten.

    Attributes:
        loaded: What loading gave.
        captured: The traced model.
        plan: The decision for each of its layers.
        components: Where V and U come from: ``spd``, ``file`` or ``svd``.
        hashes: SHA-256 of source, components and masks, as far as there are any.
        notes: What the user should know.
        run: The run or file that V and U come from; None for the SVD.
        own_inputs: Whether the values of the example inputs are the user's or the source's own.
    """

    loaded: LoadedModel
    captured: Captured
    plan: Plan
    components: str
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    run: ComponentSet | None = None
    own_inputs: bool = True

    @property
    def ranges(self) -> Ranges:
        """The sizes that the model holds for, of dynamic axes that have a limit."""
        return self.captured.ranges

    def factorized(self, forms: Iterable[tuple[ConvSite, Form]] | None = None) -> ExportedProgram:
        """Return the program with every layer in the form that the plan names.

        ``forms`` are those, where they are made.
        """
        taken = self.plan.forms() if forms is None else forms
        return place_forms(self.captured.program, taken, reads=self.plan.gate_reads)

    def effective(self, forms: Iterable[tuple[ConvSite, Form]] | None = None) -> ExportedProgram:
        """Return the traced program with dense effective weights; the traced program itself where no weight changes.

        ``forms`` are the plan's dense ones, where they are made.
        """
        taken = list(self.plan.dense_forms() if forms is None else forms)
        return place_forms(self.captured.program, taken) if taken else self.captured.program


def prepare(
    source: Source,
    options: Options,
    progress: Callable[[str], None] = lambda _: None,
    *,
    shapes: Sequence[str] = (),
) -> Prepared:
    """Read a source, trace it, and decide about its layers.

    Args:
        source: A file, a module, a program; None for ``options.factory`` alone.
        options: How.
        progress: Told what is being done.
        shapes: What inputs of a file that was made of the source have, as ``--input-shape`` has it: where there are no
            example inputs, such are made.

    Raises:
        UsageError: Options that do not go together, or that name nothing.
        InputError: A file that cannot be used.
        CaptureError: The model cannot be traced.
    """
    traced = trace(source, options, progress, shapes=shapes)
    components, captured = traced.components, traced.captured
    decided = decide(
        traced.sites,
        traced.skipped,
        components,
        options,
        progress,
        held=_held_by(captured.program),
        beside=traced.loaded.components is None,
    )
    return Prepared(
        loaded=traced.loaded,
        captured=captured,
        plan=decided.plan,
        components=decided.components,
        hashes={"source": traced.sha256, **decided.hashes},
        notes=(*traced.loaded.notes, *traced.told, *captured.notes, *live_notes(decided.plan), *decided.notes),
        run=components,
        own_inputs=options.own_inputs and not traced.told,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traced:
    """A model that was read and traced, with nothing decided about it.

    Attributes:
        loaded: What loading gave.
        captured: The traced model.
        components: Those of the source itself, or of the user's choice; None for the SVD.
        sites: The layers.
        skipped: Those that are left alone.
        sha256: Of the source.
        told: Notes on example inputs that were worked out.
    """

    loaded: LoadedModel
    captured: Captured
    components: ComponentSet | None
    sites: tuple[ConvSite, ...]
    skipped: tuple[Skipped, ...]
    sha256: str
    told: tuple[str, ...]


def trace(source: Source, options: Options, progress: Callable[[str], None], *, shapes: Sequence[str] = ()) -> Traced:
    """Read a source, trace it, and list its layers; arguments and errors are those of ``prepare``."""
    progress("loading")
    loaded = load_source(
        source,
        factory=options.factory,
        trust=options.trust,
        state_key=options.state_key,
        seed=options.seed,
        has_inputs=options.inputs is not None or bool(options.input_shape),
    )
    progress("tracing")
    inputs, told = inputs_of(options, loaded, shapes)
    captured = capture(loaded, inputs, DynamicAxes.parse(options.dynamic, batch=options.dynamic_batch))
    components = components_of(loaded.components, options)
    if components is not None or options.asks_for_live_masks:
        captured = replace(captured, program=over_tokens(captured.program))
    named = frozenset(() if components is None else components.layers)
    dashed = components is not None and components.dashed
    sites, skipped = list_sites(
        captured.program,
        looks_up=lambda name: (layer_of_call(name).replace(".", "-") if dashed else layer_of_call(name)) in named,
    )
    return Traced(
        loaded=loaded,
        captured=captured,
        components=components,
        sites=tuple(sites),
        skipped=tuple(skipped),
        sha256=loaded.sha256 or sha256_tensors(_weights(captured.program)),
        told=told,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decided:
    """What the options make of a model's layers.

    Attributes:
        plan: The decision for each.
        components: As ``Prepared.components``.
        hashes: SHA-256 of components and masks, as far as there are any.
        notes: What the user should know of components and edits.
    """

    plan: Plan
    components: str
    hashes: Mapping[str, str]
    notes: tuple[str, ...] = ()


def decide(
    sites: Sequence[ConvSite],
    skipped: Sequence[Skipped],
    components: ComponentSet | None,
    options: Options,
    progress: Callable[[str], None],
    *,
    held: Callable[[str], Array | None],
    beside: bool = True,
) -> Decided:
    """Match the layers of a model, of whichever kind its graph is, with components and masks, and plan.

    Args:
        sites: The layers.
        skipped: Those that are left alone.
        components: Those of the source itself, or of the user's choice; None for the SVD.
        options: What the user wants.
        progress: Told what is being done.
        held: What the model holds under a name, which a state dict may repeat; None for nothing.
        beside: Whether they come from elsewhere than the source, so that it may be another model.

    Raises:
        UsageError: Options that do not go together, or that name nothing.
        InputError: Components or masks that cannot be used.
    """
    progress("matching components")
    masks = read_masks(options.masks, threshold=options.mask_threshold) if options.masks else None
    edits = None if options.edit is None else read_edits(options.edit)
    if components is None and edits is not None:
        raise UsageError(
            "Without components there is nothing to edit: those of the SVD are in no order that stays.",
            where="--edit",
            hint="Give an SPD run as the source, or --components.",
        )
    if components is None:
        factor_source = _svd_with_masks(sites, options, masks)
    else:
        factor_source = _from_components(components, sites, skipped, options, masks, edits, held=held, beside=beside)
    gates = match_gates(components, sites, options.sigmoid) if components is not None and options.gates else {}
    progress("planning")
    others = () if components is None else (*components.layers, *components.identity)
    hashes = {
        "components": None if components is None else components.sha256,
        "masks": None if masks is None else masks.sha256,
        "edit": None if edits is None else edits.sha256,
    }
    plan = make_plan(
        sites,
        skipped,
        _counted(factor_source, len(sites), progress),
        options.planning,
        live_masks=LiveMasks(options=options.live_masks, gates=gates),
        others=others,
        cost_model=_measured(options, progress),
        record=options.plan,
    )
    notes = [] if edits is None else [edits_note(edits)]
    if components is not None:
        check_orders(plan, str(components.path or "the components"))
        taken = [site for site in sites if not matches(site.name, options.exclude)]
        notes += (*adapter_notes(components, taken), *hidden_notes(plan, beside=beside))
    return Decided(
        notes=tuple(notes),
        plan=plan,
        components="svd" if components is None else components.kind,
        hashes={k: v for k, v in hashes.items() if v is not None},
    )


def _counted(source: FactorSource, layers: int, progress: Callable[[str], None]) -> FactorSource:
    """Return a source of factors that tells the layer that is planned, whose factors it is asked for first."""
    numbers = itertools.count()

    def told(site: ConvSite) -> Factors | Form | Skipped | None:
        progress(step("planning", done=next(numbers), total=layers, detail=site.name))
        return source(site)

    return told


def _measured(options: Options, progress: Callable[[str], None]) -> CostModel | None:
    """What latency is measured by; None where nothing is to be measured."""
    if options.optimize_for is not Objective.LATENCY or options.plan is not None:
        return None
    from spdexport.latency import LatencyCost  # brings ONNX Runtime

    return LatencyCost(provider=provider_named(options.target), lane=options.planning.padding, told=progress)


def components_of(own: ComponentSet | None, options: Options) -> ComponentSet | None:
    """Return the components that the source itself brought, or those of the user's choice; None for the SVD.

    Raises:
        UsageError: There are both.
        ComponentsError: The file cannot be used.
    """
    if options.components is None:
        return own
    given = load_components(options.components)
    # Forms that stand in a file as a whole are those of the run's model, and need none of its components.
    if own is not None and not given.chains.chains:
        raise UsageError(
            "The source is an SPD run, which has components of its own.",
            where="--components",
            hint="Leave --components out, or give the dense model as the source.",
        )
    return given


def _svd_with_masks(sites: Sequence[ConvSite], options: Options, masks: MaskSet | None) -> FactorSource:
    """The SVD as the source; masks may select among singular components."""
    if masks is None:
        return svd_source
    found = {site.name: svd_source(site) for site in sites if not matches(site.name, options.exclude)}
    factors = {name: f for name, f in found.items() if isinstance(f, Factors)}
    masked = fit_masks(
        masks,
        factors,
        layers=[s.name for s in sites],
        left=[f for f in found.values() if isinstance(f, Skipped)],
        excluded=lambda name: matches(name, options.exclude),
    )
    return lambda site: masked.get(site.name) or found.get(site.name)


def _from_components(
    components: ComponentSet,
    sites: Sequence[ConvSite],
    skipped: Sequence[Skipped],
    options: Options,
    masks: MaskSet | None,
    edits: EditSet | None,
    *,
    held: Callable[[str], Array | None],
    beside: bool,
) -> FactorSource:
    names = [s.name for s in sites] + [s.name for s in skipped]
    check_patterns(options.exclude, [*names, *components.layers, *components.identity], "--exclude")
    if beside:
        check_target(components, sites)

    def excluded(name: str) -> bool:
        return matches(name, options.exclude)

    factors = match_components(components, sites, skipped, excluded=excluded)
    forms = match_chains(components, sites, skipped, excluded=excluded, held=held)
    if not factors and not forms and not all(excluded(site.name) for site in sites):
        raise ComponentsError(
            "No layer of the model has components.",
            where=str(components.path or "the components"),
            hint="Look at the names with spdexport inspect.",
        )
    if edits is not None:
        factors = apply_edits(edits, factors, layers=names, excluded=excluded)
    if masks is not None:
        factors = fit_masks(masks, factors, layers=names, left=skipped, excluded=excluded)
    return _lookup({**factors, **forms}, has_forms=bool(components.chains.chains))


def _lookup(found: Mapping[str, Factors | Form], *, has_forms: bool) -> FactorSource:
    """What was found for a layer; of a file of forms, that it has none for it is its decision."""

    def source(site: ConvSite) -> Factors | Form | Skipped | None:
        its = found.get(site.name)
        if its is None and has_forms:
            return Skipped(name=site.name, kind=site.kind, reason=LEFT_DENSE)
        return its

    return source


def _held_by(program: ExportedProgram) -> Callable[[str], Array | None]:
    def held(name: str) -> Array | None:
        tensor = program.state_dict.get(name, program.constants.get(name))
        return to_numpy(tensor) if isinstance(tensor, torch.Tensor) else None

    return held


def _weights(program: ExportedProgram) -> dict[str, torch.Tensor]:
    return {name: t for name, t in program.state_dict.items() if isinstance(t, torch.Tensor)}
