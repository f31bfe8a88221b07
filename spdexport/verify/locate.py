"""Where a fault begins: the first layer, in the order of computation, whose output is more than rounding off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spdexport.arrays import to_numpy
from spdexport.reference.torch_reference import Noise, evaluate
from spdexport.rewrite.torch_graph import module_path
from spdexport.runtime import RuntimeFailure, SessionSettings, open_session
from spdexport.verify.compare import compare, floor_of
from spdexport.verify.result import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch
    from torch.export import ExportedProgram

    from spdexport.conv import Array
    from spdexport.verify.inputs import Case


def first_divergent_layer(
    program: ExportedProgram, reference: ExportedProgram, case: Case, *, unit_rounding: float
) -> str | None:
    """The first layer at which two programs with the same node names differ in float64.

    Args:
        program: The program under suspicion.
        reference: What it should compute; its convolutions have the names of the program's.
        case: The inputs that showed the fault.
        unit_rounding: Of the model's dtype.
    """
    names = {n.name for n in program.graph.nodes} & {n.name for n in reference.graph.nodes}
    values = _watched(program, case, names)
    return _first(reference, values, case, names, unit_rounding)


def first_divergent_value(
    path: Path,
    lowered: ExportedProgram,
    case: Case,
    feeds: Mapping[str, Array],
    settings: SessionSettings,
    *,
    unit_rounding: float,
) -> tuple[str | None, str]:
    """The first layer of a file that diverges, found in one session with every value tapped.

    Args:
        path: The file.
        lowered: The program whose nodes have the names of the file's values.
        case: The inputs that showed the fault.
        feeds: The same by the file's input names.
        settings: Of the session that showed it.
        unit_rounding: Of the model's dtype.

    Returns:
        The layer, or None; and a remark for the report.
    """
    model = ir.load(path)
    known = {n.name for n in lowered.graph.nodes if n.op == "call_function"}
    produced = [v for node in model.graph for v in node.outputs]
    tapped = [v for v in produced if v.name in known and v.dtype is not None and v.dtype.is_floating_point()]
    present = set(model.graph.outputs)
    model.graph.outputs.extend([v for v in tapped if v not in present])
    wanted = [v.name for v in tapped if v.name]
    if not wanted:
        return None, "no inner value of the file has a name of the program's"
    try:
        values = open_session(ir.to_proto(model).SerializeToString(), settings).run(feeds, wanted)
    except (RuntimeFailure, ValueError) as error:
        return None, f"the layers could not be tapped: {error}"
    layer = _first(lowered, values, case, set(wanted), unit_rounding)
    if layer is None:
        return None, "with every layer tapped, which prevents fusions, no layer diverges"
    return layer, ""


def _watched(program: ExportedProgram, case: Case, names: set[str]) -> dict[str, Array]:
    values: dict[str, Array] = {}

    def watch(name: str, tensor: torch.Tensor) -> None:
        if name in names:
            values[name] = to_numpy(tensor)

    evaluate(program, case.inputs.args, case.inputs.kwargs, watch=watch)
    return values


def _first(
    program: ExportedProgram, values: Mapping[str, Array], case: Case, names: set[str], unit_rounding: float
) -> str | None:
    own: dict[str, Array] = {}
    noisy: dict[str, Array] = {}

    def keep(into: dict[str, Array]) -> Callable[[str, torch.Tensor], None]:
        def watch(name: str, tensor: torch.Tensor) -> None:
            if name in names:
                into[name] = to_numpy(tensor)

        return watch

    args, kwargs = case.inputs.args, case.inputs.kwargs
    evaluate(program, args, kwargs, float64=False, watch=keep(own))
    evaluate(program, args, kwargs, noise=Noise(seed=0, unit_rounding=unit_rounding), watch=keep(noisy))
    reference = _watched(program, case, names)
    for node in program.graph.nodes:
        name = node.name
        if name not in values or name not in reference or reference[name].dtype.kind != "f":
            continue
        exact = reference[name]
        finite = np.isfinite(exact)
        floor = floor_of(
            np.where(finite, exact, 0),
            np.where(finite, own[name], 0).astype(own[name].dtype),
            [np.where(finite, noisy[name], 0)],
        )
        if compare(name, values[name], exact, floor).status is Status.FAIL:
            return module_path(node) or name
    return None
