"""Where a fault begins: the first layer, in the order of computation, whose output is more than rounding off."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from spdexport.arrays import to_numpy
from spdexport.files.onnx_reading import reload_onnx
from spdexport.names import layer_of_call
from spdexport.ort.sessions import RuntimeFailure, SessionSettings
from spdexport.reference.noise import Noise
from spdexport.reference.torch_reference import evaluate, evaluate_together
from spdexport.rewrite.torch_graph import module_path
from spdexport.verification.layers import layer_of_weight
from spdexport.verification.tapping import as_it_is, channel_ratio, diverges, tapped, tapping_hides
from spdexport.verification.trial import NOISE_RUNS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.planning import Plan
    from spdexport.verification.inputs import Case
    from spdexport.verification.tapping import Meant

Visit = Callable[[str, "Array", "list[Array]", "Array"], bool]
"""Told a node's name, its value in float64, the same in the model's dtype and with noise, and the value under
suspicion; gives True where enough was seen."""


def first_divergent_layer(
    program: ExportedProgram, reference: ExportedProgram, case: Case, *, unit_rounding: float
) -> str | None:
    """Return the first layer at which two programs differ in float64, both having node names in common.

    Args:
        program: The program under suspicion.
        reference: What it should compute.
        case: The inputs that showed the fault.
        unit_rounding: Of the model's dtype.
    """
    values: dict[str, Array] = {}
    common = {n.name for n in program.graph.nodes} & {n.name for n in reference.graph.nodes}

    def watch(name: str, tensor: torch.Tensor) -> None:
        if name in common:
            values[name] = to_numpy(tensor)

    evaluate(program, case.inputs.args, case.inputs.kwargs, watch=watch)
    return _first(reference, case, values, _paths(reference), unit_rounding)


def first_divergent_node(
    program: ExportedProgram, case: Case, values: Mapping[str, Array], *, unit_rounding: float
) -> str | None:
    """Return the layer of the first of some values, by node name, that is not what a program has for it."""
    return _first(program, case, values, _paths(program), unit_rounding)


def first_divergent_value(
    path: Path,
    lowered: ExportedProgram,
    case: Case,
    inputs: Mapping[str, Array],
    settings: SessionSettings,
    *,
    outputs: Sequence[str],
    unit_rounding: float,
    meant: Meant = as_it_is,
) -> tuple[str | None, str]:
    """Return the first layer of a file that diverges from a program, found in one session with every value tapped.

    Args:
        path: The file.
        lowered: The program whose nodes have the names of the file's values.
        case: The inputs that showed the fault.
        inputs: The same by the file's input names.
        settings: Of the session that showed it.
        outputs: Names that the file has for the program's tensor outputs, which lost those of the nodes.
        unit_rounding: Of the model's dtype.
        meant: What the file has for a value of the program.

    Returns:
        The layer, or None; and a remark for the report.
    """
    try:
        values, weights = _tapped_nodes(path, lowered, inputs, settings, outputs)
    except RuntimeFailure as error:
        return None, f"the layers could not be tapped: {error}"
    if not values:
        return None, "no inner value of the file has a name of the program's"
    # A layer that another was folded into has only the weight's name to tell it by.
    paths = {name: weights.get(name) or layer for name, layer in _paths(lowered).items()}
    layer = _first(lowered, case, values, paths, unit_rounding, meant)
    return layer, "" if layer else tapping_hides(settings)


def layer_ratios(
    path: Path,
    lowered: ExportedProgram,
    case: Case,
    inputs: Mapping[str, Array],
    *,
    outputs: Sequence[str],
    unit_rounding: float,
    plan: Plan,
    meant: Meant = as_it_is,
) -> dict[str, float]:
    """Return the noise ratio of each layer's output, in the worst channel, from one unoptimized session on the CPU.

    Args:
        path: The file.
        lowered: The program whose nodes have the names of the file's values.
        case: The inputs.
        inputs: The same by the file's input names.
        outputs: As for ``first_divergent_value``.
        unit_rounding: Of the model's dtype.
        plan: The layers.
        meant: What the file has for a value of the program.

    Returns:
        By the layers' names, without the number of a call; layers whose output has no name in the file are left out.

    Raises:
        RuntimeFailure: The file does not run with all its values as outputs.
    """
    values, weights = _tapped_nodes(path, lowered, inputs, SessionSettings(spinning=False), outputs)
    ends: dict[str, tuple[str, int]] = {}
    by_path = {path: name for name, path in _paths(lowered).items()}
    for decision in plan.decisions:
        layer = layer_of_call(decision.site.name)
        axis = 1 if decision.site.spec.axes else -1
        name = by_path.get(layer)
        if name not in values:
            # With a batch norm in it, the layer has that one's value, and is what reads its last weight.
            name = next((n for n, reader in reversed(weights.items()) if reader == layer and n in values), None)
        if name is not None:
            ends[name] = (layer, axis)
    found: dict[str, float] = {}

    def visit(name: str, exact: Array, others: list[Array], value: Array) -> bool:
        if name in ends:
            layer, axis = ends[name]
            ratio = channel_ratio(value, exact, others, unit_rounding, axis)
            found[layer] = max(found.get(layer, 0.0), ratio)
        return False

    _visit(lowered, case, values, unit_rounding, visit, runs=NOISE_RUNS, meant=meant)
    return found


def _paths(program: ExportedProgram) -> dict[str, str]:
    """The module path of each node's layer, in the order of computation."""
    return {n.name: module_path(n) or n.name for n in program.graph.nodes if n.op == "call_function"}


def _tapped_nodes(
    path: Path,
    lowered: ExportedProgram,
    inputs: Mapping[str, Array],
    settings: SessionSettings,
    outputs: Sequence[str],
) -> tuple[dict[str, Array], dict[str, str]]:
    """The file's inner values by the names of the program's nodes, and the layer whose weight each was made with."""
    known = {n.name for n in lowered.graph.nodes if n.op == "call_function"}
    ends = [getattr(a, "name", "") for a in lowered.graph.output_node().args[0]]
    renamed = dict(zip(outputs, [name for name in ends if name], strict=False))
    found = tapped(path, {*known, *renamed}, inputs, settings)
    weights = {
        renamed.get(v.name or "", v.name or ""): layer_of_weight(n) for n in reload_onnx(path).graph for v in n.outputs
    }
    return {renamed.get(name, name): value for name, value in found.items()}, weights


def _first(
    program: ExportedProgram,
    case: Case,
    values: Mapping[str, Array],
    layers: Mapping[str, str],
    unit_rounding: float,
    meant: Meant = as_it_is,
) -> str | None:
    """The first layer at which some values are more than rounding off from a program's."""
    first: str | None = None

    def visit(name: str, exact: Array, others: list[Array], value: Array) -> bool:
        nonlocal first
        if exact.dtype.kind == "f" and diverges(name, value, exact, others):
            first = layers.get(name, name)
        return first is not None

    _visit(program, case, values, unit_rounding, visit, runs=1, meant=meant)
    return first


def _visit(
    program: ExportedProgram,
    case: Case,
    values: Mapping[str, Array],
    unit_rounding: float,
    visit: Visit,
    *,
    runs: int,
    meant: Meant,
) -> None:
    """Evaluate a program in all ways at once, and show each node's values as they come; none is kept."""

    def watch(name: str, found: list[torch.Tensor]) -> bool:
        if name not in values:
            return False
        exact, *others = (meant(name, to_numpy(tensor)) for tensor in found)
        told = [other for other in others if other is not None]
        return exact is not None and visit(name, exact, told, values[name])

    evaluate_together(
        program,
        case.inputs.args,
        case.inputs.kwargs,
        noises=[Noise(seed=run, unit_rounding=unit_rounding) for run in range(runs)],
        watch=watch,
    )
