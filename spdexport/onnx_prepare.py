"""The first half of every command for an ONNX file as the source: read it, list its layers, decide about them.

There is nothing to trace and nothing to export: the graph of the file is the graph that is rewritten.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from spdexport.errors import SourceError, UsageError, first_line
from spdexport.example_inputs import check_labels, example_inputs
from spdexport.files.hashing import sha256_file
from spdexport.files.onnx_reading import external_files, load_onnx
from spdexport.loading.load import no_keys
from spdexport.loading.model import LABELS
from spdexport.model_files import INLINE_UP_TO, METADATA_PREFIX, recorded_ranges
from spdexport.planning.live_masks import live_notes
from spdexport.prepare import components_of, decide
from spdexport.quiet import heard
from spdexport.ranges import told
from spdexport.rewrite.onnx_constants import source_of
from spdexport.rewrite.onnx_graph import is_operator
from spdexport.rewrite.onnx_ports import name_inputs
from spdexport.rewrite.onnx_rewrite import place_onnx_forms
from spdexport.rewrite.onnx_scopes import initializer_named, node_keys
from spdexport.rewrite.onnx_shapes import live_sizes, value_sizes
from spdexport.rewrite.onnx_sites import LAYERS, functions_with_layers, list_onnx_sites
from spdexport.verification.file_inputs import given_tensors
from spdexport.verification.ports import input_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from spdexport.conv import Array, ConvSite, Skipped
    from spdexport.loading.model import ExampleInputs
    from spdexport.options import Options
    from spdexport.planning import Plan
    from spdexport.ranges import Ranges

OLDEST = 7
"""The oldest opset that is taken as it is: ONNX Runtime runs none before, and Mul and Add broadcast otherwise there."""

LIFTED_TO = 13
"""The opset that older files are lifted to: operators changed less up to there than they did later."""

OLDEST_IR = 4
"""The version of the format from which initializers need not be inputs as well."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PreparedOnnx:
    """An ONNX model ready to be rewritten.

    Attributes:
        path: The file.
        model: As it is read: the file's own, lifted where that was needed. Its weights stay in their file until they
            are read.
        as_written: Whether ``model`` is just what the file holds.
        is_external: Whether the source keeps weights in files beside it.
        inputs: The user's example inputs, or None.
        plan: The decision for each layer.
        components: Where V and U come from: ``spd``, ``file`` or ``svd``.
        hashes: SHA-256 of source, components and masks, as far as there are any.
        notes: What the user should know.
        ranges: The sizes that the file says it holds for, of dynamic axes that have a limit.
        sizes: Those of values by name, where something is known only at run time; else None.
        requires_masks: Whether a mask at run time has no default.
    """

    path: Path
    model: ir.Model
    as_written: bool
    is_external: bool
    inputs: ExampleInputs | None
    plan: Plan
    components: str
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    ranges: Ranges = field(default_factory=dict)
    sizes: Mapping[str, tuple[Any, ...]] | None = None
    requires_masks: bool = False

    def factorized(self) -> ir.Model:
        """Return the model with every layer in the form that the plan names, without what the source notes."""
        plan = self.plan
        model = place_onnx_forms(self.model, plan.forms(), sizes=self.sizes, reads=plan.gate_reads)
        name_inputs(model, plan.runtime_inputs, required=self.requires_masks)
        for key in [key for key in model.metadata_props if key.startswith(METADATA_PREFIX)]:
            del model.metadata_props[key]
        return model

    def effective(self) -> ir.Model:
        """Return the model with dense effective weights; the model itself where no weight changes."""
        changed = [d for d in self.plan.decisions if d.changes]
        return place_onnx_forms(self.model, ((d.site, d.dense_form()) for d in changed)) if changed else self.model

    def plain(self) -> ir.Model:
        """Return the effective model with all layers that have factors written anew: what composing V and U gives back.

        A Gemm that stored its weight transposed, or scaled it, is the plain one there.
        """
        made = ((d.site, d.dense_form()) for d in self.plan.decisions if d.is_decomposed)
        return place_onnx_forms(self.model, made)


def prepare_onnx(path: Path, options: Options, progress: Callable[[str], None] = lambda _: None) -> PreparedOnnx:
    """Read an ONNX file and decide about its layers.

    Args:
        path: The file.
        options: How.
        progress: Told what is being done.

    Raises:
        UsageError: An option has no meaning for an ONNX file, names nothing, or does not go together with another one.
        InputError: The file, components, masks or inputs cannot be used.
    """
    read = read_source(path, options, progress)
    components = components_of(None, options)
    decided = decide(read.sites, read.skipped, components, options, progress, held=_held_by(read.model))
    is_live = any(d.run_time is not None for d in decided.plan.decisions)
    _check_names(read.model, decided.plan)
    return PreparedOnnx(
        path=path,
        model=read.model,
        as_written=read.as_written,
        is_external=read.is_external,
        inputs=read.inputs,
        plan=decided.plan,
        components=decided.components,
        hashes={**read.hashes, **decided.hashes},
        notes=(*read.notes, *live_notes(decided.plan), *decided.notes, *told(read.ranges)),
        ranges=read.ranges,
        sizes=live_sizes(read.model, read.given) if is_live else None,
        requires_masks=options.requires_masks,
    )


def _check_names(model: ir.Model, plan: Plan) -> None:
    """Check that what a layer with a live mask computes has a name of its own, which bodies may have twice.

    Raises:
        UsageError: It has not.
    """
    live = [d.site for d in plan.decisions if d.run_time is not None and d.site.inside]
    if not live:
        return
    keys = node_keys(model.graph)
    names = Counter(value.name for node in keys.values() for value in node.outputs)
    for site in live:
        name = keys[site.node].outputs[0].name
        if names[name] > 1:
            raise UsageError(
                f"The file has {names[name]} values called {name}, so that the check of a mask at run time could not "
                "tell them apart.",
                where=f"layer {site.name}",
                hint=f"Leave the layer out with --exclude '{site.name}', or rename the values.",
            )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadOnnx:
    """An ONNX model that was read, with nothing decided about it; attributes as those of ``PreparedOnnx``.

    Attributes:
        sites: The layers.
        skipped: Those that are left alone.
        given: The user's example inputs by the file's names, or None.
    """

    model: ir.Model
    as_written: bool
    is_external: bool
    inputs: ExampleInputs | None
    sites: tuple[ConvSite, ...]
    skipped: tuple[Skipped, ...]
    hashes: Mapping[str, str]
    notes: tuple[str, ...]
    ranges: Ranges
    given: Mapping[str, Array] | None


def read_source(path: Path, options: Options, progress: Callable[[str], None]) -> ReadOnnx:
    """Read an ONNX file and list its layers; arguments and errors are those of ``prepare_onnx``."""
    _refuse(options)
    progress("loading")
    original = load_onnx(path)
    files = external_files(original)
    _load_small(original)
    model, notes = _readable(original, options.opset, path)
    inputs = example_inputs(options)
    ports = input_ports(model)
    if inputs is not None and all(port.name != LABELS for port in ports):
        check_labels(inputs)
    given = None if inputs is None else given_tensors(ports, inputs)
    sizes = value_sizes(model, given)
    sites, skipped = list_onnx_sites(model, sizes)
    nodes = node_keys(model.graph)
    if unknown := [site.name for site in sites if nodes[site.node].outputs[0].name not in sizes]:
        notes.append(
            f"the file does not tell the output sizes of {_some(unknown)}: MACs are those of one location; "
            "--input-shape tells them"
        )
    data = {f"source {file.name}": sha256_file(file) for file in files}
    return ReadOnnx(
        model=model,
        as_written=model is original,
        is_external=bool(files),
        inputs=inputs,
        sites=sites,
        skipped=skipped,
        hashes={"source": sha256_file(path), **data},
        notes=tuple(notes),
        ranges=recorded_ranges(original, path),
        given=given,
    )


def _refuse(options: Options) -> None:
    """Refuse what tells how a module is made or traced."""
    if options.factory is not None:
        raise UsageError(
            "The source is an ONNX file, which needs no factory.",
            where=f"--factory {options.factory}",
            hint="Leave out either --factory or the source.",
        )
    if options.state_key is not None:
        raise no_keys("an ONNX file", options.state_key)
    if options.dynamic or not options.dynamic_batch:
        raise UsageError(
            "An ONNX file says itself which of its axes are dynamic.",
            where="--dynamic" if options.dynamic else "--static-batch",
            hint="Leave the option out.",
        )


def _load_small(model: ir.Model) -> None:
    """Read the weights that are written into the model itself, wherever they came from."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= INLINE_UP_TO:
                (value.const_value,) = ir.external_data.convert_tensors_from_external([tensor])


def _readable(model: ir.Model, opset: int | None, path: Path) -> tuple[ir.Model, list[str]]:
    """The model in the opset that is needed, with the weights of layers constant; and what was done, in words."""
    notes: list[str] = []
    if model.ir_version < OLDEST_IR:
        notes.append(f"the file's format, version {model.ir_version}, becomes version {OLDEST_IR}")
    current = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
    target = LIFTED_TO if 0 < current < OLDEST else current
    if opset is not None and opset < current:
        raise UsageError(
            f"The source is of opset {current}, and ONNX files are converted to newer opsets only.",
            where=f"--opset {opset}",
            hint=f"Leave --opset out, or ask for {current} or more.",
        )
    target = max(target, opset or 0)
    if 0 < current != target:
        model = _lifted(model, target, path)
        why = "--opset" if opset is not None else f"opsets before {OLDEST} have other operators"
        notes.append(f"lifted from opset {current} to {target} ({why}); functions, if any, are inlined by that")
    if names := functions_with_layers(model):
        model = InlinePass(lambda function: function.name in names)(model.clone()).model
        notes.append(f"inlined, for the layers in them: {_some(names)}")
    defaults = {value.name or "" for value in _defaults(model)}
    inside = [(node, attribute) for node in model.graph.all_nodes() for attribute in node.attributes.values()]
    if not defaults and not any(isinstance(attribute.value, ir.ExternalTensor) for _, attribute in inside):
        return model, notes
    copy = model.clone()
    kept = [value for value in copy.graph.inputs if value.name not in defaults]
    copy.graph.inputs.clear()
    copy.graph.inputs.extend(kept)
    if defaults and model.ir_version >= OLDEST_IR:
        notes.append(f"inputs with a layer's weight as their default are constants now: {_some(sorted(defaults))}")
    copy.ir_version = max(model.ir_version, OLDEST_IR)
    for node in copy.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            # A tensor inside of a node has no place in the data file that is written.
            if isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(attribute.value.numpy().copy()))
    return copy, notes


def _defaults(model: ir.Model) -> list[ir.Value]:
    """Initializers that are inputs as well, and are taken as constants.

    Old files had to list every initializer as an input, and so do files that are exported to look like them. Before
    version 4 of the format no caller could override them; later, those of layers are taken as constants, and others,
    which a caller may mean to set, are left alone.
    """
    listed = {value for value in model.graph.inputs if value.is_initializer()}
    if model.ir_version < OLDEST_IR:
        return list(listed)
    layers = (node for node in model.graph.all_nodes() if is_operator(node, *LAYERS))
    used = [source_of(value) for node in layers for value in node.inputs[1:3]]
    return list(dict.fromkeys(value for value in used if value in listed))


def _lifted(model: ir.Model, target: int, path: Path) -> ir.Model:
    """A copy in another opset, by the version converters of onnxscript and onnx."""
    from onnxscript.version_converter import ConvertVersionPass  # it takes as long to import as all of onnx

    current = model.opset_imports.get("", 0)
    reason = "the converter gives another opset"
    with heard("onnxscript.version_converter") as failures:
        try:
            lifted = ConvertVersionPass(target, fallback=True)(model.clone()).model
            if lifted.opset_imports.get("", 0) == target:
                lifted.ir_version = max(lifted.ir_version, OLDEST_IR)
                return lifted
            reason = failures[-1] if failures else reason
        # The converters raise whatever they trip over.
        except Exception as error:
            reason = first_line(error)
    raise SourceError(
        f"The file is of opset {current}, and the version converter cannot lift it to {target}: {reason}",
        where=str(path),
        hint="Export the model again with a newer opset.",
    )


def _held_by(model: ir.Model) -> Callable[[str], Array | None]:
    def held(name: str) -> Array | None:
        value = initializer_named(model, name)
        return None if value is None or value.const_value is None else value.const_value.numpy()

    return held


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
